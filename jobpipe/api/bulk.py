"""`POST /enqueue/bulk`: an array, all or nothing; or NDJSON, a stream of any length in bounded memory."""

import itertools
from collections.abc import Awaitable, Callable, Iterator, Sequence
from typing import Any

import msgspec

from jobpipe.api.answers import Answer, answer, encode
from jobpipe.api.enqueue import DEEPEST, conflict, deeper, existing, new_job, request_from, store
from jobpipe.api.problems import Fault, Problem, ProblemDetails, faults_of, invalid, not_json, too_large
from jobpipe.api.schemas import BulkReceipt, EnqueueRequest, LineReceipt
from jobpipe.engine.node import Node
from jobpipe.job import NewJob
from jobpipe.store.base import Receipt

GROUP = 500
"""How many lines share a trip to the store."""

NDJSON_TYPES = frozenset({"application/x-ndjson", "application/ndjson", "application/jsonl", "application/x-jsonlines"})

Line = tuple[int, bytes]
"""A line of a stream with its number, from 1."""


async def bulk_array(node: Node, body: bytes) -> Answer:
    """Store the jobs of a JSON array, all or none: 202 with how many were new and how many were there already.

    Raises `Problem`: then nothing was stored.
    """
    if len(body) > node.settings.max_body:
        raise too_large(node.settings.max_body)
    jobs = _jobs_from(node, _array_from(body))
    receipts = await store(node, jobs, atomic=True) if jobs else []
    taken = [job.id for job, receipt in zip(jobs, receipts, strict=True) if receipt.verdict == "conflict"]
    if taken:
        raise conflict(taken)
    enqueued = sum(receipt.verdict == "stored" for receipt in receipts)
    return answer(BulkReceipt(enqueued, len(receipts) - enqueued), 202)


def _array_from(body: bytes) -> Sequence[Any]:
    try:
        items = msgspec.json.decode(body)
    except RecursionError:
        raise invalid([Fault("", f"nests deeper than {DEEPEST} levels")]) from None
    except (msgspec.DecodeError, UnicodeDecodeError) as error:
        raise not_json(str(error)) from None
    if not isinstance(items, list):
        raise invalid([Fault("", "expected an array of jobs")])
    return items


def _jobs_from(node: Node, items: Sequence[Any]) -> Sequence[NewJob]:
    jobs: list[NewJob] = []
    faults: list[Fault] = []
    for index, item in enumerate(items):
        try:
            jobs.append(_job_from(node, item))
        except Problem as problem:
            faults += [Fault(f"/{index}{fault.pointer}", fault.detail) for fault in problem.details.faults]
    if faults:
        raise invalid(faults[:1000])
    return jobs


def _job_from(node: Node, item: Any) -> NewJob:  # noqa: ANN401 - any JSON
    try:
        request = msgspec.convert(item, EnqueueRequest)
    except msgspec.ValidationError as error:
        raise invalid(faults_of(item, EnqueueRequest) or [Fault("", str(error))]) from None
    if deeper(request.payload, DEEPEST):
        raise invalid([Fault("/payload", f"nests deeper than {DEEPEST} levels")])
    return new_job(node, request)


async def bulk_stream(
    node: Node, chunk: Callable[[], Awaitable[bytes | None]], write: Callable[[bytes], Awaitable[None]]
) -> None:
    """Store the jobs of a stream, a line each; writes an answer a line, in order: a receipt or a problem.

    `chunk` returns the next part of the stream, and None at its end. When it raises, because the client went away,
    the whole lines before that are stored, and a broken one is not.
    """
    splitter = Splitter(node.settings.max_body)
    while (part := await chunk()) is not None:
        await _store_lines(node, splitter.feed(part), write)
    await _store_lines(node, splitter.end(), write)


async def _store_lines(node: Node, lines: Sequence[Line], write: Callable[[bytes], Awaitable[None]]) -> None:
    for start in range(0, len(lines), GROUP):
        await write(await _answers(node, lines[start : start + GROUP]))


class Splitter:
    """Cuts a stream into lines, keeping no more than one line of `limit` bytes, and of a longer one its beginning."""

    def __init__(self, limit: int) -> None:
        self._limit, self._rest, self._number = limit, b"", itertools.count(1)

    def feed(self, chunk: bytes) -> Sequence[Line]:
        """The lines that this chunk completes; empty ones are counted and left out."""
        *whole, rest = (self._rest + chunk).split(b"\n")
        self._rest = rest[: self._limit + 1]
        return [(number, line) for line, number in zip(whole, self._number, strict=False) if line and not line.isspace()]

    def end(self) -> Sequence[Line]:
        """The last line, when no line feed ended it."""
        return self.feed(b"\n") if self._rest else []


async def _answers(node: Node, lines: Sequence[Line]) -> bytes:
    """Store a group of lines; returns a line of answer for each."""
    parsed = [_parsed(node, line) for line in lines]
    jobs = [job for job in parsed if isinstance(job, NewJob)]
    try:
        receipts: Iterator[Receipt | Problem] = iter(await store(node, jobs) if jobs else ())
    except Problem as problem:
        receipts = iter([problem] * len(jobs))
    told = [_told(job, next(receipts) if isinstance(job, NewJob) else job, line[0]) for job, line in zip(parsed, lines, strict=True)]
    return b"".join(encode(one) + b"\n" for one in told)


def _parsed(node: Node, line: Line) -> NewJob | Problem:
    try:
        if len(line[1]) > node.settings.max_body:
            raise too_large(node.settings.max_body)
        return new_job(node, request_from(line[1]))
    except Problem as problem:
        return problem


def _told(job: NewJob | Problem, receipt: Receipt | Problem, line: int) -> LineReceipt | ProblemDetails:
    if isinstance(receipt, Problem):
        return msgspec.structs.replace(receipt.details, line=line)
    assert isinstance(job, NewJob)
    match receipt.verdict:
        case "stored":
            return LineReceipt(job.id, job.status)
        case "existing":
            return LineReceipt(job.id, existing(receipt).status)
        case _:
            return msgspec.structs.replace(conflict([job.id]).details, line=line)
