"""`POST /enqueue/bulk`: an array, all or nothing; or NDJSON, a stream of any length in bounded memory."""

import itertools
from collections.abc import Awaitable, Callable, Sequence

import msgspec
import trio

from jobpipe.api.answers import Answer, answer, encode
from jobpipe.api.enqueue import admitted, is_json, known, store, too_deep
from jobpipe.api.problems import (
    LISTED,
    Code,
    Fault,
    Problem,
    ProblemDetails,
    conflict,
    invalid,
    not_json,
    too_large,
    unsupported,
)
from jobpipe.api.schemas import BulkReceipt, LineReceipt
from jobpipe.engine.node import Node
from jobpipe.job import NewJob
from jobpipe.store.base import Receipt

GROUP = 500
"""How many lines share a trip to the store."""

MOST = 10_000
"""The most jobs in one array: they share one transaction, and nobody else may wait long for it."""

NDJSON = "application/x-ndjson"
NDJSON_TYPES = frozenset({NDJSON, "application/ndjson", "application/jsonl", "application/x-jsonlines"})

Line = tuple[int, bytes]
"""A line of a stream with its number, from 1."""

Write = Callable[[bytes], Awaitable[None]]


def is_ndjson(content_type: str) -> bool:
    """Whether a body of this media type is read as a stream of lines."""
    return content_type.partition(";")[0].strip().lower() in NDJSON_TYPES


async def bulk(node: Node, content_type: str, body: bytes) -> Answer:
    """Store the jobs of a body that is whole here, whether it is an array or lines. Raises `Problem`."""
    if not is_ndjson(content_type):
        return await bulk_array(node, content_type, body)
    lines, answers = Splitter(node.settings.max_body), bytearray()

    async def write(part: bytes) -> None:
        answers.extend(part)
        await trio.lowlevel.checkpoint()

    await _store_lines(node, [*lines.feed(body), *lines.end()], write)
    return Answer(200, bytes(answers), NDJSON)


async def bulk_array(node: Node, content_type: str, body: bytes) -> Answer:
    """Store the jobs of a JSON array, all or none: 202 with how many were new and how many were there already.

    Raises `Problem`: then nothing was stored.
    """
    if not is_json(content_type):
        raise unsupported(content_type, f"application/json (an array) or {NDJSON} (a stream)")
    if len(body) > node.settings.max_body:
        raise too_large(node.settings.max_body)
    admissions = await _all_admitted(node, _items(body))
    new = [one for one in admissions if isinstance(one, NewJob)]
    receipts = [one for one in admissions if isinstance(one, Receipt)]
    if not any(receipt.verdict == "conflict" for receipt in receipts):
        receipts += await store(node, new, atomic=True) if new else []
    taken = [
        receipt.job.id for receipt in receipts if receipt.verdict == "conflict" and receipt.job is not None
    ]
    if taken:
        raise conflict(taken)
    enqueued = sum(receipt.verdict == "stored" for receipt in receipts)
    return answer(BulkReceipt(enqueued, len(receipts) - enqueued), 202)


def _items(body: bytes) -> Sequence[msgspec.Raw]:
    """The items of an array, not decoded yet, so that each goes the way of a single request."""
    try:
        items = msgspec.json.decode(body, type=list[msgspec.Raw])
    except msgspec.ValidationError as error:
        raise invalid([Fault("", str(error))]) from None
    except RecursionError:
        raise too_deep("") from None
    except (msgspec.DecodeError, UnicodeDecodeError) as error:
        raise not_json(str(error)) from None
    if len(items) > MOST:
        raise invalid(
            [Fault("", f"holds {len(items)} jobs, and {MOST} are taken: send several, or {NDJSON}")]
        )
    return items


async def _all_admitted(node: Node, items: Sequence[msgspec.Raw]) -> Sequence[NewJob | Receipt]:
    """Every job of an array; raises `Problem` with the faults of all of them, or as many as are listed."""
    admissions: list[NewJob | Receipt] = []
    faults: list[Fault] = []
    for index, item in enumerate(items):
        if index % GROUP == 0:
            await trio.lowlevel.checkpoint()  # others have their turn while thousands are read
        try:
            admissions.append(await admitted(node, bytes(item)))
        except Problem as problem:
            if not problem.details.faults:
                raise
            faults += [Fault(f"/{index}{fault.pointer}", fault.detail) for fault in problem.details.faults]
            if len(faults) > LISTED:
                break
    if faults:
        raise invalid(faults)
    return admissions


async def bulk_stream(node: Node, chunk: Callable[[], Awaitable[bytes | None]], write: Write) -> None:
    """Store the jobs of a stream, a line each; writes an answer a line, in order: a receipt or a problem.

    `chunk` returns the next part of the stream, and None at its end. When it raises, because the client went away,
    the whole lines before that are stored, and a broken one is not.
    """
    lines = Splitter(node.settings.max_body)
    while (part := await chunk()) is not None:
        await _store_lines(node, lines.feed(part), write)
    await _store_lines(node, lines.end(), write)


async def _store_lines(node: Node, lines: Sequence[Line], write: Write) -> None:
    for start in range(0, len(lines), GROUP):
        await write(await _answers(node, lines[start : start + GROUP]))


class Splitter:
    """Cuts a stream into lines, keeping no more than one line of `limit` bytes, and of a longer one its beginning."""

    def __init__(self, limit: int) -> None:
        self._limit, self._number = limit, itertools.count(1)
        self._rest = bytearray()

    def feed(self, chunk: bytes) -> Sequence[Line]:
        """The lines that this chunk completes, without their ends; empty ones are counted and left out."""
        first, *others = chunk.split(b"\n")
        self._keep(first)
        whole = []
        for part in others:
            whole.append(bytes(self._rest))
            self._rest.clear()
            self._keep(part)
        numbered = zip(whole, self._number, strict=False)
        return [
            (number, line.removesuffix(b"\r")) for line, number in numbered if line and not line.isspace()
        ]

    def end(self) -> Sequence[Line]:
        """The last line, when no line feed ended it."""
        return self.feed(b"\n") if self._rest else []

    def _keep(self, part: bytes) -> None:
        # Two more than the limit: one to tell that it is too long, one that may turn out to be the \r of its end.
        self._rest += part[: max(0, self._limit + 2 - len(self._rest))]


async def _answers(node: Node, lines: Sequence[Line]) -> bytes:
    """Store a group of lines; returns a line of answer for each."""
    admissions = [await _admission(node, line) for _, line in lines]
    receipts = iter(await _stored(node, [one for one in admissions if isinstance(one, NewJob)]))
    told = [
        _told(one, next(receipts) if isinstance(one, NewJob) else one, number)
        for one, (number, _) in zip(admissions, lines, strict=True)
    ]
    return b"".join(encode(one) + b"\n" for one in told)


async def _admission(node: Node, line: bytes) -> NewJob | Receipt | Problem:
    try:
        if len(line) > node.settings.max_body:
            raise too_large(node.settings.max_body, "send less in one line")
        return await admitted(node, line)
    except Problem as problem:
        return problem


async def _stored(node: Node, jobs: Sequence[NewJob]) -> Sequence[Receipt | Problem]:
    """Store jobs together; where not all of them find room, as many as do."""
    if not jobs:
        return []
    try:
        return await store(node, jobs)
    except Problem as problem:
        half = len(jobs) // 2
        if problem.details.code is not Code.QUEUE_FULL or not half:
            return [problem] * len(jobs)
    return [*await _stored(node, jobs[:half]), *await _stored(node, jobs[half:])]


def _told(
    job: NewJob | Receipt | Problem, receipt: Receipt | Problem, line: int
) -> LineReceipt | ProblemDetails:
    if isinstance(receipt, Problem):
        return msgspec.structs.replace(receipt.details, line=line)
    if receipt.verdict == "stored" and isinstance(job, NewJob):
        return LineReceipt(job.id, job.status)
    try:
        there = known(receipt)
    except Problem as problem:
        return msgspec.structs.replace(problem.details, line=line)
    return LineReceipt(there.id, there.status)
