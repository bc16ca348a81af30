"""Statements and rows of SQLite."""

from collections.abc import Collection, Generator, Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import apsw
import msgspec

from jobpipe.job import NO_OPTIONS, NewJob
from jobpipe.store.rows import Row, encoded_options

_JOB_COLUMNS = """
    jobs.id, kind, queue, status, priority, {payload}, {result}, error, attempt, max_retries, claim,
    created_at, run_at, started_at, finished_at, expires_at, options, seq,
    (select name from nodes where nodes.node = jobs.node), held, size, rescued, 0,
    {followed}, {original}
"""
JOB_COLUMNS = _JOB_COLUMNS.format(
    payload="payload",
    result="result",
    followed="""(
        exists (select 1 from waits where on_seq = jobs.seq)
        or exists (select 1 from members where members.seq = jobs.seq and ended is null)
    )""",
    original="original",
)
"""See `jobpipe.store.rows.JobRow`; nobody else can wait for a job here: none is watched."""

LISTED_COLUMNS = _JOB_COLUMNS.format(payload="payload", result="result", followed="0", original="null")
"""The same without what was asked first, as a list shows a job."""

BARE_JOB_COLUMNS = _JOB_COLUMNS.format(payload="x''", result="null", followed="0", original="null")
"""The same without payload and result."""

# The indexes are named, since the planner takes any that begins with the status for a better one.
READY = "jobs indexed by jobs_ready where status = 'queued' and held = 0 and aside = 0"
ASIDE = "jobs indexed by jobs_aside where status = 'queued' and held = 0 and aside = 1"
"""Ready jobs that do not stand aside, and those that do. The index by queue has both."""
READY_BY_QUEUE = "jobs indexed by jobs_ready_by_queue where status = 'queued' and held = 0"
READY_IN_LANE = (
    "jobs indexed by jobs_in_lane where key is not null and aside = 2 and status = 'queued' and held = 0"
)
IN_LINE = """
jobs indexed by jobs_in_line
where key is not null and status not in ('done', 'failed', 'cancelled', 'expired')
"""
FIRST_IN_LINE = f"""
(
    select seq
    from {IN_LINE}
        and queue = {{queue}}
        and key = {{key}}
        and (held = 1 or status not in ('running', 'cancelling'))
    order by claim = 0, seq
    limit 1
)
"""
"""The job of a lane that comes before all others, where order counts; it may have to wait.

Not one that seems to run, and is not held: its row is damaged, and it would be first for ever.
"""

NEXT_QUEUE = f"""
(
    select queue
    from {READY_BY_QUEUE}
        and queue > {{after}}
    order by queue
    limit 1
)
"""
"""From one queue that has a ready job to the next by name: queues without ready jobs cost nothing."""

FIRST_QUEUE = NEXT_QUEUE.format(after="''")

_CLAIMED_COLUMNS = """
    seq, {id}, {kind}, {queue}, payload, priority, run_at, attempt, max_retries, claim, rescued, options
"""
CLAIMED_COLUMNS = _CLAIMED_COLUMNS.format(id="id", kind="kind", queue="queue")
CLAIMED_AS_BYTES = _CLAIMED_COLUMNS.format(
    id="cast(id as blob)", kind="cast(kind as blob)", queue="cast(queue as blob)"
)
"""The same with text as it is stored: it may be no UTF-8."""


@contextmanager
def transaction(db: apsw.Connection) -> Iterator[None]:
    """Everything inside is written as one, or not at all. May be nested."""
    with db:
        yield


def fetch(db: apsw.Connection, sql: str, values: Row | Mapping[str, Any] = ()) -> list[Row]:
    """All rows of a query. Where a text in them is not UTF-8, what is wrong in it becomes U+FFFD.

    A statement that writes raises `UnicodeDecodeError` there: it cannot be asked twice.
    """
    try:
        return db.execute(sql, values).fetchall()
    except UnicodeDecodeError:
        if not sql.lstrip().startswith(("select", "with")):
            raise
        return _fetch_bytes(db, sql, values)


def stream(db: apsw.Connection, sql: str, values: Row | Mapping[str, Any]) -> Generator[Row, None, None]:
    """The rows of a query that only reads, one by one; see `fetch`. Close it to end the query."""
    taken = 0
    rows = db.execute(sql, values)
    try:
        for row in rows:
            yield row
            taken += 1
    except UnicodeDecodeError:
        yield from _fetch_bytes(db, sql, values)[taken:]
    finally:
        rows.close()


def fetch_one(db: apsw.Connection, sql: str, values: Row | Mapping[str, Any] = ()) -> Row | None:
    """The first row of a query, or None; see `fetch`."""
    try:
        return db.execute(sql, values).fetchone()
    except UnicodeDecodeError:
        if not sql.lstrip().startswith(("select", "with")):
            raise
        return _fetch_bytes(db, sql, values)[0]


def _fetch_bytes(db: apsw.Connection, sql: str, values: Row | Mapping[str, Any]) -> list[Row]:
    """All rows of a query that only reads; each text is asked for as bytes, since APSW takes nothing but UTF-8."""
    columns = [f"c{number}" for number in range(len(db.execute(sql, values).description))]
    asked = ", ".join(
        f"typeof({one}) = 'text', iif(typeof({one}) = 'text', cast({one} as blob), {one})" for one in columns
    )
    rows = db.execute(f"with t({', '.join(columns)}) as ({sql}) select {asked} from t", values)
    return [tuple(map(as_text, row[::2], row[1::2])) for row in rows]


def as_text(is_text: object, value: Any) -> Any:  # noqa: ANN401 - any value of SQLite
    """A value of which it is told whether it is a text, given as bytes."""
    return value.decode(errors="replace") if is_text and isinstance(value, bytes) else value


def as_json(names: Collection[str]) -> str:
    """Names as one value, in order; a statement reads them with `json_each`."""
    return msgspec.json.encode(sorted(names)).decode()


def new_row(job: NewJob) -> Row:
    """The values of a job to be inserted."""
    return (
        job.id,
        job.kind,
        job.queue,
        job.status,
        job.priority,
        job.run_at,
        job.max_retries,
        job.created_at,
        job.expires_at,
        None if job.options is NO_OPTIONS else encoded_options(job.options),
        job.payload,
    )
