"""How one attempt is performed: context, deadline, cancel, outcome."""

import logging
import math
from collections.abc import Callable
from typing import Any

import msgspec
import structlog
import trio

from jobpipe import logs
from jobpipe.clock import Clock
from jobpipe.engine import outcomes
from jobpipe.engine.attempt import Attempt
from jobpipe.engine.held import USUAL_BACKOFF, Held
from jobpipe.engine.ledger import Ledger
from jobpipe.engine.outcomes import Verdict
from jobpipe.engine.scope import ReusableScope
from jobpipe.engine.throttle import LogThrottle
from jobpipe.engine.unforeseen import Unforeseen
from jobpipe.errors import DamagedRow, StoreUnavailable
from jobpipe.handlers.context import Context, Enqueues
from jobpipe.handlers.registry import Handler, Registry
from jobpipe.job import retries_of
from jobpipe.store.base import Start

LINES = 20
"""How many abandoned jobs a second, and others that went wrong here, have a line in the log."""

log = structlog.get_logger("jobpipe")


class Executor:
    """Runs one attempt after another, for every worker."""

    def __init__(  # noqa: PLR0913 - what it runs, and what it hands to handlers
        self,
        ledger: Ledger,
        held: Held,
        registry: Registry,
        clock: Clock,
        enqueues: Enqueues,
        *,
        threads: int,
        max_result: int,
    ) -> None:
        self._ledger, self._held, self._registry, self._clock = ledger, held, registry, clock
        self._enqueues, self._max_result = enqueues, max_result
        # Handlers that are not async run in threads under a limiter of their own: a worker each, so nobody waits.
        self._threads = trio.CapacityLimiter(threads)
        self._lines = LogThrottle(LINES)
        self._tells_all = logs.writes(logging.DEBUG)
        self._unforeseen = Unforeseen()

    async def perform(self, attempt: Attempt, scope: ReusableScope) -> None:
        """Run one attempt and settle it. Whatever the handler does ends its attempt and nothing else.

        A cancel stops the handler, waits for its cleanup, settles the job as interrupted, and is raised on.
        A job that was given back while it waited in the channel is passed over.
        """
        if attempt.over:
            return
        attempt.taken = True
        try:
            handler = self._found(attempt)
            # Else settled without a run.
            if handler is not None and (self._noted(attempt) or await self._started_for_sure(attempt)):
                verdict = await self._run(attempt, handler, scope)
                policy = attempt.job.options.backoff or handler.backoff or USUAL_BACKOFF
                self._ledger.end(attempt, verdict, policy)
        except Exception as error:  # noqa: BLE001 - a fault of jobpipe's own: costs this job
            self._unforeseen.tell(error, "the job fails", job=attempt.job.id)
            self._ledger.end(attempt, outcomes.broken(error))
        await trio.lowlevel.checkpoint_if_cancelled()

    def _found(self, attempt: Attempt) -> Handler | None:
        """The handler to run; None: the attempt ends without one, and has been settled."""
        job = attempt.job
        if job.damage is not None:
            self._ledger.end(attempt, outcomes.raised(DamagedRow(job.damage)))
            return None
        handler = self._registry.find(job.kind)
        if handler is None:
            # The claim named the kinds that there are handlers for, so the store has made a mistake.
            wrong = "the store handed over a job of a kind not asked for"
            self._lines.tell(log.error, wrong, job=job.id, kind=job.kind)
            self._ledger.hand_back(attempt)
        elif job.attempt and job.attempt > retries_of(job.max_retries):
            self._ledger.end(attempt, outcomes.SPENT)  # its last attempt ended with its node
            return None
        elif job.options.deadline is not None and job.options.deadline <= self._clock.now():
            self._ledger.end(attempt, outcomes.TOO_LATE)
            return None
        return handler

    def _noted(self, attempt: Attempt) -> bool:
        """Have the start written soon after the attempt begins; False: a crash must not leave open whether it began."""
        job = attempt.job
        if job.rescued or job.options.on_crash == "fail":
            return False
        start = Start(job.seq, job.claim, job.attempt + 1, self._clock.now())
        self._ledger.note_start(start)
        self._begun(attempt, start)
        return True

    async def _started_for_sure(self, attempt: Attempt) -> bool:
        """Have the start stored before the handler runs; where that can't be had, the job goes back."""
        job = attempt.job
        start = Start(job.seq, job.claim, job.attempt + 1, self._clock.now())
        try:
            held = await self._ledger.start(start)
        except StoreUnavailable:
            self._ledger.hand_back(attempt)
            return False
        except trio.Cancelled:
            self._ledger.hand_back(attempt)
            raise
        if not held:
            self._held.lose(attempt)
        elif attempt.reason is not None:  # stopped while that was written
            self._ledger.hand_back(attempt)
            return False
        else:
            self._begun(attempt, start)
        return held

    def _begun(self, attempt: Attempt, start: Start) -> None:
        attempt.started_at = start.started_at
        if self._tells_all:
            log.debug("attempt started", **attempt.named())

    async def _run(self, attempt: Attempt, handler: Handler, scope: ReusableScope) -> Verdict:
        """Run the handler in its scope, and judge how it ended."""
        options = attempt.job.options
        timeout = options.timeout or handler.timeout or math.inf
        left = math.inf if options.deadline is None else options.deadline - self._clock.now()
        longest = min(left, timeout)
        deadline = math.inf if longest == math.inf else trio.current_time() + longest
        try:
            with scope:
                attempt.scope = scope
                if deadline < math.inf:
                    attempt.deadline = deadline
                    scope.limit(deadline)
                return outcomes.returned(await self.call(attempt, handler, deadline), self._max_result)
        # SystemExit, groups, a foreign Cancelled: all end the attempt only. `perform` raises the worker's own cancel.
        except BaseException as error:  # noqa: BLE001, ASYNC103 - see above
            return _judged(attempt, error)  # noqa: ASYNC104 - see above
        return _stopped(attempt) or (
            outcomes.timed_out(timeout) if timeout < left else outcomes.STOPPED_AT_DEADLINE
        )

    async def call(self, attempt: Attempt, handler: Handler, deadline: float) -> Any:  # noqa: ANN401 - a handler may return anything
        """Call the handler, in a thread when it is not async. The watchdog knows this frame on a stack."""
        context = self._context(attempt, deadline) if handler.takes_context else None
        try:
            arguments = handler.arguments(attempt.job.payload, context)
        except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
            raise _unreadable(error) from None
        before = logs.performed.set(attempt)
        try:
            if handler.is_async:
                return await handler.function(*arguments)
            return await trio.to_thread.run_sync(handler.function, *arguments, limiter=self._threads)
        finally:
            logs.performed.reset(before)

    def _context(self, attempt: Attempt, deadline: float) -> Context:
        """What the handler may know, and say."""
        job = attempt.job
        return Context(
            id=job.id,
            kind=job.kind,
            queue=job.queue,
            attempt=attempt.number,
            max_retries=retries_of(job.max_retries),
            claim=job.claim,
            deadline=deadline,
            schedule=job.options.schedule,
            group=job.options.outcome,
            member_of=job.options.group,
            _notes=self._ledger.notes,
            _enqueues=self._enqueues,
            _run=attempt,
        )

    def abandon(self, line: Callable[[Attempt], str | None] = lambda _: None) -> list[Attempt]:
        """Give up the handlers that would not end, and hand their jobs back; returns them, to be named.

        `line`: where the handler of an attempt stands, as far as that is known.
        """
        left = self._held.running
        for attempt in left:
            self._ledger.end(attempt, outcomes.INTERRUPTED)
            ignored = "job abandoned: its handler ignored the cancel"
            self._lines.tell(log.warning, ignored, **attempt.named(), line=line(attempt))
        return left


def _judged(attempt: Attempt, error: BaseException) -> Verdict:
    """The verdict on an attempt that ended with an exception; one that was stopped says what its cleanup raised."""
    if (stopped := _stopped(attempt)) is None:
        return outcomes.raised(error)
    rest = outcomes.without_cancelled(error)
    return Verdict(stopped.outcome, error=None if rest is None else outcomes.described(rest))


def _stopped(attempt: Attempt) -> Verdict | None:
    """The verdict on an attempt that somebody stopped; None when nobody did."""
    if attempt.reason == "cancel":
        return outcomes.CANCELLED
    if attempt.reason is not None or trio.current_effective_deadline() == -math.inf:
        return outcomes.INTERRUPTED
    return None


def _unreadable(error: Exception) -> Exception:
    """Why a handler cannot be called: where its payload is no JSON, the row is damaged, which no retry can change."""
    if isinstance(error, msgspec.ValidationError):  # JSON, but not of the handler's type
        return error
    return DamagedRow(f"the payload cannot be read as JSON ({error})")
