"""What held jobs write between their start and their end: progress and log lines, under the fence of the claim."""

from collections.abc import Sequence
from typing import NamedTuple

import msgspec

from jobpipe.job import ENDED, Level, Progress
from jobpipe.store.base import LOG_BYTES, LOG_LINES, STEP, LogPage, Note, StoredLine
from jobpipe.store.rows import Row
from jobpipe.store.verbs.transaction import Transaction
from jobpipe.transitions import Stored

Fence = tuple[int, int]
"""seq and claim"""

PROGRESS_COLUMNS = "claim, fraction, message, at"
"""What `with_progress` takes."""

_PUT_PROGRESS = """
insert into progress (seq, claim, at, fraction, message)
select seq, claim, at, fraction, message
from {rows notes: seq bigint, claim bigint, at double precision, fraction double precision, message text}
where true
on conflict (seq) do update set
    claim = excluded.claim,
    at = excluded.at,
    fraction = excluded.fraction,
    message = excluded.message
"""
_LAST = """
select l.seq, l.claim, l.number, l.n, l.total
from {rows named: seq bigint} cross join logs l
where l.seq = named.seq and l.n = (select max(n) from logs where seq = named.seq)
"""
_LINES = (
    "seq bigint, n bigint, claim bigint, number bigint, attempt int, at double precision, "
    "level text, text text, fields text, total bigint"
)
_PUT_LINES = f"""
insert into logs (seq, n, claim, number, attempt, at, level, text, fields, total)
select seq, n, claim, number, attempt, at, level, text, fields, total
from {{rows lines: {_LINES}}}
"""
_TRIM = f"""
delete from logs
where seq = :seq
    and (n > {LOG_LINES // 2} or total > {LOG_BYTES // 2})
    and (
        n <= :n - {LOG_LINES // 2}
        or total - octet_length(text) - coalesce(octet_length(fields), 0) < :total - {LOG_BYTES // 2}
    )
"""
_OLDEST = "select (select min(seq) from jobs), (select min(seq) from progress), (select min(seq) from logs)"
_SWEEP = "delete from progress where seq < :until", "delete from logs where seq < :until"

_JOB = "select seq, status from {shown} where id = :id"
_READ = """
select n, at, attempt, level, text, fields
from logs
where seq = :seq and n > :after and level in {each levels}
order by n
limit :limit
"""
_TOTALS = "select coalesce(max(n), 0), count(*) from logs where seq = :seq"


class Last(NamedTuple):
    """The last line of a job's log, as far as the next one follows from it."""

    claim: int = 0
    number: int = 0
    n: int = 0
    total: int = 0


class LineRow(msgspec.Struct, frozen=True):
    """A row of the table of lines."""

    seq: int
    n: int
    claim: int
    number: int
    attempt: int
    at: float
    level: Level
    text: str
    fields: str | None
    total: int


class _ProgressRow(msgspec.Struct, frozen=True):
    seq: int
    claim: int
    at: float
    fraction: float
    message: str


async def write(tx: Transaction, notes: Sequence[Note]) -> frozenset[Fence]:
    """Write notes of jobs that are held, in order of seq; returns the claims of the others. One a job at the most."""
    fences = [(one.seq, one.claim) for one in sorted(notes, key=lambda note: note.seq)]
    held = await tx.lock_claims(fences)
    written = [one for one in notes if (one.seq, one.claim) in held]
    if told := [_progress_row(one, one.progress) for one in written if one.progress is not None]:
        tx.run(_PUT_PROGRESS, {"notes": _as_json(told)})
    if logged := [one for one in written if one.lines]:
        await _write_lines(tx, logged)
    return frozenset(fences) - held


def _progress_row(note: Note, progress: Progress) -> _ProgressRow:
    return _ProgressRow(note.seq, note.claim, progress.at, progress.fraction, progress.message)


async def _write_lines(tx: Transaction, notes: Sequence[Note]) -> None:
    named = _as_json([{"seq": one.seq} for one in notes])
    last = {seq: Last(*rest) for seq, *rest in await tx.rows(_LAST, {"named": named})}
    of_each = [line_rows(one, last.get(one.seq, Last())) for one in notes]
    tx.run(_PUT_LINES, {"lines": _as_json([row for rows in of_each for row in rows])})
    for rows in of_each:
        if rows and (rows[-1].n > LOG_LINES or rows[-1].total > LOG_BYTES):
            tx.run(_TRIM, {"seq": rows[-1].seq, "n": rows[-1].n, "total": rows[-1].total})


def line_rows(note: Note, last: Last) -> Sequence[LineRow]:
    """The rows of a note's lines behind the last one there is; those that were written before are left out."""
    known, total = (last.number if last.claim == note.claim else 0), last.total
    rows = list[LineRow]()
    for line in note.lines:
        if line.number > known:
            total += line.size
            fields = None if line.fields is None else line.fields.decode()
            n = last.n + line.number - known
            what = (note.claim, line.number, note.attempt, line.at, line.level, line.text, fields, total)
            rows.append(LineRow(note.seq, n, *what))
    return rows


async def sweep(tx: Transaction) -> None:
    """Delete what a job has left that was deleted by hand in the database, or by a node that knew nothing of notes.

    What is older than every job belongs to none. Of `STEP` jobs at the most.
    """
    ((oldest, *firsts),) = await tx.rows(_OLDEST, {})
    for first, sql in zip(firsts, _SWEEP, strict=True):
        if first is not None and (oldest is None or first < oldest):
            tx.run(sql, {"until": first + STEP if oldest is None else min(oldest, first + STEP)})


async def log(
    tx: Transaction, job_id: str, after: int, limit: int, levels: Sequence[Level]
) -> LogPage | None:
    """See `jobpipe.store.base.ReadStore.log`."""
    found = [] if "\0" in job_id else await tx.rows(_JOB, {"id": job_id})
    if not found:
        return None
    ((seq, status),) = found
    values = {"seq": seq, "after": after, "limit": limit, "levels": _as_json(levels)}
    lines = [stored_line(row) for row in await tx.rows(_READ, values)]
    ((last, lines_kept),) = await tx.rows(_TOTALS, {"seq": seq})
    return LogPage(lines=lines, dropped=max(last - lines_kept, 0), last=last, ended=status in ENDED)


def stored_line(row: Row) -> StoredLine:
    """A log line from its columns. What cannot be read of it is left out."""
    n, at, attempt, level, text, fields = row
    return StoredLine(n, at, attempt, level, text, _object(fields))


def _object(fields: str | None) -> bytes | None:
    """A JSON object, unless it is none."""
    try:
        return fields.encode() if isinstance(msgspec.json.decode(fields or "null"), dict) and fields else None
    except Exception:  # noqa: BLE001 - whatever stands there
        return None


def with_progress(stored: Stored, row: Row | None) -> Stored:
    """A job with the progress of its latest claim, given `PROGRESS_COLUMNS` of whichever claim there are."""
    if row is None or row[0] != stored.job.state.claim:
        return stored
    _, fraction, message, at = row
    try:
        progress = msgspec.convert({"fraction": fraction, "message": message, "at": at}, Progress)
    except msgspec.ValidationError:  # the row is damaged
        return stored
    return msgspec.structs.replace(stored, job=msgspec.structs.replace(stored.job, progress=progress))


def _as_json(rows: Sequence[object]) -> str:
    return msgspec.json.encode(rows).decode()
