"""Renews the lease of this node from a thread while the event loop is blocked and cannot do it itself."""

import math
import threading
import time
from collections.abc import Callable

import structlog

from jobpipe.clock import Clock
from jobpipe.errors import StoreError
from jobpipe.store.base import EngineStore, SharedStore

SILENCE = 1 / 3
"""The share of the lease for which the event loop must have been silent before the thread acts, and between renewals.

The last renewal may be as old as that when the silence begins; a third is left for the renewal itself.
"""

RETRY = 0.2
"""Seconds between two tries while the store cannot write."""

log = structlog.get_logger("jobpipe")


class Heartbeat:
    """Costs nothing while the event loop lives: no thread, no connection. The watchdog calls `look`.

    It renews through the store, and only a lease that nobody has taken: a node that cannot reach its database, and a
    process that stood still and was taken for dead, lose theirs as ever. A store that this process has to itself needs
    no such thing.
    """

    def __init__(self, store: EngineStore, clock: Clock, node: str, seconds: float) -> None:
        self._renew: Callable[[], bool] | None = None
        if isinstance(store, SharedStore):
            shared = store

            def renew() -> bool:
                now = clock.now()
                return shared.renew_from_thread(node, now, now + seconds)

            self._renew = renew
        self.after = seconds * SILENCE
        """seconds of silence after which the thread acts"""
        self.armed = False
        """whether the node has a lease that may be renewed; the owner of the lease sets it"""
        self.renewals = 0
        """how often a thread has renewed it"""
        self._trying = False
        self._next = -math.inf  # in the time of `time.monotonic`
        self._told = False
        self._renewed_at = -math.inf  # in the time of `time.perf_counter`, as Trio's clock

    def age(self) -> float:
        """Seconds since the last renewal by a thread began; infinite when there was none."""
        return time.perf_counter() - self._renewed_at

    def look(self, silent: float) -> None:
        """Begin a renewal when one is due. `silent`: for how many seconds the event loop has given no sign of life.

        Returns at once: what the store does must not keep the watchdog from its other work.
        """
        if silent < self.after:
            self._next, self._told = -math.inf, False
        elif self._renew and self.armed and not self._trying and time.monotonic() >= self._next:
            self._trying = True
            try:
                threading.Thread(
                    target=self._try, args=[self._renew], name="jobpipe-heartbeat", daemon=True
                ).start()
            except RuntimeError:
                self._trying = False
                raise

    def _try(self, renew: Callable[[], bool]) -> None:
        begun = time.perf_counter()
        self._next = time.monotonic() + RETRY
        try:
            kept = renew()
        except StoreError as error:
            self._tell("the lease cannot be renewed while the event loop is blocked", error=str(error))
        except Exception:
            log.exception("the lease could not be renewed while the event loop is blocked")
        else:
            self._judge(begun, kept=kept)
        finally:
            self._trying = False

    def _judge(self, begun: float, *, kept: bool) -> None:
        if kept:
            self._renewed_at, self._next = begun, time.monotonic() + self.after
            self.renewals += 1
            self._tell("the event loop is blocked: a thread renews the lease of this node")
        elif self.armed:
            self.armed = False
            log.error("this node lost its lease while the event loop was blocked")

    def _tell(self, event: str, **more: str) -> None:
        """Once for each block."""
        if not self._told:
            self._told = True
            log.warning(event, **more)
