"""Looks into the database that nodes share, as somebody else would."""

from typing import Any

import psycopg
import trio

from jobpipe.store.postgres.address import read_address


async def ask(url: str, sql: str) -> list[tuple[Any, ...]]:
    """The rows of a statement in the schema of a store."""

    def asked() -> list[tuple[Any, ...]]:
        address = read_address(url)
        with psycopg.connect(address.conninfo, autocommit=True) as connection:
            connection.execute(f'set search_path to "{address.schema}"'.encode())
            return connection.execute(sql.encode()).fetchall()

    return await trio.to_thread.run_sync(asked)


async def left_behind(url: str) -> tuple[int, int]:
    """How often jobs were taken back from a dead node, and how many attempts were broken off by somebody else."""
    ((rescued,),) = await ask(url, "select coalesce(sum(rescued), 0)::int from shown")
    ((broken,),) = await ask(url, "select count(*) from attempts where outcome = 'interrupted'")
    return rescued, broken
