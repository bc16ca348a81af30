"""Exceptions that nobody foresaw: each is logged with its traceback, and costs its entry, never the node."""

from collections.abc import Awaitable, Callable, Iterator
from contextlib import contextmanager

import structlog
import trio

from jobpipe.engine.throttle import LogThrottle

LINES = 3
"""How many of them each room of the engine logs in a second; a traceback is long."""

PAUSE = 1.0
"""Seconds before a task that such an exception ended is started again."""

UNFORESEEN = "unforeseen exception"
"""How each such line in the log begins."""

log = structlog.get_logger("jobpipe")


class Unforeseen:
    """Tells of exceptions that nobody foresaw. Each room has one of its own, so that none silences another."""

    def __init__(self) -> None:
        self._lines = LogThrottle(LINES)

    def tell(self, error: BaseException, cost: str, **entry: object) -> None:
        """Log an exception with its traceback, what it costs, and the entry it belongs to; at most `LINES` a second."""
        self._lines.tell(log.error, UNFORESEEN, cost=cost, exc_info=error, **entry)

    @contextmanager
    def costs(self, cost: str, **entry: object) -> Iterator[None]:
        """Log an exception of the body instead of raising it. A cancel passes."""
        try:
            yield
        except Exception as error:  # noqa: BLE001 - the rule: it costs this entry and nothing else
            self.tell(error, cost, **entry)

    async def keep(self, run: Callable[[], Awaitable[None]], name: str) -> None:
        """Run a task that is to run as long as the node; where an exception ends it, start it again after `PAUSE`."""
        while True:
            with self.costs(f"the {name} is started again", seconds=PAUSE):
                await run()
                return
            await trio.sleep(PAUSE)


def in_words(error: BaseException) -> str:
    """An exception in one short line that any store can hold."""
    try:
        text = f"{type(error).__name__}: {error}"
    except Exception:  # noqa: BLE001 - an error that cannot even be shown
        text = type(error).__name__
    first_line = text.strip().splitlines()[0]
    return first_line[:300].encode("utf-8", "replace").decode().replace("\0", " ")
