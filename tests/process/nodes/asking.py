"""Looks into the database that nodes share, as somebody else would."""

from typing import Any

import psycopg
import trio

from jobpipe.store.postgres.address import read_address
from tests.process.judge import assert_held_within_limits


async def ask(url: str, sql: str) -> list[tuple[Any, ...]]:
    """The rows of a statement in the schema of a store."""

    def asked() -> list[tuple[Any, ...]]:
        address = read_address(url)
        with psycopg.connect(address.conninfo, autocommit=True) as connection:
            connection.execute(f'set search_path to "{address.schema}"'.encode())
            return connection.execute(sql.encode()).fetchall()

    return await trio.to_thread.run_sync(asked)


HELD = "select queue, key, true as held from live where node is not null and key is not null"


async def watch_limits(url: str, every: float = 0.2) -> None:
    """Look again and again, for ever, how many jobs of the limited queue are held: never more than may."""
    while True:
        rows = await ask(url, HELD)
        assert_held_within_limits([{"queue": queue, "key": key, "held": held} for queue, key, held in rows])
        await trio.sleep(every)


async def left_behind(url: str) -> tuple[int, int]:
    """How often jobs were taken back from a dead node, and how many attempts were broken off by somebody else."""
    ((rescued,),) = await ask(url, "select coalesce(sum(rescued), 0)::int from shown")
    ((broken,),) = await ask(url, "select count(*) from attempts where outcome = 'interrupted'")
    return rescued, broken
