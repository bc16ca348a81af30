"""What every program of this benchmark does: says that it is ready, waits for the others, asks at a rate, tells."""

import asyncio
import json
import sys
import time
from collections.abc import Awaitable, Callable, Iterator

import trio

Ask = Callable[[float], Awaitable[object]]
"""Enqueues one job, whose payload is a time."""


def ready() -> None:
    """Say so, and wait until all are."""
    print("ready", flush=True)
    sys.stdin.readline()


def over() -> None:
    """Wait for the end."""
    sys.stdin.read()


def tell(what: object) -> None:
    """Tell what was found."""
    print(json.dumps(what), flush=True)


def times(rate: float, seconds: float) -> Iterator[float]:
    """When to ask, from now on."""
    began = time.perf_counter()
    for number in range(int(rate * seconds)):
        yield began + number / rate


async def asked(ask: Ask, rate: float, seconds: float) -> list[float]:
    """Ask at a steady rate, whatever becomes of the earlier ones; returns how long each took. For Trio."""
    waits: list[float] = []

    async def one() -> None:
        began = time.perf_counter()
        await ask(began)
        waits.append(time.perf_counter() - began)

    async with trio.open_nursery() as nursery:
        for at in times(rate, seconds):
            await trio.sleep(max(0.0, at - time.perf_counter()))
            nursery.start_soon(one)
    return waits


async def asked_by_asyncio(ask: Ask, rate: float, seconds: float) -> list[float]:
    """The same for asyncio."""
    waits: list[float] = []

    async def one() -> None:
        began = time.perf_counter()
        await ask(began)
        waits.append(time.perf_counter() - began)

    async with asyncio.TaskGroup() as group:
        for at in times(rate, seconds):
            await asyncio.sleep(max(0.0, at - time.perf_counter()))
            group.create_task(one())
    return waits


async def enqueued(send: Callable[[], Awaitable[object]], seconds: float) -> int:
    """Call again and again until so many seconds are over; returns how often. For either."""
    calls, until = 0, time.perf_counter() + seconds
    while time.perf_counter() < until:
        await send()
        calls += 1
    return calls


async def enqueued_by_asyncio(send: Callable[[], Awaitable[object]], seconds: float, tasks: int) -> int:
    """The same in so many tasks of asyncio."""
    return sum(await asyncio.gather(*(enqueued(send, seconds) for _ in range(tasks))))
