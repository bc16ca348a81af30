"""What handlers enqueue: checked as a request is, and kept with the attempt until it ends, or stored at once."""

import reprlib
from collections.abc import Sequence
from typing import Any

import msgspec
import trio

from jobpipe.asking import debounce, seconds, throttle, unique
from jobpipe.engine import outbox
from jobpipe.engine.admission import Admission, is_late
from jobpipe.engine.attempt import Attempt
from jobpipe.engine.outbox import Outbox
from jobpipe.engine.served import Served
from jobpipe.errors import EnqueueError
from jobpipe.handlers.newjobs import Asked, encoded
from jobpipe.handlers.registry import Registry
from jobpipe.job import NewJob
from jobpipe.store.rows import refusal

TURN = 100
"""After so many payloads other tasks have their turn."""


class Enqueuing:
    """Where the `Context` of each attempt hands in what its handler enqueues.

    Neither a full backlog nor a drain stands in the way: the work that these jobs follow from is done already.
    """

    def __init__(self, admission: Admission, served: Served, registry: Registry, *, max_payload: int) -> None:
        self._admission, self._served, self._registry = admission, served, registry
        self._max_payload = max_payload

    async def enqueue(self, run: Attempt, asked: Asked, payloads: Sequence[Any]) -> Sequence[str]:
        """Keep new jobs for the end of an attempt, or store them now; returns their ids, in the order of the payloads.

        Where jobs are stored now, the id is that of the job with which one was merged (see `jobpipe.merging`).
        Raises `EnqueueError` or `StoreUnavailable`, and then has neither kept nor stored any. A cancel does the same,
        unless they are being stored just then.
        """
        await self._check_kind(asked.kind)
        parent = None if asked.detach else run.job.id
        jobs = [await self._made(place, payload, asked, parent) for place, payload in enumerate(payloads)]
        if run.over:
            raise EnqueueError(
                "the attempt is over: its job may run again, and only that run can enqueue jobs"
            )
        if asked.now:
            return await self._store(jobs)
        run.outbox = run.outbox or Outbox()
        run.outbox.put(jobs)
        return [job.id for job in jobs]

    async def _check_kind(self, kind: str) -> None:
        """Raise `EnqueueError` where no live node serves a kind; this is a checkpoint."""
        await trio.lowlevel.checkpoint()
        if not self._served.has(kind):
            await self._served.renew(trio.current_time())
            if not self._served.has(kind):
                raise EnqueueError(self._served.unknown(kind))

    async def _made(self, place: int, payload: Any, asked: Asked, parent: str | None) -> NewJob:  # noqa: ANN401 - any JSON
        if place % TURN == TURN - 1:
            await trio.lowlevel.checkpoint()
        new = self._admission.new_job(
            self._checked(asked.kind, payload),
            job_id=asked.ids[place] if asked.ids else None,
            kind=asked.kind,
            queue=asked.queue,
            priority=asked.priority,
            max_retries=asked.max_retries,
            delay=asked.delay,
            run_at=None if asked.run_at is None else seconds(asked.run_at),
            expires_at=None if asked.expires_at is None else seconds(asked.expires_at),
            deadline=None if asked.deadline is None else seconds(asked.deadline),
            timeout=asked.timeout,
            backoff=asked.backoff,
            on_crash=asked.on_crash,
            tags=asked.tags,
            key=asked.key,
            depends_on=asked.depends_on,
            needs=asked.needs,
            group=asked.group,
            unique=None if asked.unique is None else unique(asked.unique),
            throttle=None if asked.throttle is None else throttle(asked.throttle),
            debounce=None if asked.debounce is None else debounce(asked.debounce),
            parent=parent,
        )
        if is_late(new):
            field = "deadline" if new.waits_until_its_deadline else "expires_at"
            raise EnqueueError(f"{field} is not after the time at which the job could run")
        return new

    def _checked(self, kind: str, payload: Any) -> bytes:  # noqa: ANN401 - any JSON
        """A payload as JSON that fits its kind; decoded here as it will be for its handler."""
        sent = encoded(payload)
        if len(sent) > self._max_payload:
            raise EnqueueError(f"the payload has {len(sent)} bytes, and MAX_BODY allows {self._max_payload}")
        handler = self._registry.find(kind)
        try:
            msgspec.json.decode(sent, type=Any if handler is None else handler.payload_type)
        except Exception as error:  # noqa: BLE001 - also what a type of the handler's own raises when it is made
            words = f"{reprlib.repr(payload)} is no payload of kind {kind!r}: {error}"
            raise EnqueueError(words) from None
        return sent

    async def _store(self, jobs: Sequence[NewJob]) -> Sequence[str]:
        """Store jobs now, all or none; returns the ids of those that are there then."""
        outbox.check(len(jobs), sum(len(job.payload) for job in jobs), "one call")
        receipts = await self._admission.enqueue(jobs, atomic=True, of_handler=True)
        if wrong := refusal(jobs, receipts):
            raise EnqueueError(wrong)
        return [receipt.other or job.id for job, receipt in zip(jobs, receipts, strict=True)]
