"""Every attempt of a node, and how one is performed: context, deadline, cancel, outcome."""

import logging
import math
import random
from collections import Counter
from collections.abc import Collection, Iterable, Iterator, Sequence
from typing import Any

import msgspec
import structlog
import trio

from jobpipe import logs
from jobpipe.clock import Clock
from jobpipe.engine import verdict as verdicts
from jobpipe.engine.attempt import Attempt, Reason
from jobpipe.engine.lane import Lane
from jobpipe.engine.ledger import Ledger
from jobpipe.engine.sparing import Sparing
from jobpipe.engine.unforeseen import Unforeseen
from jobpipe.engine.verdict import Verdict
from jobpipe.errors import DamagedRow, StoreUnavailable
from jobpipe.handlers.context import Context
from jobpipe.handlers.registry import Handler, Registry
from jobpipe.job import Backoff, Outcome, Status, retries_of
from jobpipe.store.base import Claimed, Settlement, Start

USUAL_BACKOFF = Backoff()

FAILURES = 20
"""How many failed jobs a second have a line in the log."""

SHOWN = 200
"""The most characters of an error in the log; the job has it whole."""

log = structlog.get_logger("jobpipe")


class Attempts:
    """Every attempt of this node, and how one is performed."""

    def __init__(
        self,
        ledger: Ledger,
        registry: Registry,
        clock: Clock,
        *,
        threads: int,
        max_result: int,
        rng: random.Random,
    ) -> None:
        self._ledger, self._registry, self._clock, self._rng = ledger, registry, clock, rng
        self._max_result = max_result
        # Handlers that are not async run in threads under a limiter of their own: a worker each, so nobody waits.
        self._threads = trio.CapacityLimiter(threads)
        self._held: dict[tuple[int, int], Attempt] = {}
        self.tally: Counter[Outcome | None] = Counter()
        """how many attempts ended in each outcome; None: handed back without having begun"""
        self._failures = Sparing(FAILURES)
        self._tells_all = logs.writes(logging.DEBUG)
        self._unforeseen = Unforeseen()
        self._ended = trio.Event()
        ledger.on_stale, ledger.on_cancelling = self._lost, self.cancel_held

    def __iter__(self) -> Iterator[Attempt]:
        return iter(list(self._held.values()))

    @property
    def running(self) -> list[Attempt]:
        """The attempts whose handlers run."""
        return [attempt for attempt in self._held.values() if attempt.started_at is not None]

    @property
    def busy(self) -> int:
        """How many handlers run."""
        return len(self.running)

    async def quiet(self) -> None:
        """Return when no handler runs."""
        while self.running:
            self._ended = trio.Event()
            await self._ended.wait()

    def hold(self, jobs: Sequence[Claimed]) -> Sequence[Attempt]:
        """Take claimed jobs over; from now on they can be stopped."""
        attempts = [Attempt(self._decided(job)) for job in jobs]
        for attempt in attempts:
            self._held[attempt.job.seq, attempt.job.claim] = attempt
        return attempts

    def _decided(self, job: Claimed) -> Claimed:
        """A job that leaves the number of its retries to the handler, with that number."""
        if job.max_retries is not None:
            return job
        return msgspec.structs.replace(job, max_retries=self._registry.max_retries(job.kind))

    def stop(self, ids: Collection[str], reason: Reason) -> None:
        """Cancel the attempts of jobs, where this node holds them. Returns before their cleanup has ended."""
        for attempt in self:
            if attempt.job.id in ids:
                self._stop(attempt, reason)

    def cancel_held(self, holds: Iterable[tuple[int, int]]) -> None:
        """Cancel the attempts of holds (seq, claim) that were asked to stop; one that is over is left alone."""
        for hold in holds:
            if attempt := self._held.get(hold):
                self._stop(attempt, "cancel")

    def stop_all(self, reason: Reason) -> None:
        """Cancel every attempt."""
        for attempt in self:
            self._stop(attempt, reason)

    def _stop(self, attempt: Attempt, reason: Reason) -> None:
        attempt.stop(reason)
        if not attempt.taken:
            self.hand_back(attempt)  # at once: a worker may be long in coming

    def hand_back(self, attempt: Attempt) -> None:
        """Give a job back unstarted, or cancelled when somebody asked for that. One not held any more is left alone."""
        self._settle(attempt, verdicts.CANCELLED if attempt.reason == "cancel" else verdicts.HANDED_BACK)

    def recall(self, queue: str) -> None:
        """Hand back the jobs of a queue that have not begun: it was paused."""
        for attempt in self:
            if attempt.job.queue == queue and attempt.started_at is None:
                self._stop(attempt, "pause")

    def release(self) -> None:
        """Give everything back that only waits in the channel, or that a channel without receivers has dropped."""
        for attempt in self:
            if not attempt.taken:
                self.hand_back(attempt)

    def abandon(self) -> list[Attempt]:
        """Give up the handlers that would not end, and hand their jobs back; returns them, to be named."""
        left = self.running
        for attempt in left:
            self._settle(attempt, verdicts.INTERRUPTED)
            self._tell_spared("job abandoned: its handler ignored the cancel", attempt)
        return left

    async def perform(self, attempt: Attempt, lane: Lane) -> None:
        """Run one attempt and settle it. Whatever the handler does ends its attempt and nothing else.

        A cancel stops the handler, waits for its cleanup, settles the job as interrupted, and is raised on.
        A job that was given back while it waited in the channel is passed over.
        """
        if not self._holds(attempt):
            return
        attempt.taken = True
        try:
            await self._perform(attempt, lane)
        except Exception as error:  # noqa: BLE001 - a fault of jobpipe's own: costs this job
            self._unforeseen.tell(error, "the job fails", job=attempt.job.id)
            self._settle(attempt, verdicts.broken(error))
        await trio.lowlevel.checkpoint_if_cancelled()

    async def _perform(self, attempt: Attempt, lane: Lane) -> None:
        job = attempt.job
        if job.damage is not None:
            self._settle(attempt, verdicts.raised(DamagedRow(job.damage)))
            return
        handler = self._registry.find(job.kind)
        if handler is None:
            # The claim named the kinds that there are handlers for, so the store has made a mistake.
            if self._failures.lets_through():
                log.error("the store handed over a job of a kind not asked for", job=job.id, kind=job.kind)
            self.hand_back(attempt)
        elif job.attempt > retries_of(job.max_retries):
            self._settle(attempt, verdicts.SPENT)  # its last attempt ended with its node
        elif await self._start(attempt):
            self._settle(attempt, await self._run(attempt, handler, lane), handler)

    def _holds(self, attempt: Attempt) -> bool:
        return (attempt.job.seq, attempt.job.claim) in self._held

    async def _start(self, attempt: Attempt) -> bool:
        """Write that the attempt begins: before it does, where a crash must not leave that open; else soon after."""
        job = attempt.job
        start = Start(job.seq, job.claim, attempt.number, self._clock.now())
        if job.rescued or job.options.on_crash == "fail":
            if not await self._start_for_sure(attempt, start):
                return False
        else:
            self._ledger.note_start(start)
        attempt.started_at = start.started_at
        if self._tells_all:
            self._tell_each("attempt started", attempt)
        return True

    async def _start_for_sure(self, attempt: Attempt, start: Start) -> bool:
        """Have the start stored before the handler runs; where that can't be had, the job goes back."""
        try:
            held = await self._ledger.start(start)
        except StoreUnavailable:
            self.hand_back(attempt)
            return False
        except trio.Cancelled:
            self.hand_back(attempt)
            raise
        if not held:
            self._held.pop((attempt.job.seq, attempt.job.claim), None)
        elif attempt.reason is not None:  # stopped while that was written
            self.hand_back(attempt)
            return False
        return held

    async def _run(self, attempt: Attempt, handler: Handler, lane: Lane) -> Verdict:
        """Run the handler in its lane, and judge how it ended."""
        timeout = attempt.job.options.timeout or handler.timeout or math.inf
        deadline = math.inf if timeout == math.inf else trio.current_time() + timeout
        try:
            with lane:
                attempt.lane = lane
                if deadline < math.inf:
                    lane.limit(deadline)
                return verdicts.returned(await self.call(attempt, handler, deadline), self._max_result)
        # SystemExit, groups, a foreign Cancelled: all end the attempt only. `perform` raises the worker's own cancel.
        except BaseException as error:  # noqa: BLE001, ASYNC103 - see above
            return self._judged(attempt, error)  # noqa: ASYNC104 - see above
        return self._stopped(attempt) or verdicts.timed_out(timeout)

    def _judged(self, attempt: Attempt, error: BaseException) -> Verdict:
        """The verdict on an attempt that ended with an exception; one that was stopped says what its cleanup raised."""
        if (stopped := self._stopped(attempt)) is None:
            return verdicts.raised(error)
        rest = verdicts.without_cancelled(error)
        return Verdict(stopped.outcome, error=None if rest is None else verdicts.described(rest))

    async def call(self, attempt: Attempt, handler: Handler, deadline: float) -> Any:  # noqa: ANN401 - a handler may return anything
        """Call the handler, in a thread when it is not async. The watchdog knows this frame on a stack."""
        context = _context(attempt, deadline)
        arguments = _arguments(handler, attempt.job.payload, context)
        before = logs.performed.set(context)
        try:
            if handler.is_async:
                return await handler.function(*arguments)
            return await trio.to_thread.run_sync(handler.function, *arguments, limiter=self._threads)
        finally:
            logs.performed.reset(before)

    def _stopped(self, attempt: Attempt) -> Verdict | None:
        """The verdict on an attempt that somebody stopped; None when nobody did."""
        if attempt.reason == "cancel":
            return verdicts.CANCELLED
        if attempt.reason is not None or trio.current_effective_deadline() == -math.inf:
            return verdicts.INTERRUPTED
        return None

    def _settle(self, attempt: Attempt, verdict: Verdict, handler: Handler | None = None) -> None:
        job = attempt.job
        if not self._holds(attempt):
            return  # it was abandoned; its handler ended after all
        now = self._clock.now()
        policy = job.options.backoff or (handler and handler.backoff) or USUAL_BACKOFF
        try:
            written = verdicts.settlement(
                job, verdict, started_at=attempt.started_at, now=now, policy=policy, random=self._rng.random
            )
        except Exception as error:  # noqa: BLE001 - costs this job, which must not stay held for it
            self._unforeseen.tell(error, "the job fails", job=job.id)
            written = verdicts.settlement(
                job,
                verdicts.broken(error),
                started_at=attempt.started_at,
                now=now,
                policy=USUAL_BACKOFF,
                random=self._rng.random,
            )
        self._ledger.settle(written)
        del self._held[job.seq, job.claim]  # last, so that one whose settlement failed can be settled again
        self.tally[written.outcome] += 1
        self._ended.set()
        if self._tells_all:
            self._tell_outcome(attempt, written)
        if written.error is not None and written.status is Status.FAILED:
            text = f"{written.error.type}: {written.error.message}"[:SHOWN]
            self._tell_spared("job failed", attempt, error=text)

    def _tell_spared(self, event: str, attempt: Attempt, **more: object) -> None:
        """A line about a job; of thousands at once, a few a second, with how many more there were."""
        if self._failures.lets_through():
            if held_back := self._failures.take():
                more["more"] = held_back
            log.warning(event, **_named(attempt), **more)

    def _tell_each(self, event: str, attempt: Attempt, **more: object) -> None:
        """A line about a job at the level debug."""
        log.debug(event, **_named(attempt), **more)

    def _tell_outcome(self, attempt: Attempt, written: Settlement) -> None:
        if written.outcome is None:
            self._tell_each("job handed back before it started", attempt, status=written.status.value)
            return
        ended = {"outcome": written.outcome.value, "status": written.status.value}
        if written.error is not None:
            ended["error"] = f"{written.error.type}: {written.error.message}"[:SHOWN]
        self._tell_each("attempt ended", attempt, **ended)
        if written.run_at is not None:
            seconds = round(written.run_at - (written.settled_at or 0.0), 3)
            self._tell_each("job runs again", attempt, seconds=seconds)

    def _lost(self, seq: int, claim: int) -> None:
        """A write of an attempt matched no held row: somebody else has the job, so its run must end."""
        log.warning("late write refused: a newer claim has the job", seq=seq, claim=claim)
        if attempt := self._held.get((seq, claim)):
            self._stop(attempt, "lease")


def _named(attempt: Attempt) -> dict[str, object]:
    """The job of an attempt, in a line of the log."""
    return {"job": attempt.job.id, "kind": attempt.job.kind, "attempt": attempt.number}


def _arguments(handler: Handler, payload: bytes, context: Context) -> tuple[Any, ...]:
    """What the handler is called with; raises `DamagedRow` where the payload is no JSON, which no retry can change."""
    try:
        return handler.arguments(payload, context)
    except msgspec.ValidationError:  # JSON, but not of the handler's type
        raise
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
        raise DamagedRow(f"the payload cannot be read as JSON ({error})") from None


def _context(attempt: Attempt, deadline: float) -> Context:
    """What the handler may know."""
    job = attempt.job
    return Context(
        id=job.id,
        kind=job.kind,
        queue=job.queue,
        attempt=attempt.number,
        max_retries=retries_of(job.max_retries),
        claim=job.claim,
        deadline=deadline,
    )
