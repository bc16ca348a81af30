"""Names the handlers that do not end although they were cancelled or have timed out."""

from collections.abc import Sequence

import structlog
import trio

from jobpipe.engine.attempt import Attempt
from jobpipe.engine.held import Held
from jobpipe.engine.throttle import LogThrottle

PATIENCE = 5.0
"""Seconds that a handler has for its cleanup before it is named."""

LINES = 20
"""How many such handlers a second have a line in the log."""

log = structlog.get_logger("jobpipe")


class Lingering:
    """Runs as one task. A worker whose handler does not end stays with it, so nothing is stopped here, only told."""

    def __init__(self, held: Held) -> None:
        self._held = held
        self._told: Sequence[Attempt] = ()
        self._lines = LogThrottle(LINES)

    async def run(self) -> None:
        """Look for ever: each such handler is named once in the log."""
        while True:
            await trio.sleep(PATIENCE)
            found = self.attempts()
            for attempt in found:
                if attempt not in self._told:
                    self._tell(attempt)
            self._told = found

    def attempts(self) -> Sequence[Attempt]:
        """Those whose handlers should have ended `PATIENCE` seconds ago, the longest first."""
        found = [one for one in self._held.running if one.lingers() >= PATIENCE]
        return sorted(found, key=Attempt.lingers, reverse=True)

    def _tell(self, attempt: Attempt) -> None:
        self._lines.tell(
            log.warning,
            "a handler does not end: its worker cannot take another job",
            **attempt.named(),
            asked_by=attempt.reason or "timeout",
            seconds=round(attempt.lingers()),
        )
