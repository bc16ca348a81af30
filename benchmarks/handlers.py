"""Handlers that do nothing, so that what remains is jobpipe's own cost."""

import time
from typing import Any

from jobpipe import handler


@handler("noop")
async def noop(_: Any) -> None:  # noqa: ANN401 - takes any payload
    """Do nothing."""


@handler("stamp")
async def stamp(_: Any) -> float:  # noqa: ANN401 - takes any payload
    """Tell when it began, by the clock that every process of this machine shares."""
    return time.perf_counter()
