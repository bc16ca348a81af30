"""The kind `demo`: works for a while and fails now and then, to try retries."""

import random
from typing import Annotated, Any

import msgspec
import trio

from jobpipe.handlers.context import Context
from jobpipe.handlers.registry import handler

Share = Annotated[float, msgspec.Meta(ge=0, le=1)]
Time = Annotated[float, msgspec.Meta(ge=0, le=3600)]


class Demo(msgspec.Struct, frozen=True):
    """How to work: between `shortest` and `longest` seconds, failing this share of the times.

    It tells its progress in so many `steps`, each with a line in the job's log.
    """

    shortest: Time = 0.1
    longest: Time = 0.5
    fail: Share = 0.2
    steps: Annotated[int, msgspec.Meta(ge=0, le=1000)] = 0


@handler("demo")
async def demo(
    payload: Demo | list[Any] | str | float | bool | None,  # noqa: FBT001 - any JSON, no flag
    context: Context,
) -> dict[str, Any]:
    """Work 100 to 500 ms and fail about one time in five, unless the payload says otherwise."""
    how = payload if isinstance(payload, Demo) else Demo()
    seconds = random.uniform(how.shortest, max(how.shortest, how.longest))  # noqa: S311 - no secret
    steps = max(how.steps, 1)
    for step in range(1, steps + 1):
        await trio.sleep(seconds / steps)
        if how.steps:
            context.progress(step / steps, f"step {step} of {steps}")
            context.log.info("step done", step=step)
    if random.random() < how.fail:  # noqa: S311 - no secret
        raise RuntimeError("demo: failed, as it does now and then")
    return {"worked": round(seconds, 3), "attempt": context.attempt}
