"""Handlers for the tests with the real process: each run writes its start and its end to one file.

The file is named by the environment variable JOBPIPE_TEST_TRACE. A line is one write to a file opened for appending,
so the lines of several processes stand in the order in which they were written, whole.
"""

import json
import os
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import msgspec
import structlog
import trio

from jobpipe.handlers.context import Context
from jobpipe.handlers.exceptions import Fail, Retry
from jobpipe.handlers.registry import handler

LOOK = 0.01
"""Seconds between two looks whether a file is there."""


class Work(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """What to do in a run: `seconds` of work, then wait for the file `until`, then end."""

    seconds: float = 0.0
    until: str | None = None
    retries: int = 0
    """how many runs, from the first, ask for a retry"""
    after: float = 0.0
    """in how many seconds they ask for it"""
    fail: bool = False
    cleanup_until: str | None = None
    """the file that the cleanup waits for when the run is cancelled"""


def tell(event: str, context: Context) -> None:
    """Append a line to the trace."""
    line: dict[str, object] = {
        "event": event,
        "job": context.id,
        "claim": context.claim,
        "attempt": context.attempt,
        "pid": os.getpid(),
        "at": time.monotonic(),
    }
    if context.group is not None:
        line["members"] = context.group.jobs
    file = os.open(os.environ["JOBPIPE_TEST_TRACE"], os.O_WRONLY | os.O_APPEND | os.O_CREAT, 0o644)
    try:
        os.write(file, json.dumps(line).encode() + b"\n")
    finally:
        os.close(file)


@contextmanager
def told(context: Context) -> Iterator[None]:
    """Write the start of a run, and how it ended."""
    tell("start", context)
    try:
        yield
    except trio.Cancelled:
        tell("cancelled", context)
        raise
    except (Retry, Fail):
        tell("failed", context)
        raise
    tell("done", context)


def judge(work: Work, context: Context) -> int:
    """End a run as its payload says; what it returns tells which run it was."""
    if work.fail:
        raise Fail("as it was told")
    if context.attempt <= work.retries:
        raise Retry("as it was told", after=work.after)
    return context.claim


async def there(path: str | None) -> None:
    """Return when the file is there."""
    while path is not None and not await trio.Path(path).exists():  # noqa: ASYNC110 - an event of another process
        await trio.sleep(LOOK)


@handler("work")
async def work(payload: Work, context: Context) -> int:
    """Work as the payload says; when cancelled, clean up under a shield."""
    with told(context):
        try:
            await trio.sleep(payload.seconds)
            await there(payload.until)
        except trio.Cancelled:
            with trio.CancelScope(shield=True):
                await there(payload.cleanup_until)
            raise
        return judge(payload, context)


@handler("thread")
def work_in_a_thread(payload: Work, context: Context) -> int:
    """Work as the payload says, in a thread that nothing can cancel."""
    with told(context):
        time.sleep(payload.seconds)
        while payload.until is not None and not Path(payload.until).exists():
            time.sleep(LOOK)
        return judge(payload, context)


@handler("stuck")
def stuck(payload: None, context: Context) -> None:
    """Never end."""
    with told(context):
        threading.Event().wait()


@handler("block-loop")
async def block_loop(payload: Work, context: Context) -> int:
    """Block the event loop as long as the payload says."""
    with told(context):
        time.sleep(payload.seconds)  # noqa: ASYNC251 - a bad handler: that is what is tested
        while payload.until is not None and not Path(payload.until).exists():  # noqa: ASYNC240 - the same
            time.sleep(LOOK)  # noqa: ASYNC251 - the same
        return judge(payload, context)


@handler("stubborn")
async def stubborn(payload: None, context: Context) -> None:
    """Never end, and ignore every cancel."""
    with told(context), trio.CancelScope(shield=True):
        await trio.sleep_forever()


@handler("bomb")
async def bomb(payload: None, context: Context) -> None:
    """Kill the node at once."""
    with told(context):
        os._exit(9)


@handler("chatty")
async def chatty(payload: None, context: Context) -> None:
    """Log a line."""
    structlog.get_logger("traced").info("the handler has something to say", more="this")
