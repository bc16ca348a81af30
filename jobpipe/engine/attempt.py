"""One run of a handler, from the claim of its job to the settlement."""

import math
from typing import Literal

import trio

from jobpipe.engine.notebook import Notebook
from jobpipe.engine.outbox import Outbox
from jobpipe.engine.scope import ReusableScope
from jobpipe.store.base import Claimed, Settlement

Reason = Literal["cancel", "shutdown", "lease", "pause"]


class Attempt:
    """A job that this node holds, and how far its run has come."""

    __slots__ = (
        "deadline",
        "job",
        "notebook",
        "outbox",
        "over",
        "reason",
        "scope",
        "started_at",
        "stopped_at",
        "taken",
    )

    def __init__(self, job: Claimed) -> None:
        self.job = job
        self.taken = False
        """whether a worker has it; else it waits in the channel"""
        self.over: Settlement | Literal["lost"] | None = None
        """what was made of it; `lost`: a newer claim has the job; None: the node holds it"""
        self.started_at: float | None = None
        self.scope: ReusableScope | None = None
        """where its handler runs, once it does"""
        self.reason: Reason | None = None
        self.stopped_at = self.deadline = math.inf
        """when it was stopped, and when it times out, in Trio's clock"""
        self.notebook: Notebook | None = None
        """what its handler has written; None: nothing so far"""
        self.outbox: Outbox | None = None
        """what its handler has enqueued for its end; None: nothing so far"""

    def stop(self, reason: Reason) -> None:
        """Cancel the handler, or keep it from beginning; the first reason counts."""
        if self.reason is None:
            if self.scope is not None:
                self.scope.cancel()
            self.stopped_at = trio.current_time()
            self.reason = reason  # last, so that a cancel that failed can be tried again

    def lingers(self) -> float:
        """For how many seconds its handler has not ended although it should; not above 0: it may run."""
        return trio.current_time() - min(self.stopped_at, self.deadline)

    @property
    def number(self) -> int:
        """Which run of the job this is, from 1."""
        return self.job.attempt + 1

    def named(self) -> dict[str, object]:
        """Its job, for a line of the log."""
        return {"job": self.job.id, "kind": self.job.kind, "attempt": self.number}
