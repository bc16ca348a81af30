"""Handlers that no one should write."""

import threading
import time

import msgspec
import trio

from jobpipe.handlers.context import Context
from jobpipe.handlers.registry import handler
from tests.process.traced import told


class Bad(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """How bad: `seconds` of it, `size` in bytes."""

    seconds: float = 0.0
    size: int = 0


@handler("block")
async def block(payload: Bad, context: Context) -> str:
    """Hold the event loop up."""
    with told(context):
        time.sleep(payload.seconds)  # noqa: ASYNC251 - the fault itself
        return "at last"


@handler("ignore")
async def ignore(payload: Bad, context: Context) -> str:
    """Ignore a cancel for some seconds, and return as if nothing had been."""
    with told(context):
        with trio.CancelScope(shield=True):
            await trio.sleep(payload.seconds)
        return "so there"


@handler("leak")
async def leak(payload: Bad, context: Context) -> int:
    """Leave a thread behind."""
    threading.Thread(target=time.sleep, args=(payload.seconds,), daemon=True).start()
    return threading.active_count()


@handler("huge")
async def huge(payload: Bad, context: Context) -> str:
    """Return a lot."""
    return "x" * payload.size


@handler("spiteful")
async def spiteful(payload: Bad, context: Context) -> None:
    """Fail in the cleanup."""
    with told(context):
        try:
            await trio.sleep_forever()
        finally:
            raise RuntimeError("out of spite")


@handler("fails")
async def fails(payload: Bad, context: Context) -> None:
    """Fail, at length."""
    raise ValueError("x" * payload.size)
