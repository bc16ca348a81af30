"""The few places where benchmarks touch what changes between versions: `bench-ab` runs them on older trees too.

What a version lacks is told as `Lacks`, and a program that ends for it has the exit code `LACKS`.
"""

import importlib.util
import inspect
import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractAsyncContextManager, contextmanager
from typing import Any

import msgspec

from jobpipe import service
from jobpipe.clock import WallClock
from jobpipe.engine.node import Node
from jobpipe.handlers.registry import load
from jobpipe.job import NewJob
from jobpipe.settings import Settings
from jobpipe.store import base
from jobpipe.store.base import Batch, Store
from jobpipe.store.factory import open_store

LACKS = 69
"""Exit code: this version of jobpipe has not what is measured (EX_UNAVAILABLE of sysexits.h)."""

POSTGRES = "postgresql://"


class Lacks(Exception):  # noqa: N818 - no error of the benchmark
    """This version of jobpipe has not what is measured."""


@contextmanager
def telling_what_is_lacking() -> Iterator[None]:
    """End the program with `LACKS` and one line, where the body finds that something is not there."""
    try:
        yield
    except (Lacks, ImportError) as error:
        print(error, file=sys.stderr)
        sys.exit(LACKS)


def opened(store: str, sync: Any = "full") -> AbstractAsyncContextManager[Store]:  # noqa: ANN401 - full or normal
    """Open a store by its URL. Raises `Lacks` where this version knows no such store."""
    if store.startswith(POSTGRES) and not importlib.util.find_spec("jobpipe.store.postgres"):
        raise Lacks("no store on PostgreSQL")
    return open_store(store, sync)


def settings(**given: Any) -> Settings:  # noqa: ANN401 - as Settings has them
    """Settings. Raises `Lacks` where this version has not one of them."""
    try:
        return Settings(**given)
    except TypeError as error:
        raise Lacks(str(error)) from error


def node(chosen: Settings, store: Store, module: str) -> Node:
    """A node on an open store, as the service has one, with the handlers of a module."""
    return Node(chosen, store, load([module]), clock(store))


def clock(store: Store) -> WallClock:
    """The clock that jobs go by: a store that nodes share has its own."""
    if hasattr(store, "clock_offset"):
        return WallClock(lambda: getattr(store, "clock_offset"))  # noqa: B009 - only a store that nodes share has it
    return WallClock()


def spare_the_collector() -> None:
    """Search for garbage as seldom as the service does; very old versions have no such thing."""
    spare: Callable[[], None] | None = getattr(service, "spare_the_collector", None)
    if spare is not None:
        spare()


async def enqueue(node: Node, jobs: Sequence[NewJob]) -> None:
    """Store jobs as the API does; the way in has had several names."""
    backlog = getattr(node, "backlog", None) or getattr(node, "queue")  # noqa: B009 - only older versions have it
    await backlog.enqueue(jobs)


async def join(store: Store, name: str, now: float, until: float, kinds: Sequence[str]) -> None:
    """Register a node, with the kinds that it runs where versions ask for them."""
    if _takes(store.join, "kinds"):
        asking: Callable[..., Any] = store.join  # older versions have no such parameter
        await asking(name, now, until, kinds=kinds)
    else:
        await store.join(name, now, until)


def claiming(batch: Batch, limit: int, kinds: Sequence[str]) -> Batch:
    """The batch, with a claim: a number in very old versions, then a request that names kinds, now several of them."""
    request = getattr(base, "ClaimRequest", None)
    claim = limit if request is None else request(limit=limit, kinds=tuple(kinds))
    claims = {"claims": [claim]} if "claims" in Batch.__struct_fields__ else {"claim": claim}
    return msgspec.structs.replace(batch, **claims)


def _takes(function: Callable[..., Any], name: str) -> bool:
    return name in inspect.signature(function).parameters
