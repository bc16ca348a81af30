"""`POST /enqueue/bulk`: an array, all or nothing; or NDJSON, a stream of any length in bounded memory."""

import itertools
from collections import Counter
from collections.abc import Awaitable, Callable, Sequence

import msgspec
import structlog
import trio

from jobpipe.api.answers import Answer, answer
from jobpipe.api.enqueue import (
    LOCKED,
    asked,
    cycle,
    is_json,
    known,
    new_job_from,
    too_deep,
    too_late,
)
from jobpipe.api.faults import plain
from jobpipe.api.malformed import BOM, malformed
from jobpipe.api.problems import (
    LISTED,
    Fault,
    Problem,
    ProblemDetails,
    UnknownKind,
    closed,
    conflict,
    dependency_failed,
    group_closed,
    internal,
    invalid,
    problem_from,
    too_large,
    unknown_dependency,
    unknown_group,
    unsupported,
)
from jobpipe.api.schemas import BulkReceipt, LineReceipt
from jobpipe.engine.admission import is_late
from jobpipe.engine.node import Node
from jobpipe.errors import JobpipeError, QueueFull, StoreUnavailable
from jobpipe.job import NewJob
from jobpipe.store.base import Receipt

GROUP = 1000
"""How many lines share a trip to the store."""

AHEAD = 1 << 20
"""How many bytes of a stream are read while those before them are stored."""

SLICE = 250
"""How many lines are decoded before other tasks get a turn."""

MOST = 10_000
"""The most jobs in one array: they share one transaction, and other writes must not wait long for it."""

NDJSON = "application/x-ndjson"
NDJSON_TYPES = frozenset({NDJSON, "application/ndjson", "application/jsonl", "application/x-jsonlines"})

Line = tuple[int, bytes]
"""A line of a stream with its number, from 1."""

Write = Callable[[bytes], Awaitable[None]]

Asked = NewJob | Problem
"""What a line asks for, or why it is refused."""

_ONE_OR_LINES = f"send it to /enqueue, or one job per line with Content-Type: {NDJSON}"
_SEVERAL = f"send several arrays, or one job per line with Content-Type: {NDJSON}"

_encode_lines = msgspec.json.Encoder().encode_lines


def is_ndjson(content_type: str) -> bool:
    """Whether a body of this media type is read as a stream of lines."""
    return content_type.partition(";")[0].strip().lower() in NDJSON_TYPES


log = structlog.get_logger("jobpipe")


async def bulk(node: Node, content_type: str, body: bytes) -> Answer:
    """Store the jobs of a body that has arrived whole, whether it is an array or lines. Raises as `bulk_array` does."""
    if not is_ndjson(content_type):
        return await bulk_array(node, content_type, body)
    chunks, answers = iter([body]), bytearray()

    async def chunk() -> bytes | None:
        await trio.lowlevel.checkpoint()
        return next(chunks, None)

    async def write(part: bytes) -> None:
        answers.extend(part)
        await trio.lowlevel.checkpoint()

    await bulk_stream(node, chunk, write)
    return Answer(200, bytes(answers), NDJSON)


async def bulk_array(node: Node, content_type: str, body: bytes) -> Answer:
    """Store the jobs of a JSON array, all or none: 202 with how many were new and how many were there already.

    Raises `Problem`, `Draining`, `QueueFull` or `StoreUnavailable`: then nothing was stored.
    """
    if not is_json(content_type):
        raise unsupported(content_type, f"application/json (an array) or {NDJSON} (one job per line)")
    if len(body) > node.settings.max_body:
        raise too_large(node.settings.max_body)
    jobs, faults = await items_asked(node, _items(body))
    if faults:  # nothing is to be stored, but late jobs are to be listed with the faults of others
        jobs = {place: new for place, new in jobs.items() if is_late(new)}
    receipts = await node.admission.enqueue(list(jobs.values()), atomic=True)
    faults |= {
        place: [fault]
        for place, receipt in zip(jobs, receipts, strict=True)
        if (fault := fault_of(jobs[place], receipt)) is not None
    }
    if faults:
        raise invalid(
            [Fault(f"/{place}{one.pointer}", one.detail) for place in sorted(faults) for one in faults[place]]
        )
    check_stored(receipts)
    verdicts = Counter(receipt.verdict for receipt in receipts)
    counts = (verdicts[one] for one in ("stored", "existing", "replaced", "not_unique"))
    return answer(BulkReceipt(*counts), 202)


def check_stored(receipts: Sequence[Receipt]) -> None:
    """Raise `Problem` or `StoreUnavailable` where jobs that were to be stored together were not, for what is there."""
    if unknown := _named(receipts, "unknown_dependency"):
        raise unknown_dependency(unknown)
    if any(receipt.verdict == "locked" for receipt in receipts):
        raise StoreUnavailable(LOCKED)
    taken = [
        receipt.job.id for receipt in receipts if receipt.verdict == "conflict" and receipt.job is not None
    ]
    if taken:
        raise conflict(taken)
    if failed := _named(receipts, "dependency_failed"):
        raise dependency_failed(failed)
    for receipt in receipts:
        if receipt.verdict == "unknown_group":
            raise unknown_group(receipt.group)
        if receipt.verdict == "group_closed":
            raise group_closed(receipt.group)
    if shut := sorted({receipt.queue for receipt in receipts if receipt.verdict == "closed"}):
        raise closed(shut)


def fault_of(new: NewJob, receipt: Receipt) -> Fault | None:
    """Why a job cannot be stored whatever is in the store."""
    match receipt.verdict:
        case "late":
            return too_late(new)
        case "dependency_cycle":
            return cycle(receipt)
        case _:
            return None


def _named(receipts: Sequence[Receipt], verdict: str) -> Sequence[str]:
    """The ids of the dependencies that receipts of a kind name, each once."""
    named = (one for receipt in receipts if receipt.verdict == verdict for one in receipt.dependencies)
    return list(dict.fromkeys(named))


def _items(body: bytes) -> Sequence[msgspec.Raw]:
    """The items of an array, not decoded yet, so that each is read like a single request."""
    body = body.removeprefix(BOM)
    if body.lstrip().startswith(
        b"{"
    ):  # one job, or lines of them; msgspec's own words differ with what follows
        raise invalid([Fault("", f"expected an array of jobs, got an object: {_ONE_OR_LINES}")])
    try:
        items = msgspec.json.decode(body, type=list[msgspec.Raw])
    except msgspec.ValidationError as error:
        raise invalid([Fault("", plain(str(error)))]) from None
    except RecursionError:
        raise too_deep("") from None
    except (msgspec.DecodeError, UnicodeDecodeError) as error:
        raise malformed(body, error) from None
    if len(items) > MOST:
        raise invalid([Fault("", f"holds {len(items)} jobs, and at most {MOST} are taken: {_SEVERAL}")])
    return items


async def items_asked(
    node: Node, items: Sequence[msgspec.Raw]
) -> tuple[dict[int, NewJob], dict[int, Sequence[Fault]]]:
    """The jobs of an array and the faults of the others, each by its place; stops at more faults than are listed."""
    jobs: dict[int, NewJob] = {}
    faults: dict[int, Sequence[Fault]] = {}
    begun = trio.current_time()  # the store is asked once for all unknown kinds
    for place, item in enumerate(items):
        if place % GROUP == 0:
            await trio.lowlevel.checkpoint()  # let other tasks run while thousands are read
        try:
            jobs[place] = await asked(node, bytes(item), begun)
        except Problem as problem:
            if not problem.details.faults:
                raise
            faults[place] = problem.details.faults
            if sum(map(len, faults.values())) > LISTED:
                break
    return jobs, faults


async def bulk_stream(node: Node, chunk: Callable[[], Awaitable[bytes | None]], write: Write) -> None:
    """Store the jobs of a stream, a line each; writes an answer a line, in order: a receipt or a problem.

    `chunk` returns the next part of the stream, and None at its end. When it raises, because the client went away,
    the whole lines before that are stored, and a broken one is not.
    """
    stream = Stream(node)
    async with trio.open_nursery() as nursery:
        nursery.start_soon(stream.store, write)
        broken = await stream.read(chunk)
    if broken is not None:
        raise broken


class Stream:
    """The lines of a stream that are read and not stored yet: lines are read while those before them are stored."""

    def __init__(self, node: Node) -> None:
        self._node = node
        self._read: list[tuple[int, Asked]] = []
        self._ahead = 0
        self._ended = False
        self._more = self._less = trio.Event()

    async def read(self, chunk: Callable[[], Awaitable[bytes | None]]) -> Exception | None:
        """Read to the end, never far ahead of what is stored. Returns what `chunk` raised."""
        lines = Splitter(self._node.settings.max_body)
        try:
            while (part := await chunk()) is not None:
                self._ahead += len(part)
                await self._take(lines.feed(part))
            await self._take(lines.end())
        except Exception as error:  # noqa: BLE001 - whatever it is, what came before it is stored first
            return error
        finally:
            self._ended = True
            self._more.set()
        return None

    async def _take(self, lines: Sequence[Line]) -> None:
        for start in range(0, len(lines), SLICE):
            self._read += await _lines_asked(self._node, lines[start : start + SLICE])
            self._more.set()
            await trio.lowlevel.checkpoint()  # so that what was read before is stored meanwhile
        while len(self._read) >= GROUP or (self._read and self._ahead >= AHEAD):
            self._less = trio.Event()
            await self._less.wait()

    async def store(self, write: Write) -> None:
        """Store what is read and write the answers, until all of it is done."""
        while self._read or not self._ended:
            if self._read:
                group, self._read = self._read[:GROUP], self._read[GROUP:]
                self._ahead = 0
                self._less.set()
                await write(await _answers(self._node, group))
            else:
                self._more = trio.Event()
                await self._more.wait()


class Splitter:
    """Cuts a stream into lines, keeping no more than one line of `limit` bytes, and of a longer one its beginning."""

    def __init__(self, limit: int) -> None:
        self._limit, self._number = limit, itertools.count(1)
        self._rest = bytearray()

    def feed(self, chunk: bytes) -> Sequence[Line]:
        """The lines that this chunk completes, without their ends; empty ones are counted and left out."""
        first, *others = chunk.split(b"\n")
        self._keep(first)
        if not others:
            return []
        whole = [bytes(self._rest), *others[:-1]]
        self._rest.clear()
        self._keep(others[-1])
        numbered = zip(whole, self._number, strict=False)
        # A byte order mark begins a file, and so any line of several files that were joined.
        return [
            (number, text)
            for line, number in numbered
            if (text := line.removesuffix(b"\r").removeprefix(BOM)) and not text.isspace()
        ]

    def end(self) -> Sequence[Line]:
        """The last line, when no line feed ended it."""
        return self.feed(b"\n") if self._rest else []

    def _keep(self, part: bytes) -> None:
        # More than the limit: one byte to tell that it is too long, one that may turn out to be the \r of its end,
        # and a byte order mark.
        self._rest += part[: max(0, self._limit + 2 + len(BOM) - len(self._rest))]


async def _lines_asked(node: Node, lines: Sequence[Line]) -> Sequence[tuple[int, Asked]]:
    """What each line asks for; before a kind is refused, the store is asked once whether a node serves it by now."""
    first = [(number, _line_asked(node, line)) for number, line in lines]
    if UnknownKind not in {type(one) for _, one in first}:
        return first
    try:
        await node.served.renew(trio.current_time())
    except JobpipeError as error:
        problem = problem_from(error)
        return [(number, problem if isinstance(one, UnknownKind) else one) for number, one in first]
    return [
        (number, _line_asked(node, line) if isinstance(one, UnknownKind) else one)
        for (number, one), (_, line) in zip(first, lines, strict=True)
    ]


def _line_asked(node: Node, line: bytes) -> Asked:
    try:
        if len(line) > node.settings.max_body:
            raise too_large(node.settings.max_body, "send less in one line")
        return new_job_from(node, line)
    except Problem as problem:
        return problem


async def _answers(node: Node, group: Sequence[tuple[int, Asked]]) -> bytes:
    """Store a group of lines; returns a line of answer for each."""
    jobs = [(line, one) for line, one in group if isinstance(one, NewJob)]
    # Late jobs stand alone: each is looked for in the store, and that may fail where storing the others does not.
    late = {
        line: (await _stored(node, [new]))[0]
        for line, new in jobs
        if new.expires_at is not None and is_late(new)
    }
    stored = iter(await _stored(node, [new for line, new in jobs if line not in late]))
    return _encode_lines(
        [
            _refused(node, one, line)
            if isinstance(one, Problem)
            else _told(node, one, late.get(line) or next(stored), line)
            for line, one in group
        ]
    )


async def _stored(node: Node, jobs: Sequence[NewJob]) -> Sequence[Receipt | Problem]:
    """Store jobs together. If there is no room for all, as many as fit; a job that breaks the store is left out."""
    if not jobs:
        return []
    try:
        return await node.admission.enqueue(jobs)
    except JobpipeError as error:
        half = len(jobs) // 2
        if not isinstance(error, QueueFull) or not half:
            return [problem_from(error)] * len(jobs)
    except Exception:
        half = len(jobs) // 2
        if not half:
            log.exception("a line of a stream could not be stored", job=jobs[0].id)
            return [internal()]
    return [*await _stored(node, jobs[:half]), *await _stored(node, jobs[half:])]


def _told(node: Node, new: NewJob, receipt: Receipt | Problem, line: int) -> LineReceipt | ProblemDetails:
    if isinstance(receipt, Problem):
        return _refused(node, receipt, line)
    if receipt.verdict == "stored":
        return LineReceipt(new.id, new.status if receipt.job is None else receipt.job.status)
    try:
        there = known(new, receipt)
    except (Problem, JobpipeError) as error:
        return _refused(node, problem_from(error), line)
    return LineReceipt(there.id, there.status)


def _refused(node: Node, problem: Problem, line: int) -> ProblemDetails:
    node.tallies.refused[problem.details.code] += 1
    return msgspec.structs.replace(problem.details, line=line)
