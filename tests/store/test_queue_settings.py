"""What is set for queues, over every store: pauses that end by themselves, closed queues, how long jobs are kept."""

from typing import Any

import pytest
from msgspec.structs import replace

from jobpipe.job import Options, Outcome, Status
from jobpipe.schedules import Spec
from jobpipe.store.base import (
    NOTHING_SET,
    STEP,
    Add,
    Batch,
    Change,
    QueueSettings,
    Receipt,
    Store,
)
from jobpipe.store.verbs import keeping
from jobpipe.store.verbs.transaction import Transaction
from tests.store.test_contract import (
    KEEP_ALL,
    LATER,
    NOW,
    Node,
    add,
    bring_to,
    edit,
    get,
    listed,
    look,
    new_job,
)
from tests.store.test_schedules import FIRST, FIRST_ID, SECOND_ID, fire, one, put

pytestmark = pytest.mark.long

CLOSED = QueueSettings(closed=True)
FULL = Receipt("closed", queue="mail")
ENDS = NOW + keeping.LAG
"""From then on jobs that ended at NOW are looked at."""


@pytest.fixture
async def node(store: Store) -> Node:
    """A node with a lease that outlives all of this."""
    one = Node(store)
    await one.join(lease_until=NOW + 1e6)
    return one


def mail(job_id: str = "a", **changes: Any) -> Any:
    return new_job(job_id, queue="mail", **changes)


async def note(store: Store, now: float) -> None:
    """Note all that is to be noted."""
    while await store.note_kept(now, KEEP_ALL):
        pass


async def prune(store: Store, now: float) -> int:
    await note(store, now)
    return await store.prune(now, KEEP_ALL)


async def there(store: Store, *ids: str) -> list[str]:
    return [job_id for job_id in ids if await store.get(job_id) is not None]


# --- settings ---------------------------------------------------------------------------------------------------------


async def test_what_is_set_for_a_queue_is_told_with_it(store: Store) -> None:
    """All of it is set anew each time; an empty queue with settings is not forgotten, and one without is."""
    some = QueueSettings(closed=True, keep_done=1.5, keep_failed=2.0, keep_jobs=3, keep_bytes=4)
    await store.put_queue("mail", some)
    await store.put_queue("other", CLOSED)
    await store.prune(NOW, KEEP_ALL)
    first = await store.queue("mail")
    await store.put_queue("mail", QueueSettings(keep_jobs=0))
    second = await store.queue("mail")
    await store.put_queue("mail", NOTHING_SET)
    third = await store.queue("mail")
    await store.prune(NOW, KEEP_ALL)

    assert [queue and queue.settings for queue in (first, second, third)] == [
        some,
        QueueSettings(keep_jobs=0),
        NOTHING_SET,
    ]
    assert [queue.name for queue in await store.queues()] == ["other"]


async def test_settings_and_a_pause_stand_beside_each_other(store: Store) -> None:
    await store.pause("mail", "the printer is broken", LATER)
    await store.put_queue("mail", CLOSED)
    both = await store.queue("mail")
    await store.resume("mail")
    resumed = await store.queue("mail")

    assert both is not None
    assert resumed is not None
    assert (both.paused, both.reason, both.paused_until, both.settings) == (
        True,
        "the printer is broken",
        LATER,
        CLOSED,
    )
    assert (resumed.paused, resumed.reason, resumed.paused_until, resumed.settings) == (
        False,
        None,
        None,
        CLOSED,
    )


async def test_a_deleted_queue_has_no_settings(store: Store) -> None:
    await store.put_queue("mail", CLOSED)
    deleted = await store.delete_queue("mail")

    assert (deleted.verdict, await store.queue("mail")) == ("changed", None)
    assert [one.verdict for one in await add(store, mail())] == ["stored"]


# --- pauses -----------------------------------------------------------------------------------------------------------


async def test_a_pause_ends_by_itself(node: Node) -> None:
    """With the exchange at that time, which also takes the jobs; every exchange before it tells when that is."""
    await add(node.store, mail())
    await node.store.pause("mail", "for a minute", LATER)
    before = await node.exchange(LATER - 0.01, claim=1)
    then = await node.exchange(LATER, claim=1)

    state = await node.store.queue("mail")
    assert (before.claimed, before.next_due) == ([], LATER)
    assert ([job.id for job in then.claimed], then.next_due) == (["a"], None)
    assert state is not None
    assert (state.paused, state.reason, state.paused_until) == (False, None, None)


async def test_the_last_pause_counts(node: Node) -> None:
    """With its reason and its end, or without."""
    await add(node.store, mail())
    await node.store.pause("mail", "a", NOW + 5)
    await node.store.pause("mail", "b", NOW + 10)
    first = await node.exchange(NOW + 5, claim=1)
    await node.store.pause("mail")
    then = await node.exchange(LATER, claim=1)
    state = await node.store.queue("mail")

    assert (first.claimed, first.next_due) == ([], NOW + 10)
    assert (then.claimed, then.next_due) == ([], None)
    assert state is not None
    assert (state.paused, state.reason, state.paused_until) == (True, None, None)


async def test_a_queue_that_is_resumed_waits_for_no_end_of_its_pause(node: Node) -> None:
    await node.store.pause("mail", None, LATER)
    await node.store.resume("mail")

    assert (await node.exchange(NOW)).next_due is None


async def test_each_of_many_pauses_ends_in_its_time(node: Node) -> None:
    for number in range(4):
        await add(node.store, new_job(f"j{number}", queue=f"q{number}"))
        await node.store.pause(f"q{number}", None, NOW + number + 1)
    await node.store.pause("q3")
    taken = [[job.id for job in (await node.exchange(NOW + at, claim=9)).claimed] for at in (0, 1, 3, 9)]

    assert taken == [[], ["j0"], ["j1", "j2"], []]


async def test_what_comes_into_a_paused_queue_is_taken_when_the_pause_ends(node: Node) -> None:
    """Also by a node that has found nothing before."""
    await node.store.pause("mail", None, LATER)
    await node.exchange(NOW, claim=1)
    await add(node.store, mail())
    nothing = await node.claim(now=NOW + 1)

    assert nothing == []
    assert [job.id for job in await node.claim(now=LATER)] == ["a"]


# --- closed queues ----------------------------------------------------------------------------------------------------


async def test_a_closed_queue_takes_no_new_jobs(node: Node) -> None:
    """Those that are there run; once it is open again, it takes new ones."""
    await add(node.store, mail())
    await node.store.put_queue("mail", CLOSED)
    refused = await add(node.store, mail("b"), new_job("c"), mail("d"))
    taken = [job.id for job in await node.claim(9)]
    await node.store.put_queue("mail", NOTHING_SET)
    stored = await add(node.store, mail("b"))

    assert refused == [FULL, Receipt("stored"), FULL]
    assert (taken, stored) == (["a", "c"], [Receipt("stored")])
    assert await there(node.store, "b", "d") == ["b"]


async def test_who_repeats_a_request_is_told_of_its_job(store: Store) -> None:
    """Though the queue was closed meanwhile."""
    await add(store, mail())
    await store.put_queue("mail", CLOSED)
    job = await get(store)

    same, other, new = await add(store, mail(), mail(priority=1), mail("b"))
    assert (same, other, new) == (Receipt("existing", job), Receipt("conflict", job), FULL)


async def test_of_an_atomic_add_none_is_stored_when_one_is_for_a_closed_queue(store: Store) -> None:
    """A single one as well; what is there already does not matter."""
    await add(store, mail("old"))
    await store.put_queue("mail", CLOSED)
    old = await get(store, "old")
    many = await add(store, new_job("b"), mail("c"), mail("old"), atomic=True)
    one = await add(store, mail("d"), atomic=True)
    repeated = await add(store, new_job("e"), mail("old"), atomic=True)

    assert many == [Receipt("refused"), FULL, Receipt("existing", old)]
    assert (one, repeated) == ([FULL], [Receipt("stored"), Receipt("existing", old)])
    assert await there(store, "b", "c", "d", "e") == ["e"]


async def test_the_first_job_of_an_id_is_stored_whose_queue_is_open(store: Store) -> None:
    """With its own tags, whatever others ask for who name the same id."""
    await store.put_queue("mail", CLOSED)
    first, second = mail(options=Options(tags=("closed",))), new_job(options=Options(tags=("open",)))
    refused, stored, same = await add(store, first, second, second)

    assert refused.verdict in {"closed", "conflict"}
    assert (stored, same.verdict) == (Receipt("stored"), "existing")
    assert (await get(store)).asked == second
    assert [await listed(store, tag=tag) for tag in ("closed", "open")] == [[], ["a"]]


async def test_adds_that_share_an_exchange_do_not_share_a_refusal(node: Node) -> None:
    await node.store.put_queue("mail", CLOSED)
    adds = [Add([mail()]), Add([new_job("b"), new_job("c")], atomic=True), Add([mail("d")], atomic=True)]
    receipts = await node.store.exchange(Batch(node="door", now=NOW, adds=adds))

    assert receipts.adds == [[FULL], [Receipt("stored")] * 2, [FULL]]
    assert sorted(job.id for job in await node.claim(9)) == ["b", "c"]


async def test_jobs_that_depend_on_others_are_refused_as_well(node: Node) -> None:
    await bring_to(node, Status.RUNNING)
    await node.store.put_queue("mail", CLOSED)
    waits = Options(depends_on=("a",))
    one = await node.store.add_dependents([mail("b", options=waits)], atomic=False)
    both = await node.store.add_dependents(
        [new_job("c", options=waits), mail("d", options=waits)], atomic=True
    )

    assert (one, both) == ([FULL], [Receipt("refused"), FULL])
    assert await there(node.store, "b", "c", "d") == []


async def test_a_job_that_waits_in_a_closed_queue_is_released(node: Node) -> None:
    """And what is retried there runs: it is no new job."""
    running = await bring_to(node, Status.RUNNING)
    assert running is not None
    await node.store.add_dependents([mail("b", options=Options(depends_on=("a",)))], atomic=False)
    await bring_to(node, Status.FAILED, "c", queue="mail")
    await node.store.put_queue("mail", CLOSED)
    await node.settle(running, Outcome.DONE)
    (retried,) = await node.store.retry(["c"], NOW)

    assert retried.verdict == "changed"
    assert sorted(job.id for job in await node.claim(9)) == ["b", "c"]


async def test_no_job_is_moved_into_a_closed_queue(node: Node) -> None:
    """One that is there may be edited, and one that has ended is refused as ever."""
    await add(node.store, new_job("outside"), mail("inside"))
    await bring_to(node, Status.DONE, "ended", priority=9)
    await node.store.put_queue("mail", CLOSED)
    changes = await node.store.edit(["outside", "inside", "ended", "none"], {"queue": "mail"}, NOW)
    outside = await get(node.store, "outside")

    assert [one.verdict for one in changes] == ["closed", "changed", "refused", "absent"]
    assert changes[0] == Change("outside", "closed", outside)
    assert outside.asked.queue == "default"
    assert (await edit(node.store, "inside", priority=5)).asked.priority == 5
    assert (await edit(node.store, "inside", queue="elsewhere")).asked.queue == "elsewhere"


@pytest.mark.parametrize("overlap", ["skip", "queue", "replace"])
async def test_a_firing_into_a_closed_queue_is_missed(store: Store, overlap: Any) -> None:
    """It makes no job, and replaces none; the next one after the queue is open again does."""
    await put(store, spec=Spec(cron="* * * * *", overlap=overlap), queue="mail")
    await put(store, "b", spec=Spec(cron="* * * * *"), queue="open")
    await fire(store, FIRST)
    await store.put_queue("mail", CLOSED)
    missed = await fire(store, FIRST + 60)
    schedule = await one(store)
    await store.put_queue("mail", NOTHING_SET)
    stored = await fire(store, FIRST + 120)

    assert (missed.fired, missed.stored) == (frozenset("ab"), ())
    assert (missed.cancelled, schedule.missed, schedule.last_at) == ((), 1, FIRST)
    assert schedule.next_at == FIRST + 120
    assert (await get(store, FIRST_ID)).status is (
        Status.CANCELLED if overlap == "replace" else Status.QUEUED
    )
    assert await store.get(SECOND_ID) is None
    assert any(job_id.startswith("a@") for job_id in stored.stored) is (overlap != "skip")


# --- how long jobs are kept -------------------------------------------------------------------------------------------


@pytest.mark.parametrize("status", [Status.DONE, Status.FAILED, Status.CANCELLED, Status.EXPIRED])
async def test_jobs_are_deleted_by_the_ages_of_their_queue(node: Node, status: Status) -> None:
    """In their time, and of their queue alone."""
    await bring_to(node, status, "a", queue="mail")
    await bring_to(node, status, "b", queue="other")
    settings = QueueSettings(keep_done=20.0) if status is Status.DONE else QueueSettings(keep_failed=20.0)
    await node.store.put_queue("mail", settings)
    pruned = [await prune(node.store, NOW + seconds) for seconds in (19, 20, 21)]

    assert (pruned, await there(node.store, "a", "b")) == ([0, 1, 0], ["b"])
    state = await node.store.queue("mail")
    assert state is not None
    assert state.counts == {}


async def test_the_ages_of_done_and_failed_jobs_are_apart(node: Node) -> None:
    """One that is not set is that of the settings."""
    await bring_to(node, Status.DONE, "a", queue="mail")
    await bring_to(node, Status.FAILED, "b", queue="mail")
    await node.store.put_queue("mail", QueueSettings(keep_done=10.0))

    assert (await prune(node.store, LATER), await there(node.store, "a", "b")) == (1, ["b"])


async def test_jobs_of_a_queue_that_keeps_none_go_soon_after_their_end(node: Node) -> None:
    """Not at once: whoever waits for the end still sees the job."""
    await bring_to(node, Status.DONE, "a", queue="mail")
    await node.store.put_queue("mail", QueueSettings(keep_done=0.0, keep_failed=0.0))
    soon = await prune(node.store, ENDS - 0.1)

    assert (soon, await prune(node.store, ENDS)) == (0, 1)


async def test_the_oldest_of_too_many_jobs_are_deleted(node: Node) -> None:
    for number in range(5):
        await bring_to(node, Status.DONE if number % 2 else Status.FAILED, f"j{number}", queue="mail")
        await bring_to(node, Status.DONE, f"o{number}", queue="other")
    await node.store.put_queue("mail", QueueSettings(keep_jobs=2))
    pruned = await prune(node.store, LATER)

    assert pruned == 3
    assert await there(node.store, *(f"j{number}" for number in range(5))) == ["j3", "j4"]
    assert len(await there(node.store, *(f"o{number}" for number in range(5)))) == 5


async def test_jobs_that_are_too_large_together_are_deleted(node: Node) -> None:
    for number in range(3):
        await bring_to(node, Status.DONE, f"j{number}", queue="mail", payload=b'"' + b"x" * 98 + b'"')
    await node.store.put_queue("mail", QueueSettings(keep_bytes=250))

    assert (await prune(node.store, LATER), await there(node.store, "j0", "j1", "j2")) == (1, ["j1", "j2"])


async def test_what_is_set_later_holds_for_jobs_that_have_ended(node: Node) -> None:
    """Shorter or longer, or not at all."""
    for number in range(3):
        await bring_to(node, Status.DONE, f"j{number}", queue=f"q{number}")
        await node.store.put_queue(f"q{number}", QueueSettings(keep_done=100.0))
    await note(node.store, NOW + 50)
    await node.store.put_queue("q0", QueueSettings(keep_done=60.0))
    await node.store.put_queue("q1", QueueSettings(keep_done=200.0))
    await node.store.put_queue("q2", NOTHING_SET)
    pruned = [await prune(node.store, NOW + seconds) for seconds in (59, 61, 150, 201)]

    assert (pruned, await there(node.store, "j0", "j1", "j2")) == ([0, 1, 0, 1], ["j2"])


async def test_a_job_that_was_retried_is_kept_from_its_last_end_on(node: Node) -> None:
    """Wherever it is by then, and not while it waits."""
    await bring_to(node, Status.FAILED, "a", queue="mail")
    await node.store.put_queue("mail", QueueSettings(keep_failed=20.0))
    await note(node.store, NOW + 10)
    await node.store.retry(["a"], NOW + 10)
    waiting = await prune(node.store, NOW + 25)
    await node.store.cancel(["a"], NOW + 30)
    pruned = [await prune(node.store, NOW + seconds) for seconds in (45, 50)]

    assert (waiting, pruned) == (0, [0, 1])


async def test_a_job_that_was_deleted_by_hand_is_no_trouble(node: Node) -> None:
    """Nor one that the settings of the node delete."""
    await bring_to(node, Status.DONE, "a", queue="mail")
    await bring_to(node, Status.DONE, "b", queue="mail")
    await node.store.put_queue("mail", QueueSettings(keep_done=20.0, keep_jobs=0))
    await note(node.store, LATER)
    await node.store.delete(["a"], LATER)
    pruned = await node.store.prune(LATER, replace(KEEP_ALL, done_age=0))

    assert (pruned, await prune(node.store, LATER)) == (1, 0)


async def test_a_prune_of_queues_deletes_a_step_at_most(node: Node, monkeypatch: pytest.MonkeyPatch) -> None:
    """And a look through ended jobs reads a bounded number of them."""
    monkeypatch.setattr(keeping, "LOOK", 400)
    jobs = [mail(f"j{number}", run_at=LATER, expires_at=LATER + 1) for number in range(STEP + 3)]
    for begin in range(0, len(jobs), 500):
        await add(node.store, *jobs[begin : begin + 500])
    for _ in range(2):
        await look(node.store, LATER + 1)
    await node.store.put_queue("mail", QueueSettings(keep_failed=1.0))
    looks = [await node.store.note_kept(LATER + 60, KEEP_ALL) for _ in range(3)]
    pruned = [await node.store.prune(LATER + 60, KEEP_ALL) for _ in range(3)]

    assert looks == [True, True, False]
    assert pruned == [STEP, 3, 0]


async def test_an_end_that_is_written_late_is_found_in_the_end(node: Node) -> None:
    """Jobs are looked through again from time to time."""
    await node.store.put_queue("mail", QueueSettings(keep_done=0.0))
    await note(node.store, LATER)
    await bring_to(node, Status.DONE, "a", queue="mail")
    missed = await prune(node.store, LATER + 10)
    await note(node.store, LATER + keeping.AGAIN)

    assert (missed, await prune(node.store, LATER + keeping.AGAIN)) == (0, 1)


async def test_what_no_queue_sets_is_not_looked_for(node: Node) -> None:
    """A closed queue is none that says how long its jobs are kept."""
    await bring_to(node, Status.DONE, "a", queue="mail")
    await node.store.put_queue("mail", CLOSED)

    assert not await node.store.note_kept(LATER, KEEP_ALL)
    assert await node.store.prune(LATER, KEEP_ALL) == 0


# --- damage -----------------------------------------------------------------------------------------------------------


async def _write(store: Any, sql: str) -> None:
    async def verb(tx: Transaction) -> None:
        tx.run(sql, {})

    await store._transact(verb)


@pytest.mark.parametrize(
    "damage",
    [
        "keep_jobs = -1",
        "keep_bytes = -9223372036854775808",
        "keep_done = -1, keep_failed = -9e999",
        "keep_done = 9e999, keep_failed = 9e999",
        "paused = 7, closed = 7",
        "paused_until = 9e999",
        "has_settings = 7, closed = -1",
        "reason = cast(x'fffe' as text), paused = 1",
    ],
)
@pytest.mark.parametrize(
    "open_store", ["memory", pytest.param("sqlite", marks=pytest.mark.slow)], indirect=True
)
async def test_a_damaged_row_of_a_queue_keeps_nobody_from_its_work(node: Node, damage: str) -> None:
    """What cannot have been set counts as not set; a PUT mends it. PostgreSQL refuses such values."""
    await bring_to(node, Status.DONE, "a", queue="mail")
    await node.store.put_queue("mail", QueueSettings(keep_done=1e6))
    await _write(node.store, "pragma ignore_check_constraints = on")
    await _write(node.store, f"update queues set {damage} where name = 'mail'")
    states = await node.store.queues()
    pruned = await prune(node.store, LATER)
    await add(node.store, mail("b"), new_job("c"))
    await node.store.resume("mail")
    await node.store.put_queue("mail", NOTHING_SET)

    assert [state.name for state in states] == ["mail"]
    assert (pruned, await there(node.store, "a", "b", "c")) == (0, ["a", "b", "c"])
    assert [job.id for job in await node.claim(9)] == ["b", "c"]
    state = await node.store.queue("mail")
    assert state is not None
    assert (state.paused, state.settings) == (False, NOTHING_SET)


async def test_garbage_among_the_notes_is_thrown_away(node: Node) -> None:
    """Notes of jobs that are not there, that live, or of other queues; a place that cannot be."""
    await bring_to(node, Status.DONE, "a", queue="mail")
    await add(node.store, mail("b"))
    await node.store.put_queue("mail", QueueSettings(keep_done=20.0, keep_jobs=0))
    for job_id, number, queue in (("a", 0, "other"), ("b", 0, "mail"), ("a", 98, "mail"), ("a", 99, "none")):
        await _write(
            node.store,
            f"""
            insert into kept (seq, queue, finished_at, due)
            select seq + {number}, '{queue}', 1e300, -1e300
            from jobs
            where id = '{job_id}'
            """,
        )
    await _write(
        node.store,
        "insert into sweeps (status, finished_at, seq, begun_at) values ('done', 1e300, -1, 1e300)",
    )
    await prune(node.store, LATER)
    await note(node.store, LATER)

    assert await there(node.store, "a", "b") == ["b"]


async def test_a_job_for_a_closed_queue_takes_no_id_from_one_that_follows_it(node: Node) -> None:
    """In one add; nor is the second compared with the first, where all or none are stored."""
    await node.store.put_queue("mail", QueueSettings(closed=True))
    jobs = [new_job("a", queue="mail"), new_job("a", priority=7)]
    refused = await add(node.store, *jobs, atomic=True)
    stored = await add(node.store, *jobs)
    again = await add(node.store, *jobs)

    assert [one.verdict for one in refused] == ["closed", "refused"]
    assert [one.verdict for one in stored] == ["closed", "stored"]
    assert [one.verdict for one in again] == ["conflict", "existing"]
    assert (await get(node.store)).asked.priority == 7
