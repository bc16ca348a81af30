"""What this node holds: each claimed job, until the ledger has its settlement. Knows nothing of handlers."""

import logging
import random
from collections import Counter
from collections.abc import Callable, Collection, Iterable, Iterator, Sequence

import msgspec
import structlog
import trio

from jobpipe import logs
from jobpipe.clock import Clock
from jobpipe.engine import outcomes
from jobpipe.engine.attempt import Attempt
from jobpipe.engine.outcomes import Verdict
from jobpipe.engine.tallies import Tallies
from jobpipe.engine.throttle import LogThrottle
from jobpipe.engine.unforeseen import Unforeseen
from jobpipe.job import Backoff, Outcome, Status
from jobpipe.store.base import Claimed, Settlement

USUAL_BACKOFF = Backoff()

FAILURES = 20
"""How many failed jobs a second have a line in the log."""

SHOWN = 200
"""The most characters of an error in the log; the job has it whole."""

log = structlog.get_logger("jobpipe")


class Held:
    """The attempts of the jobs that this node holds, and what became of those that it has held.

    The ledger adds what it has claimed, and removes what it has taken a settlement for.
    `max_retries` says how often a job of a kind is retried that leaves this to its handler.
    """

    def __init__(self, clock: Clock, max_retries: Callable[[str], int], rng: random.Random) -> None:
        self._clock, self._max_retries, self._rng = clock, max_retries, rng
        self._attempts: dict[tuple[int, int], Attempt] = {}
        self.tally: Counter[Outcome | None] = Counter()
        """how many attempts ended in each outcome; None: handed back without having begun"""
        self.tallies = Tallies()
        """what is counted of this node's work, for `/metrics`"""
        self._ended: trio.Event | None = None
        """set at the end of an attempt, while somebody waits for one"""
        self._failures = LogThrottle(FAILURES)
        self._tells_all = logs.writes(logging.DEBUG)
        self._unforeseen = Unforeseen()

    # What is held

    def __iter__(self) -> Iterator[Attempt]:
        return iter(list(self._attempts.values()))

    @property
    def running(self) -> list[Attempt]:
        """The attempts whose handlers run."""
        return [attempt for attempt in self._attempts.values() if attempt.started_at is not None]

    @property
    def busy(self) -> int:
        """How many handlers run."""
        return len(self.running)

    async def quiet(self) -> None:
        """Return when no handler runs."""
        while self.running:
            ended = self._ended = self._ended or trio.Event()
            await ended.wait()

    def of_jobs(self, ids: Collection[str]) -> list[Attempt]:
        """The attempts of jobs, where this node holds them."""
        return [attempt for attempt in self._attempts.values() if attempt.job.id in ids]

    def of_claims(self, claims: Iterable[tuple[int, int]]) -> list[Attempt]:
        """The attempts of claims (seq, claim); one that is over is left out."""
        return [self._attempts[claim] for claim in claims if claim in self._attempts]

    def unbegun(self, queue: str, key: str | None = None) -> list[Attempt]:
        """The attempts of a queue whose handlers have not begun, or those of one key in it."""
        return [
            one
            for one in self._attempts.values()
            if one.job.queue == queue
            and one.started_at is None
            and (key is None or (one.job.options.key or "") == key)
        ]

    def untaken(self) -> list[Attempt]:
        """What only waits in the channel, or was dropped by a channel without receivers."""
        return [attempt for attempt in self._attempts.values() if not attempt.taken]

    # What the ledger tells

    def hold(self, jobs: Sequence[Claimed]) -> Sequence[Attempt]:
        """Hold claimed jobs; from now on they can be stopped."""
        attempts = [Attempt(job if job.max_retries is not None else self._decided(job)) for job in jobs]
        for attempt in attempts:
            self._attempts[attempt.job.seq, attempt.job.claim] = attempt
        return attempts

    def _decided(self, job: Claimed) -> Claimed:
        """A job that leaves the number of its retries to the handler, with that number."""
        return msgspec.structs.replace(job, max_retries=self._max_retries(job.kind))

    def settlement(self, attempt: Attempt, verdict: Verdict, policy: Backoff = USUAL_BACKOFF) -> Settlement:
        """What a verdict makes of a job. One that it can't be made for fails: it must not stay held for it."""
        now = self._clock.now()
        try:
            settled = outcomes.settlement(
                attempt.job,
                verdict,
                started_at=attempt.started_at,
                now=now,
                policy=policy,
                random=self._rng.random,
            )
            if attempt.outbox is not None and settled.status is Status.DONE:
                settled = msgspec.structs.replace(settled, jobs=attempt.outbox.jobs)
            return settled  # noqa: TRY300 - what fails here fails the job
        except Exception as error:  # noqa: BLE001 - costs this job
            self._unforeseen.tell(error, "the job fails", job=attempt.job.id)
            return outcomes.settlement(
                attempt.job,
                outcomes.broken(error),
                started_at=attempt.started_at,
                now=now,
                policy=USUAL_BACKOFF,
                random=self._rng.random,
            )

    def release(self, settled: Settlement) -> Attempt | None:
        """Hold a job no more, since its settlement will be written; returns its attempt, None where it was not held."""
        attempt = self._attempts.pop((settled.seq, settled.claim), None)
        if attempt is not None:
            attempt.over = settled
            self.tally[settled.outcome] += 1
            if self._ended is not None:
                self._ended.set()
                self._ended = None
        return attempt

    def tell(self, attempt: Attempt, settled: Settlement) -> None:
        """Log how an attempt ended: at the level debug, and failures, a few of them a second."""
        if attempt.reason == "cancel" and attempt.started_at is not None:
            self.tallies.cancels.add([trio.current_time() - attempt.stopped_at])
        if self._tells_all:
            _tell_end(attempt, settled)
        if settled.error is not None and settled.status is Status.FAILED:
            self._failures.tell(log.warning, "job failed", **attempt.named(), error=_short(settled))

    def lose(self, attempt: Attempt) -> None:
        """Hold a job no more, since a newer claim has it: there is nothing to settle."""
        self._attempts.pop((attempt.job.seq, attempt.job.claim), None)
        attempt.over = "lost"


def _tell_end(attempt: Attempt, settled: Settlement) -> None:
    """What became of an attempt, at the level debug."""
    if settled.outcome is None:
        log.debug("job handed back before it started", **attempt.named(), status=settled.status.value)
        return
    ended = {"outcome": settled.outcome.value, "status": settled.status.value}
    if settled.error is not None:
        ended["error"] = _short(settled)
    log.debug("attempt ended", **attempt.named(), **ended)
    if settled.run_at is not None:
        seconds = round(settled.run_at - (settled.settled_at or 0.0), 3)
        log.debug("job runs again", **attempt.named(), seconds=seconds)


def _short(settled: Settlement) -> str:
    error = settled.error
    return "" if error is None else f"{error.type}: {error.message}"[:SHOWN]
