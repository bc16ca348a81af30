"""The audit, over every store: an act has its row where it has changed something, in the same transaction."""

from collections.abc import Sequence
from typing import Any

import pytest
from msgspec.structs import replace

from jobpipe.acts import By, Done
from jobpipe.lanes import USUAL, KeySettings, Limits, PerKey, Rate
from jobpipe.schedules import Spec, run_by_hand
from jobpipe.store.base import (
    NOTHING_SET,
    STEP,
    AuditFilter,
    AuditPlace,
    Changes,
    Filter,
    NewOperation,
    QueueSettings,
    Store,
)
from jobpipe.store.verbs import audit, jobs
from jobpipe.store.verbs.facade import SharedVerbs
from jobpipe.store.verbs.transaction import Transaction
from tests.store.test_contract import LATER, NOW, Node, add, new_job
from tests.store.test_open_groups import OPEN, opened
from tests.store.test_operations import do_all

pytestmark = pytest.mark.long

BY = By(who="ann", address="10.0.0.7", node="vm-1", at=NOW + 1)
HOURLY = Spec(every=3600)


async def acts(store: Store, **where: Any) -> Sequence[Done]:
    """The acts that a filter means, the oldest first."""
    page = await store.audit(AuditFilter(**where))
    assert page.next_before is None
    return page.acts[::-1]


async def told(store: Store) -> list[tuple[Any, ...]]:
    """What was done, and what it has changed."""
    return [(one.act, one.what, one.name, one.changes) for one in await acts(store)]


async def fill(store: Store, count: int) -> None:
    """Rows without the acts."""
    assert isinstance(store, SharedVerbs)

    async def write(tx: Transaction) -> None:
        for number in range(count):
            by = replace(BY, at=NOW + number // 2, who=f"w{number % 3}")
            act: Any = ("cancel", "retry")[number % 2]
            audit.write(tx, by, act, audit.Noun("job", f"j{number % 5}"), {"n": (None, number)})

    await store._transact(write)


async def test_what_is_done_to_jobs_is_kept_with_what_it_has_changed(store: Store) -> None:
    """Each job of a call in a row of its own."""
    await add(store, *(new_job(job_id, run_at=LATER) for job_id in "abcd"))
    await store.edit(["a"], {"priority": 5, "tags": ("x",), "payload": b'"22"'}, NOW, by=BY)
    await store.promote(["a"], NOW + 2, by=BY)
    await store.cancel(["b", "c"], NOW, by=BY)
    await store.retry(["b"], NOW + 3, by=BY)
    await store.delete(["c"], NOW, by=BY)

    assert await told(store) == [
        ("edit", "job", "a", {"priority": (0, 5), "tags": ([], ["x"]), "payload_bytes": (7, 4)}),
        ("promote", "job", "a", {"status": ("scheduled", "queued"), "run_at": (LATER, NOW + 2)}),
        ("cancel", "job", "b", {"status": ("scheduled", "cancelled")}),
        ("cancel", "job", "c", {"status": ("scheduled", "cancelled")}),
        ("retry", "job", "b", {"status": ("cancelled", "queued"), "run_at": (LATER, NOW + 3)}),
        (
            "delete",
            "job",
            "c",
            {"status": ("cancelled", None), "kind": ("echo", None), "queue": ("default", None)},
        ),
    ]
    (one, *_) = await acts(store)
    assert (one.who, one.address, one.node, one.at, one.error) == ("ann", "10.0.0.7", "vm-1", NOW + 1, None)
    assert [done.act for done in await acts(store, what="job", name="c")] == ["cancel", "delete"]


async def test_what_is_refused_or_changes_nothing_is_no_act(store: Store) -> None:
    """Nor what nobody does by hand."""
    await add(store, new_job("a"), new_job("later", run_at=LATER))
    await store.put_schedule("s", HOURLY, new_job(""), NOW)

    async def all_of_it(by: By | None) -> None:
        await store.promote(["a"], NOW, by=by)  # it is ready
        await store.retry(["a"], NOW, by=by)
        await store.edit(["a"], {"priority": 0}, NOW, by=by)
        for verb in (store.cancel, store.promote, store.delete):
            await verb(["none"], NOW, by=by)
        await store.resume("new", by=by)
        await store.put_queue("default", NOTHING_SET, Limits(), by=by)
        await store.delete_queue("default", by=by)
        await store.delete_queue("none", by=by)
        await store.put_key("default", "k", USUAL, by=by)
        await store.resume_key("default", "k", by=by)
        await store.put_schedule("s", HOURLY, new_job(""), NOW, by=by)
        await store.resume_schedule("s", NOW, by=by)
        for missing in (
            store.pause_schedule("none", None, by=by),
            store.delete_schedule("none", by=by),
            store.close_group("none", NOW, by=by),
            store.stop_operation("none", NOW, by=by),
        ):
            await missing

    await all_of_it(BY)
    await store.cancel(["later"], NOW)
    await store.pause("default", "lunch", None)
    await store.resume("default")
    await store.pause_schedule("s", "lunch")
    await store.delete_schedule("s")

    assert await told(store) == []


async def test_what_is_done_to_queues_and_keys_is_kept(store: Store) -> None:
    """Settings and limits together; a pause that is over is none."""
    limits = Limits(max_running=2, rate=Rate(10, 60.0, 5), per_key=PerKey(ordered=True))
    lunch = replace(BY, reason="lunch")
    await store.put_queue("q", QueueSettings(closed=True, keep_done=60), limits, by=BY)
    await store.pause("q", "lunch", NOW + 9, by=lunch)
    await store.pause("q", "lunch", NOW + 9, by=lunch)  # says the same
    await store.pause("q", "lunch", NOW + 99, by=replace(lunch, at=NOW + 20))  # the first is over
    later = replace(BY, at=NOW + 20)
    await store.resume("q", by=later)
    await store.pause_key("q", "k", by=later)
    await store.pause_key("q", "k", by=later)
    await store.resume_key("q", "k", by=later)
    await store.put_key("q", "k", KeySettings(weight=3), by=later)
    await store.delete_queue("q", by=later)

    paused = {"paused": (False, True), "reason": (None, "lunch"), "paused_until": (None, NOW + 9)}
    set_ = {
        "closed": (False, True),
        "keep_done": (None, 60),
        "max_running": (None, 2),
        "rate": (None, {"limit": 10, "period": 60, "burst": 5}),
        "per_key.ordered": (False, True),
    }
    assert await told(store) == [
        ("put", "queue", "q", set_),
        ("pause", "queue", "q", paused),
        ("pause", "queue", "q", paused | {"paused_until": (None, NOW + 99)}),
        (
            "resume",
            "queue",
            "q",
            {"paused": (True, False), "reason": ("lunch", None), "paused_until": (NOW + 99, None)},
        ),
        ("pause", "key", "q", {"paused": (False, True)}),
        ("resume", "key", "q", {"paused": (True, False)}),
        ("put", "key", "q", {"weight": (1, 3)}),
        ("delete", "queue", "q", {"name": ("q", None)} | {name: pair[::-1] for name, pair in set_.items()}),
    ]
    found = await acts(store)
    assert [one.reason for one in found[:4]] == [None, "lunch", "lunch", None]
    assert {one.key for one in found if one.what == "key"} == {"k"}


async def test_what_is_done_to_schedules_and_groups_is_kept(store: Store) -> None:
    """A run by hand says which job it has made; a group is closed once."""
    await store.put_schedule("s", HOURLY, new_job(""), NOW, by=BY)
    await store.put_schedule("s", Spec(every=60), new_job("", priority=1), NOW, by=BY)
    await store.pause_schedule("s", "lunch", by=BY)
    await store.pause_schedule("s", "lunch", by=BY)
    await store.resume_schedule("s", NOW, by=BY)
    schedule = await store.schedule("s")
    assert schedule is not None
    job = run_by_hand(schedule, NOW)
    assert job is not None
    assert (await store.add_by_hand(job, BY)).verdict == "stored"
    await store.delete_schedule("s", by=BY)
    await store.add_group(opened(), NOW)
    for _ in range(2):
        await store.close_group("g", NOW + OPEN / 2, by=BY)

    created, *others, deleted, closed = await told(store)
    assert (created[3]["every"], created[3]["job.kind"]) == ((None, 3600), (None, "echo"))
    assert [one[3] for one in others] == [
        {"every": (3600, 60), "job.priority": (0, 1)},
        {"paused": (False, True), "reason": (None, "lunch")},
        {"paused": (True, False), "reason": ("lunch", None)},
        {"job": (None, job.id)},
    ]
    assert {one[1:3] for one in (created, *others, deleted)} == {("schedule", "s")}
    assert [one[0] for one in others] == ["put", "pause", "resume", "run"]
    assert (deleted[0], deleted[3]["every"]) == ("delete", (60, None))
    assert closed == ("close", "group", "g", {"closed": (False, True)})


async def test_a_job_that_is_enqueued_by_hand_is_kept_once(store: Store) -> None:
    """Sent again it is there already; a closed queue takes none."""
    await store.put_queue("closed", QueueSettings(closed=True))
    for job in (new_job("a"), new_job("a"), new_job("b", queue="closed")):
        await store.add_by_hand(job, BY)

    changes = {"status": (None, "queued"), "kind": (None, "echo"), "queue": (None, "default")}
    assert await told(store) == [("enqueue", "job", "a", changes)]


async def test_an_operation_has_one_row_that_says_how_many_jobs_it_has_changed(store: Store) -> None:
    """Once it has ended, or was stopped, which is an act too."""
    await Node(store).join(lease_until=NOW + 1e6)
    await add(store, *(new_job(job_id, run_at=LATER) for job_id in "abc"))
    move = NewOperation(
        id="o", verb="move", where=Filter(queue="default"), changes=Changes(queue="slow"), rate=10
    )
    begun = await store.begin_operation(move, NOW, by=BY)
    before = [(one.act, one.jobs) for one in await acts(store)]
    await do_all(store, begun)
    await store.stop_operation("o", NOW, by=BY)  # it has ended
    stopped = replace(move, id="p", verb="cancel", where=Filter(id="none"), changes=None, rate=None)
    await store.begin_operation(stopped, NOW, by=BY)
    for _ in range(2):
        await store.stop_operation("p", NOW, by=BY)

    assert before == [("move", None)]
    changes = {"filter": (None, {"queue": "default"}), "rate": (None, 10), "queue": (None, "slow")}
    found = await acts(store)
    assert found[0].changes == changes
    assert [(one.act, one.name, one.jobs) for one in found] == [
        ("move", "o", 3),
        ("cancel", "p", 0),
        ("stop", "p", 0),
    ]


async def test_a_list_is_walked_by_its_places_with_any_filter(
    store: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Each act once, the newest first; also where so few rows are looked at that a page has none of them."""
    monkeypatch.setattr(audit, "LOOKED", 4)
    await fill(store, 60)

    async def walked(**where: Any) -> list[int]:
        numbers, place, pages = list[int](), None, 0
        while pages == 0 or place is not None:
            page = await store.audit(AuditFilter(**where), 3, place)
            assert len(page.acts) <= 3
            numbers += [one.changes["n"][1] for one in page.acts]
            place, pages = page.next_before, pages + 1
        return numbers

    every = range(59, -1, -1)
    assert await walked() == [*every]
    assert await walked(who="w1") == [n for n in every if n % 3 == 1]
    assert await walked(act="retry") == [n for n in every if n % 2]
    assert await walked(what="job", name="j4") == [n for n in every if n % 5 == 4]
    assert await walked(who="w2", act="cancel", name="j3") == [
        n for n in every if n % 3 == 2 and n % 2 == 0 and n % 5 == 3
    ]
    assert await walked(after=NOW + 3, before=NOW + 5) == [9, 8, 7, 6]
    assert await walked(act="retry", who="w0", after=NOW + 3, before=NOW + 5) == [9]
    assert await walked(what="queue") == await walked(who="\0") == await walked(name="none") == []


async def test_old_acts_are_deleted_a_step_at_a_time(store: Store) -> None:
    await fill(store, STEP + 10)
    deleted = [await store.forget_audit(NOW + (STEP + 6) // 2) for _ in range(3)]
    (first, *_) = (await store.audit(AuditFilter(), 100)).acts[::-1]

    assert deleted == [STEP, 6, 0]
    assert first.changes["n"] == (None, STEP + 6)


DAMAGE: Sequence[tuple[str, Any]] = [
    ("changes", b""),
    ("changes", b"\xff\xfe"),
    ("changes", b"[" * 5000),
    ("changes", b'{"a":1}'),
    ("changes", b'{"a":["\\ud800",1]}'),
    ("act", "explode"),
    ("act", ""),
    ("what", "é\u202e\x07" * 999),
    ("at", 0.0),
    ("jobs", -(2**63 - 1)),
]


async def test_no_damage_in_a_row_keeps_others_from_being_read(store: Store) -> None:
    assert isinstance(store, SharedVerbs)
    await fill(store, len(DAMAGE) + 1)

    async def damage(tx: Transaction) -> None:
        for number, (column, value) in enumerate(DAMAGE):
            tx.run(
                f"update audit set {column} = :value where seq = "
                "(select seq from audit order by seq limit 1 offset :number)",
                {"value": value, "number": number},
            )

    await store._transact(damage)
    found = await acts(store)
    (wrong,) = await acts(store, act="")

    assert len(found) == len(DAMAGE) + 1
    assert sum(one.error is not None for one in found) == len(DAMAGE) - 2
    assert (wrong.act, wrong.what, wrong.error is None) == (None, "job", False)
    assert found[-1].error is None
    assert (await store.audit(AuditFilter(), 1, AuditPlace(NOW, 1 << 62))).acts


async def test_what_is_undone_has_no_row(store: Store) -> None:
    """An act and its row are one transaction: where the one fails, the other is not there."""
    assert isinstance(store, SharedVerbs)
    await add(store, new_job("a", run_at=LATER))

    async def fail(tx: Transaction) -> None:
        await audit.of_jobs(BY, "cancel", lambda tx: jobs.cancel(tx, ["a"], NOW))(tx)
        raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        await store._transact(fail)
    job = await store.get("a")

    assert job is not None
    assert job.status == "scheduled"
    assert await told(store) == []
