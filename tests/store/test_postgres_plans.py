"""The cost of a verb does not grow with the tables: with a million jobs each reads a handful of rows by an index."""

from collections import Counter
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import pytest
import trio

from jobpipe.job import Job, Options, Outcome, State, Status
from jobpipe.schedules import Declaration, Overlap, Spec, decided
from jobpipe.store.base import (
    COUNTED,
    OTHERS,
    PLACES,
    STEP,
    Add,
    Batch,
    ClaimRequest,
    EndPlace,
    Filter,
    Place,
    Retention,
    Share,
)
from jobpipe.store.postgres import migrate, reader
from jobpipe.store.postgres.address import read_address
from jobpipe.store.postgres.arrays import texts
from jobpipe.store.postgres.connections import KeptConnection
from jobpipe.store.postgres.connector import Connector, Limits, Verb
from jobpipe.store.postgres.nodes import Nodes
from jobpipe.store.postgres.session import Session
from jobpipe.store.postgres.tables import Tables
from jobpipe.store.postgres.writer import Writer
from jobpipe.store.verbs import merging
from jobpipe.store.verbs.facade import SharedVerbs
from jobpipe.store.verbs.followers import MOST
from tests.store.server import ask, new_schema, server_url, with_query
from tests.store.test_contract import KEEP_ALL, LATER, NOW, new_job, settlement, start, wish
from tests.store.test_groups import member
from tests.store.test_merging import debounced, throttled, unique
from tests.store.test_open_groups import OPEN, opened

pytestmark = pytest.mark.slow

ENDED_JOBS, WAITING_JOBS, LATER_JOBS, ASIDE_JOBS = 700_000, 250_000, 50_000, 100_000
BLOCKED_JOBS, HUBS = 50_000, 4
LATER_SCHEDULES = 50_000
ECHO, DEMO, HUB = frozenset({"echo"}), frozenset({"demo"}), frozenset({"hub"})

RARE = 50
OLD = NOW - 1e6
"""Before all others were created."""

# Of each status that waits or has ended, some of a rare queue and some of a rare kind; and a million newer jobs.
_ENDED = (
    "insert into {0}.ended (seq, status, kind, queue, created_at, run_at, attempt, claim, rescued, finished_at, size) "
    "select seq, status, kind, queue, created_at, run_at, 1, 1, 0, finished_at, 0 from "
)
_RARE_ENDED = (
    "with new as (insert into {0}.jobs (id, kind, queue, priority, run_at, max_retries, created_at, payload) "
    "select s || k || n, k, case k when 'echo' then 'rare' else 'default' end, 0, "
    f"{OLD}, 3, {OLD} + n, '1' "
    "from unnest(array['done', 'failed', 'cancelled', 'expired']) s, unnest(array['echo', 'rare']) k, "
    f"generate_series(1, {RARE}) n returning *) {_ENDED}"
    "(select *, substring(id from '^(done|failed|cancelled|expired)') as status, "
    f"{NOW} + 1 as finished_at from new) of_all"
)
_RARE_WAITING = (
    "with new as (insert into {0}.jobs (id, kind, queue, priority, run_at, max_retries, created_at, payload) "
    f"select s || k || n, k, case k when 'echo' then 'rare' else 'default' end, -9, 2e11, 3, {OLD} + n, '1' "
    "from unnest(array['queued', 'scheduled', 'retrying', 'blocked']) s, unnest(array['echo', 'rare']) k, "
    f"generate_series(1, {RARE}) n returning *) "
    "insert into {0}.live (seq, kind, queue, status, priority, run_at, created_at) "
    "select seq, case when id ~ '^queuedrare' then kind end, queue, "
    "substring(id from '^(queued|scheduled|retrying|blocked)'), priority, run_at, created_at from new"
)
FILL = (
    _RARE_ENDED,
    _RARE_WAITING,
    (
        "with new as (insert into {0}.jobs (id, kind, queue, priority, run_at, max_retries, created_at, payload) "
        f"select 'e' || n, 'echo', 'default', 0, {NOW}, 3, {NOW} + n / 1e3, '1' "
        f"from generate_series(1, {ENDED_JOBS}) n returning *) {_ENDED}"
        "(select *, (array['done', 'failed', 'cancelled', 'expired'])[1 + substring(id from 2)::int % 4] as status, "
        f"{NOW} + substring(id from 2)::int / 1e6 as finished_at from new) of_all"
    ),
    (
        "with new as (insert into {0}.jobs (id, kind, queue, priority, run_at, max_retries, created_at, payload) "
        f"select 'hub' || n, 'hub', 'default', 999, {NOW}, 3, {OLD} + n, '1' "
        f"from generate_series(0, {HUBS} - 1) n returning *) "
        "insert into {0}.live (seq, kind, queue, status, priority, run_at, created_at) "
        "select seq, kind, queue, 'queued', priority, run_at, created_at from new"
    ),
    (  # ready jobs of the highest priority, of a kind that no node serves
        "with new as (insert into {0}.jobs (id, kind, queue, priority, run_at, max_retries, created_at, payload) "
        f"select 'd' || n, 'demo', 'q0', 1000, {NOW}, 3, {NOW}, '1' "
        f"from generate_series(1, {ASIDE_JOBS}) n returning *) "
        "insert into {0}.live (seq, kind, queue, status, priority, run_at, created_at) "
        "select seq, kind, queue, 'queued', priority, run_at, created_at from new"
    ),
    (
        "with new as (insert into {0}.jobs "
        "(id, kind, queue, priority, run_at, max_retries, created_at, payload, expires_at) "
        f"select 'w' || n, 'echo', 'q' || n % 3, n % 5, {NOW}, 3, {NOW} + n / 1e3, '1', "
        f"case when n % 10 = 0 then {LATER} + 1000 + n end from generate_series(1, {WAITING_JOBS}) n returning *) "
        "insert into {0}.live (seq, queue, status, priority, run_at, created_at, expires_at) "
        "select seq, queue, 'queued', priority, run_at, created_at, expires_at from new"
    ),
    (
        "with new as (insert into {0}.jobs (id, kind, queue, priority, run_at, max_retries, created_at, payload) "
        f"select 'l' || n, 'echo', 'default', 0, {LATER} + 1000 + n, 3, {NOW} + n, '1' "
        f"from generate_series(1, {LATER_JOBS}) n returning *) "
        "insert into {0}.live (seq, queue, status, priority, run_at, created_at) "
        "select seq, queue, (array['scheduled', 'retrying'])[1 + seq % 2], priority, run_at, created_at from new"
    ),
    (  # each waits for a job of its own, and for one that very many others wait for
        "with new as (insert into {0}.jobs (id, kind, queue, priority, run_at, max_retries, created_at, payload) "
        f"select 'x' || n, 'echo', 'default', 0, {NOW}, 3, {NOW} + n, '1' "
        f"from generate_series(1, {BLOCKED_JOBS}) n returning *), "
        "alive as (insert into {0}.live (seq, queue, status, priority, run_at, created_at) "
        "select seq, queue, 'blocked', priority, run_at, created_at from new) "
        "insert into {0}.waits select o.seq, new.seq, 1 from new join {0}.jobs o "
        f"on o.id = 'l' || substring(new.id from 2) or o.id = 'hub' || substring(new.id from 2)::int % {HUBS}"
    ),
    # Of the jobs that have failed, half with one error.
    (
        "update {0}.ended set fingerprint = case when seq / 4 % 2 = 0 then '1-hot' else '1-' || seq / 4 % 100 end "
        "where status = 'failed' and kind = 'echo' and queue = 'default'"
    ),
    "update {0}.live set followed = true where seq in (select on_seq from {0}.waits)",
    # Each job that comes later has a key; some of those are also taken for a while.
    (
        "insert into {0}.uniques select md5(id), seq, id, null, created_at, "
        f"case when seq % 10 = 0 then {LATER} + seq end from {{0}}.jobs where id like 'l%'"
    ),
    # Far more schedules than are due, none of them declared.
    (
        "insert into {0}.schedules (name, version, spec, job, next_at, created_at) "
        f"select 'later' || n, 1, '', '', {LATER} + 1000 + n, {NOW} from generate_series(1, {LATER_SCHEDULES}) n"
    ),
    "insert into {0}.tags select 'rare', created_at, seq from {0}.jobs where id like '%777'",
    "insert into {0}.counts select queue, status, 999, count(*), 0 from {0}.ended group by 1, 2",
    "insert into {0}.counts select queue, status, 999, count(*), 0 from {0}.live group by 1, 2",
    # Fifty thousand queues that were used once, and each in several slots.
    (
        "insert into {0}.counts select 'z' || q, s, slot, 1, 0 from generate_series(1, 50000) q, "
        "unnest(array['done', 'failed']) s, generate_series(1, 2) slot"
    ),
    "insert into {0}.totals select state, 999, sum(jobs), 0 from {0}.counts group by 1",
    "vacuum (analyze) {0}.jobs",
    "vacuum (analyze) {0}.live",
    "vacuum (analyze) {0}.ended",
    "vacuum (analyze) {0}.waits",
    "vacuum (analyze) {0}.uniques",
    "vacuum (analyze) {0}.counts",
    "vacuum (analyze) {0}.schedules",
)

_READ = (
    "select relname, seq_tup_read, idx_tup_fetch from pg_stat_xact_user_tables "
    "where schemaname = %(schema)s and relname in "
    "('jobs', 'live', 'ended', 'attempts', 'tags', 'counts', 'totals', 'queues', 'waits', 'uniques', 'audit', "
    "'schedules')"
)


class Counting(KeptConnection):
    """Tells how many rows each transaction read: of whole tables, and by index."""

    def __init__(self, connector: Connector) -> None:
        super().__init__(connector)
        self._schema = connector.address.schema
        self.whole = self.by_index = self.counts = 0
        """rows of jobs that were read from whole tables and by index; rows of counts and queues, however read"""

    async def transact(self, verb: Verb[Any], *, repeatable: bool = False) -> Any:
        async def counted(session: Session) -> Any:
            before = await self._read(session)
            done = await verb(session)
            after = await self._read(session)
            self.whole, self.by_index, self.counts = (
                end - begin for begin, end in zip(before, after, strict=True)
            )
            return done

        return await super().transact(counted, repeatable=repeatable)

    async def _read(self, session: Session) -> tuple[int, int, int]:
        # Earlier transactions are in it too, as long as the server has not gathered what they counted.
        rows = await session.rows(_READ, {"schema": self._schema})
        jobs = [row for row in rows if row[0] not in {"counts", "totals", "queues"}]
        counts = sum((row[1] or 0) + (row[2] or 0) for row in rows if row not in jobs)
        return sum(row[1] or 0 for row in jobs), sum(row[2] or 0 for row in jobs), counts


@pytest.fixture(scope="module")
def connection() -> Iterator[Counting]:
    """A connection to a database with a million jobs."""
    with filled(FILL) as opened:
        yield opened


@contextmanager
def filled(fill: Sequence[str]) -> Iterator[Counting]:
    """A connection to a database of its own, of which a node is a member, after statements that fill it."""
    with new_schema() as schema:
        url = with_query(server_url(), schema=schema)
        migrate(url)
        for sql in fill:
            ask(sql.format(schema))
        opened = Counting(Connector(read_address(url), Limits(lease=60.0)))
        trio.run(Nodes(opened, "caller", "plans").join, "n", NOW, LATER, ECHO)
        try:
            yield opened
        finally:
            opened.close()


@pytest.fixture
def writer(connection: Counting) -> Writer:
    return Writer(connection, 0, "caller", "plans")


class Verbs(SharedVerbs):
    """The verbs over a connection that counts."""

    def __init__(self, connection: Counting) -> None:
        super().__init__()
        self._connection = connection

    async def _transact(self, verb: Any, *, repeatable: bool = False) -> Any:
        async def whole(session: Session) -> Any:
            return await verb(Tables(session, 1, "caller", "plans"))

        return await self._connection.transact(whole, repeatable=repeatable)

    async def _look(self, verb: Any) -> Any:
        return await self._transact(verb)


@pytest.fixture
def verbs(connection: Counting) -> Verbs:
    return Verbs(connection)


async def test_an_exchange_reads_the_rows_that_it_writes(connection: Counting, writer: Writer) -> None:
    """Claims, starts, settlements and adds, over three queues of a hundred thousand jobs."""
    claimed = (await writer.exchange(Batch(node="n", now=NOW, claims=wish(30, ECHO)), 1.0)).claimed
    first = (connection.whole, connection.by_index, connection.counts)
    await writer.exchange(
        Batch(
            node="n",
            now=NOW,
            lease_until=LATER,
            starts=[start(job) for job in claimed[:10]],
            settlements=[settlement(job, outcome) for job in claimed[10:] for outcome in [Outcome.DONE]],
            adds=[Add([new_job(f"new{number}") for number in range(10)])],
            claims=wish(10, ECHO),
        ),
        1.0,
    )
    second = (connection.whole, connection.by_index, connection.counts)
    await writer.exchange(
        Batch(
            node="n",
            now=NOW,
            settlements=[settlement(job, Outcome.RETRY, run_at=LATER + 1e6) for job in claimed[:10]],
        ),
        1.0,
    )

    assert len(claimed) == 30
    assert (first[0], second[0], connection.whole) == (0, 0, 0)
    assert max(first[2], second[2], connection.counts) <= 100
    assert first[1] <= 10 * 30
    assert second[1] <= 10 * 50
    assert connection.by_index <= 20 * 10


async def test_a_claim_beside_a_paused_queue_passes_over_few_of_its_jobs(
    connection: Counting, writer: Writer, verbs: Verbs
) -> None:
    """Eighty thousand lie at the head of the line."""
    await verbs.pause("q0")
    claimed = (await writer.exchange(Batch(node="n", now=NOW, claims=wish(10, ECHO)), 1.0)).claimed
    read = (connection.whole, connection.by_index, connection.counts)
    await verbs.resume("q0")

    assert {job.queue for job in claimed} == {"q1", "q2"}
    assert (read[0], read[1] <= 300, read[2] <= 100) == (0, True, True)


async def test_an_exchange_that_has_nothing_to_do_reads_next_to_nothing(
    connection: Counting, writer: Writer
) -> None:
    """As an idle node's heartbeat."""
    await writer.exchange(Batch(node="n", now=NOW, lease_until=LATER), 1.0)

    assert (connection.whole, connection.by_index <= 10, connection.counts <= 50) == (0, True, True)


async def test_a_promotion_reads_what_is_due(connection: Counting, writer: Writer) -> None:
    """Of fifty thousand jobs that wait for a time, and twenty-five thousand that may expire."""
    due = await writer.exchange(Batch(node="n", now=LATER + 1100), 1.0)

    assert due.next_due is not None
    assert due.next_due > LATER + 1100
    assert (connection.whole, connection.by_index <= 20 * 110) == (0, True)


@pytest.mark.parametrize("verb", ["cancel", "retry", "delete", "cancel ended", "absent"])
async def test_what_is_asked_of_a_job_reads_that_job(connection: Counting, verbs: Verbs, verb: str) -> None:
    """By its id."""
    match verb:
        case "cancel":
            await verbs.cancel(["w9999"], NOW)
        case "retry":
            await verbs.retry(["e9999"], NOW)
        case "delete":
            await verbs.delete(["e9998"], NOW)
        case "cancel ended":
            await verbs.cancel(["e9997"], NOW)
        case _:
            await verbs.cancel(["absent"], NOW)

    assert (connection.whole, connection.by_index <= 30) == (0, True)


@pytest.mark.parametrize(
    "retention",
    [
        KEEP_ALL,
        Retention(done_age=1e9, failed_age=100.0, jobs=10**9, size=10**12),
        Retention(done_age=1e9, failed_age=1e9, jobs=1000, size=10**12),
    ],
    ids=["nothing", "old", "many"],
)
async def test_a_prune_reads_a_step(connection: Counting, verbs: Verbs, retention: Retention) -> None:
    """The oldest of each status, however many have ended."""
    pruned = await verbs.prune(NOW + 100.01, retention)

    assert pruned == (0 if retention is KEEP_ALL else STEP)
    assert (connection.whole, connection.by_index <= 20 * STEP) == (0, True)


async def test_a_rescue_reads_what_is_held(connection: Counting, writer: Writer, verbs: Verbs) -> None:
    """And takes it back a step at a time."""
    await Nodes(connection, "caller", "plans").join("dead", NOW, NOW + 1)
    claimed = (await writer.exchange(Batch(node="dead", now=NOW, claims=wish(50, ECHO)), 1.0)).claimed
    rescued = await verbs.rescue("n", NOW + 2)

    assert {job.id for job in rescued} == {job.id for job in claimed}
    assert (connection.whole, connection.by_index <= 20 * 100) == (0, True)


async def test_a_job_that_waits_for_others_reads_those(connection: Counting, verbs: Verbs) -> None:
    """When it is stored, shown and retried; among fifty thousand others."""
    depends_on = tuple(f"l{number}" for number in range(10_001, 10_051))
    new = [
        new_job("n1", options=Options(depends_on=depends_on)),
        new_job("n2", options=Options(depends_on=("n1",))),
    ]
    read = list[tuple[int, bool]]()
    (first, second) = await verbs.add_dependents(new, atomic=True)
    read.append((connection.whole, connection.by_index <= 50 * 20))
    shown = await verbs.open_dependencies("n1", 100)
    read.append((connection.whole, connection.by_index <= 50 * 4))
    await verbs.cancel(["n1"], NOW)
    read.append((connection.whole, connection.by_index <= 50 * 4))
    changes = await verbs.retry(["n1"], NOW)
    read.append((connection.whole, connection.by_index <= 50 * 20))

    assert (first.verdict, second.verdict, shown.count) == ("stored", "stored", 50)
    assert [change.job and change.job.status for change in changes] == [Status.BLOCKED]
    assert read == [(0, True)] * 4


async def test_why_a_job_does_not_run_yet_is_read_from_few_rows(connection: Counting, verbs: Verbs) -> None:
    """However many jobs are ahead of it, or behind."""
    found = []
    for job_id, queue, priority in (("w90004", "q1", 4), ("w90001", "q1", 1)):
        job = Job(new_job(job_id, queue=queue, priority=priority), State(Status.QUEUED))
        obstacle = await verbs.obstacle(job, NOW)
        found.append((obstacle and obstacle.exact, connection.whole, connection.by_index <= 2 * PLACES + 20))

    assert found == [(False, 0, True)] * 2


async def test_jobs_that_join_a_group_read_those(connection: Counting, verbs: Verbs) -> None:
    """Also to see that none waits for itself; and to close the group, by hand or since its time is over."""
    read = list[tuple[int, bool]]()

    def noted() -> None:
        read.append((connection.whole, connection.by_index <= 50 * 20))

    on = tuple(f"l{number}" for number in range(10_001, 10_021))
    for name in ("g", "h"):
        await verbs.add_group(opened(group=name), NOW)
    noted()
    jobs = [member(f"joins{number}", options=Options(depends_on=on, parent="l10030")) for number in range(20)]
    receipts = await verbs.add_dependents(jobs, atomic=True)
    noted()
    await verbs.close_group("g", NOW)
    noted()
    await verbs.prune(NOW + OPEN, KEEP_ALL)
    closed = await verbs.group("h")

    assert {one.verdict for one in receipts} == {"stored"}
    assert closed is not None
    assert closed.closed_at == NOW + OPEN
    assert read == [(0, True)] * 3


async def test_a_key_is_found_among_those_of_all_jobs(connection: Counting, verbs: Verbs) -> None:
    """To store, replace, retry and delete jobs, and to sweep what is over."""
    read = list[tuple[int, bool]]()

    def noted() -> None:
        read.append((connection.whole, connection.by_index <= 200))

    jobs = [unique("u1"), throttled("u2", NOW), debounced("u3", NOW)]
    receipts = await verbs.add_dependents(jobs, atomic=True)
    noted()
    receipts = [*receipts, *await verbs.add_dependents([debounced("u4", NOW + 1)], atomic=True)]
    noted()
    await verbs.cancel(["u1"], NOW)
    (retried,) = await verbs.retry(["u1"], NOW)
    noted()
    (deleted,) = await verbs.delete(["u1"], NOW)
    noted()
    await verbs._carry_out(lambda tx: merging.sweep(tx, NOW))
    noted()

    assert [one.verdict for one in receipts] == ["stored"] * 3 + ["replaced"]
    assert (retried.verdict, deleted.verdict) == ("changed", "changed")
    assert read == [(0, True)] * 5


async def test_what_follows_the_end_of_a_job_reads_those_that_wait_for_it(
    connection: Counting, writer: Writer, verbs: Verbs
) -> None:
    """A step of them at a time, of the twelve thousand that wait for one job."""
    await Nodes(connection, "caller", "plans").join("hubs", NOW, LATER, HUB)
    done, failed, *_ = (await writer.exchange(Batch(node="hubs", now=NOW, claims=wish(4, HUB)), 1.0)).claimed
    read = list[tuple[int, bool]]()
    first = await writer.exchange(
        Batch(node="hubs", now=NOW, settlements=[settlement(done, Outcome.DONE)]), 1.0
    )
    read.append((connection.whole, connection.by_index <= MOST * 60))
    second = await writer.exchange(
        Batch(node="hubs", now=NOW, settlements=[settlement(failed, Outcome.FAIL)]), 1.0
    )
    read.append((connection.whole, connection.by_index <= MOST * 60))
    for _ in range(3):
        assert (await verbs.follow(NOW)).more
        read.append((connection.whole, connection.by_index <= MOST * 60))

    assert (first.following, len(first.changes)) == (True, 0)  # they still wait for others
    assert (second.following, len(second.changes)) == (True, MOST)
    assert read == [(0, True)] * 5


WAIT = (Status.QUEUED, Status.SCHEDULED, Status.RETRYING, Status.BLOCKED)
LISTS: Sequence[dict[str, Any]] = [
    {},
    {"tag": "rare"},
    {"queue": "rare"},
    {"kind": "rare"},
    {"queue": "default"},
    {"queue": "q1"},
    {"created_before": NOW - 1},
    *({"status": status} for status in Status),
    *({"status": status, name: "rare"} for status in Status for name in ("queue", "kind")),
    *({"status": status, "created_before": NOW - 1} for status in Status),
    {"status": Status.QUEUED, "queue": "q1"},
    {"status": Status.SCHEDULED, "queue": "default"},
    {"tag": ("rare", "none")},
    {"fingerprint": "1-hot"},
    {"fingerprint": ("1-hot", "1-3")},
    {"queue": ("rare", "q1", "none")},
    {"kind": ("rare", "none")},
    {"status": (Status.FAILED, Status.CANCELLED)},
    {"status": tuple(Status)},
    {"queue": ("rare", "none"), "status": (Status.FAILED, Status.EXPIRED, Status.BLOCKED)},
    {"kind": ("rare", "none"), "status": (Status.FAILED, Status.EXPIRED)},
    {"queue": "rare", "status": (Status.DONE, Status.FAILED)},
]

LOOKED = [
    *({"status": status, "kind": "rare"} for status in WAIT),
    *({"status": Status.DONE, name: "rare"} for name in ("queue", "kind")),
    {"queue": "rare", "status": (Status.DONE, Status.FAILED)},
]
"""Pairs for which other jobs of the queue or kind are looked at, where very many jobs have the status.

A page may be short.
"""


@pytest.mark.parametrize("where", LISTS, ids=str)
async def test_a_list_reads_about_what_it_shows(connection: Counting, where: dict[str, Any]) -> None:
    """Though what it shows is the oldest of a million jobs."""
    page = await connection.transact(lambda session: reader.listed(session, Filter(**where), 20, None))

    nothing = where.get("status") in {Status.RUNNING, Status.CANCELLING}
    assert len(page.jobs) == (0 if nothing else 20)
    assert connection.whole == 0
    assert connection.by_index <= (5 * 3 * 2 * RARE if where in LOOKED else 300)


async def test_error_groups_are_told_from_an_index(connection: Counting, verbs: Verbs) -> None:
    """However many jobs have failed."""
    listed = await verbs.error_groups(20)
    read = [(connection.whole, connection.by_index)]
    one = await verbs.error_group("1-hot")
    read.append((connection.whole, connection.by_index))

    assert (len(listed.groups), listed.complete) == (20, True)
    assert one is not None
    assert one.jobs >= COUNTED
    assert all(whole == 0 and by_index <= 300 for whole, by_index in read)


async def test_events_read_the_jobs_that_they_tell_of(connection: Counting, verbs: Verbs) -> None:
    """And ends a page, wherever it begins, though none of it may be new."""
    first = await verbs.ends(Status.DONE, EndPlace(NOW - 1e9, 0), 50, ())
    assert first.next is not None
    rest = await verbs.ends(Status.DONE, first.next, 50, ())
    reads = [connection.by_index]
    known = [place for place, _ in rest.jobs]
    nothing = await verbs.ends(Status.DONE, first.next, 50, known)
    reads.append(connection.by_index)
    told = await verbs.summaries([job.id for _, job in rest.jobs])
    reads.append(connection.by_index)

    assert (len(first.jobs), len(rest.jobs), len(nothing.jobs), len(told)) == (50, 50, 0, 50)
    assert connection.whole == 0
    assert [read <= most for read, most in zip(reads, (500, 250, 500), strict=True)] == [True] * 3, reads


async def test_deep_pages_cost_no_more_than_the_first(connection: Counting) -> None:
    """A cursor is a place in the index."""
    deep = Place(NOW + ENDED_JOBS / 2e3, ENDED_JOBS // 2)
    page = await connection.transact(
        lambda session: reader.listed(session, Filter(queue="default"), 20, deep)
    )

    assert len(page.jobs) == 20
    assert (connection.whole, connection.by_index <= 300) == (0, True)


async def test_schedules_find_their_jobs_by_id(connection: Counting, verbs: Verbs) -> None:
    """What fires, overlaps, is replaced and is shown, among a million jobs."""
    read = list[tuple[int, bool]]()
    overlaps: tuple[Overlap, ...] = ("queue", "skip", "replace")
    for overlap in overlaps:
        await verbs.put_schedule(f"s-{overlap}", Spec(every=60, overlap=overlap), new_job(), NOW)
    for now in (NOW + 60, NOW + 120):
        due = (await verbs.due_schedules(now)).schedules
        assert len(due) == 3
        await verbs.fire([decided(schedule, now) for schedule in due], now)
        read.append((connection.whole, connection.by_index <= 30))
    found = await verbs.fired_jobs("s-queue", 10)
    read.append((connection.whole, connection.by_index <= 10))

    assert len(found) == 2
    assert read == [(0, True)] * 3


async def test_what_code_declares_is_found_among_very_many_schedules(
    connection: Counting, verbs: Verbs
) -> None:
    """By those that say so, and by nodes that declare nothing."""
    read = list[tuple[int, bool]]()
    declared = Declaration(name="declared", spec=Spec(every=60), job=new_job())
    for now, own in ((NOW, [declared]), (NOW + 1, [declared]), (NOW + 100, [])):
        await verbs.declare(own, now, now - 60)
        read.append((connection.whole, connection.by_index <= 10))

    assert read == [(0, True)] * 3


async def test_queues_are_told_from_the_counts(connection: Counting) -> None:
    """And the oldest ready job from the first entry of each priority; of the page alone, not of all queues."""
    states = await connection.transact(lambda session: reader.queues(session, 5, ""))

    assert [state.name for state in states] == ["default", "q0", "q1", "q2", "rare"]
    assert (connection.whole, connection.by_index <= 300, connection.counts <= 200) == (0, True, True)


async def test_what_a_health_check_asks_costs_the_same_among_very_many_queues(connection: Counting) -> None:
    """Totals are kept, and the first queue that has a ready job will do."""
    seen = await connection.transact(lambda session: reader.overview(session, ECHO))

    assert seen.ready
    assert seen.counts[Status.DONE] > ENDED_JOBS / 4
    assert (connection.whole, connection.by_index <= 300, connection.counts <= 50) == (0, True, True)


async def test_jobs_of_kinds_that_no_node_serves_are_not_read_by_a_claim(
    connection: Counting, writer: Writer
) -> None:
    """A hundred thousand of the highest priority stand aside; a node that serves them reads what it takes."""
    claimed = (await writer.exchange(Batch(node="n", now=NOW, claims=wish(30, ECHO)), 1.0)).claimed
    first = (connection.whole, connection.by_index)
    merged = (await writer.exchange(Batch(node="n", now=NOW, claims=wish(30, ECHO | DEMO)), 1.0)).claimed
    second = (connection.whole, connection.by_index)

    assert {job.kind for job in claimed} == {"echo"}
    assert (first[0], first[1] <= 10 * 30) == (0, True), first
    assert ({job.kind for job in merged}, len(merged)) == ({"demo"}, 30)
    assert (second[0], second[1] <= 20 * 30) == (0, True), second


async def test_an_add_of_a_kind_that_no_node_serves_reads_no_jobs(
    connection: Counting, writer: Writer
) -> None:
    """Whether it stands aside is seen from the nodes."""
    await writer.exchange(Batch(node="n", now=NOW, adds=[Add([new_job("aside", kind="demo")])]), 1.0)
    read = (connection.whole, connection.by_index)
    await connection.transact(reader.unserved)

    assert (read[0], read[1] <= 10) == (0, True), read
    assert (connection.whole, connection.by_index <= ASIDE_JOBS + 100) == (0, True)


def shares(kinds: frozenset[str], **jobs: int) -> Sequence[ClaimRequest]:
    """A claim of queues with so many jobs of each."""
    queues = [Share(OTHERS if queue == "others" else queue, share) for queue, share in jobs.items()]
    return [ClaimRequest(limit=sum(jobs.values()), kinds=kinds, queues=queues)]


CLAIMS: dict[str, tuple[Sequence[ClaimRequest], dict[str, int]]] = {
    "shares": (shares(ECHO, q1=20, q2=10), {"q1": 20, "q2": 10}),
    "one": (shares(ECHO, q2=1, q1=0), {"q2": 1}),
    "left": (shares(ECHO, nothing=20, q2=5, q1=5), {"q2": 15, "q1": 15}),
    "nothing": (shares(ECHO, nothing=20, neither=10), {}),
    "aside": (shares(ECHO | DEMO, q0=5, q1=5), {"q0": 5, "q1": 5}),
    "of others": (shares(ECHO | DEMO, q2=5, q1=5), {"q2": 5, "q1": 5}),
    "rare": (shares(ECHO, rare=5, nothing=5), {"rare": 10}),
    "others": (shares(ECHO, q1=5, others=5), {"q1": 5, "q2": 5}),
    "few others": (shares(ECHO, q0=1, q1=1, q2=1, others=7), {"q0": 1, "q1": 1, "q2": 1, "others": 7}),
}


@pytest.mark.parametrize("claim", CLAIMS)
async def test_a_claim_that_names_queues_reads_about_what_it_takes(
    connection: Counting, writer: Writer, claim: str
) -> None:
    """Beside 250,000 jobs of other queues, and 100,000 that stand aside."""
    asked, expected = CLAIMS[claim]
    first = (await writer.exchange(Batch(node="n", now=NOW, claims=asked), 1.0)).claimed
    read = (connection.whole, connection.by_index, connection.counts)

    if claim == "others":  # the most urgent, of whichever queue
        assert Counter(job.queue == "q1" for job in first) == {True: 5, False: 5}
    else:
        named = {share.queue for share in asked[0].queues}
        assert Counter(job.queue if job.queue in named else "others" for job in first) == expected
    assert read[0] == 0
    assert read[1] <= 20 * asked[0].limit + 50, read
    assert read[2] <= 100, read


async def test_whether_some_queues_have_ready_jobs_is_seen_from_their_first(connection: Counting) -> None:
    """For a health check, and for a node that finds nothing."""

    async def ready(*queues: str) -> tuple[bool, int]:
        kinds, of = texts(["demo", "echo"]), texts(queues)
        found = await connection.transact(lambda session: reader.any_ready(session, kinds, of))
        assert connection.by_index <= 10
        return found, connection.whole

    assert [await ready("q0", "q1"), await ready("rare", "none"), await ready("none", "neither")] == [
        (True, 0),
        (True, 0),
        (False, 0),
    ]
