"""One language of filters, over every store: lists find just the jobs that a filter means."""

import itertools
from collections.abc import Mapping, Sequence
from typing import Any

import pytest
from msgspec.structs import replace

from jobpipe.job import ENDED, JobError, Options, Outcome, Status
from jobpipe.store.base import Claimed, Filter, NewGroup, Place, Store
from jobpipe.store.matching import matches
from jobpipe.store.verbs.transaction import Transaction
from jobpipe.transitions import Stored
from tests.store.test_contract import EACH, NOW, Node, add, bring_to, get, new_job

pytestmark = pytest.mark.long

FILTERS: Sequence[dict[str, Any]] = [
    {"status": (Status.QUEUED, Status.FAILED)},
    {"status": (Status.RUNNING, Status.SCHEDULED, Status.DONE)},
    {"status": tuple(Status)},
    {"queue": ("a", "b")},
    {"queue": ("a", "none")},
    {"queue": ("a", "b", "a"), "status": (Status.FAILED, Status.DONE, Status.FAILED)},
    {"queue": ("a", "b"), "status": Status.QUEUED},
    {"queue": ("a", "b"), "status": (Status.FAILED, Status.CANCELLED)},
    {"queue": ("a", "b"), "status": (Status.DONE, Status.FAILED)},
    {"queue": "a", "status": (Status.QUEUED, Status.RUNNING)},
    {"queue": (*(f"q{number}" for number in range(60)), "a")},
    {"kind": "echo"},
    {"kind": ("echo", "demo")},
    {"kind": "e*"},
    {"kind": "*"},
    {"kind": ("dem*", "echo")},
    {"kind": "e*", "queue": "a"},
    {"kind": ("echo", "demo"), "status": (Status.QUEUED, Status.FAILED)},
    {"tag": ("t", "u")},
    {"tag": ("t", "u"), "status": Status.DONE},
    {"tag": (*(f"t{number}" for number in range(60)), "t")},
    {"key": "acme"},
    {"key": ("acme", "bell", "none"), "queue": ("a", "b")},
    {"key": "bell", "status": Status.DONE},
    {"key": ("acme", "bell"), "tag": "t", "status": (Status.QUEUED, Status.RUNNING, Status.FAILED)},
    {"id": "a-done"},
    {"id": ("a-done", "b-failed", "none")},
    {"id": ("a-done", "b-failed"), "status": Status.DONE},
    {"id": ("a-done", "b-done"), "tag": "t"},
    {"node": "node"},
    {"node": ("node", "other"), "status": Status.RUNNING},
    {"error_type": "ValueError"},
    {"error_type": ("ValueError", "KeyError"), "queue": "b"},
    {"ended_after": NOW + 1},
    {"ended_before": NOW + 1},
    {"ended_after": NOW, "ended_before": NOW + 0.5, "status": Status.DONE},
    {"created_after": NOW, "created_before": NOW + 0.5, "queue": ("a", "b")},
    {"text": "a-"},
    {"text": "no such file", "queue": ("a", "b")},
]


class Persistent(Node):
    """Asks again where its claim came to nothing but there is more, as where jobs stand in lanes."""

    async def take(self, now: float = NOW) -> Claimed:
        while True:
            receipts = await self.exchange(now, claim=1)
            if receipts.claimed:
                return receipts.claimed[0]
            assert receipts.more_ready


@pytest.fixture
async def node(store: Store) -> Node:
    """A node with a lease that outlives all of this."""
    one = Persistent(store)
    await one.join(lease_until=NOW + 1e6)
    return one


async def fill(node: Node) -> list[str]:
    """Jobs in every status, of two queues and kinds; returns their ids."""
    ids = list[str]()
    for number, (status, queue) in enumerate(itertools.product(EACH, ("a", "b"))):
        job_id = f"{queue}-{status}"
        tags = (("t",), ("u",), ("t", "u"), ())[number % 4]
        changes = {
            "queue": queue,
            "kind": ("echo", "demo")[number % 2],
            "options": Options(tags=tags, key=("acme", None, "bell")[number % 3]),
            "created_at": NOW - number % 3,
        }
        await bring_to(node, status, job_id, **changes)
        ids.append(job_id)
    return ids


async def stored(store: Any, ids: Sequence[str]) -> list[Stored]:
    """The jobs as they are stored, the newest first."""
    found: Mapping[str, Stored] = await store._transact(lambda tx: tx.lock(ids))
    return sorted(found.values(), key=lambda one: (-one.job.asked.created_at, -one.seq))


async def check(store: Store, ids: Sequence[str], where: dict[str, Any]) -> list[str]:
    """A list holds just the jobs that its filter means, each once, in order; returns them."""
    jobs = await stored(store, ids)
    asked = Filter(**where)
    pages, before = list[str](), None
    while True:
        page = await store.jobs(asked, 3, before)
        pages += [job.id for job in page.jobs]
        if (before := page.next_before) is None:
            break

    assert pages == [one.job.id for one in jobs if matches(one, asked)], where
    assert len(pages) == len(set(pages)), where
    return pages


async def test_a_list_holds_the_jobs_that_its_filter_means(node: Node) -> None:
    """Each once, in order, in pages of any size."""
    ids = await fill(node)
    for where in FILTERS:
        await check(node.store, ids, where)


@pytest.mark.parametrize(
    ("where", "meant"),
    [
        ({"group": "g"}, "cba"),
        ({"group": ("g", "h")}, "edcba"),
        ({"group": ("none", "h")}, "ed"),
        ({"group": (*(f"g{number}" for number in range(60)), "g")}, "cba"),
        ({"group": ("g", "h"), "tag": "t"}, "da"),
        ({"group": ("g", "h"), "queue": "default", "status": (Status.DONE, Status.CANCELLED)}, "c"),
        ({"group": "g", "status": Status.QUEUED}, "ba"),
        ({"group": "g", "id": ("a", "d")}, "a"),
        ({"group": ("g", "h"), "created_after": NOW - 1, "kind": "e*"}, "ec"),
    ],
    ids=str,
)
async def test_a_list_holds_the_jobs_of_groups_that_its_filter_means(
    store: Store, where: dict[str, Any], meant: str
) -> None:
    members = {
        job_id: new_job(
            job_id,
            created_at=NOW - 2 + (job_id in "ec"),
            options=Options(group=group, tags=("t",) if job_id in "ad" else ()),
        )
        for group, ids in (("g", "abc"), ("h", "de"))
        for job_id in ids
    }
    for group, ids in (("g", "abc"), ("h", "de")):
        await store.add_group(
            NewGroup(id=group, on_failure="go_on", jobs=[members[one] for one in ids], then=None), NOW
        )
    await add(store, new_job("outside"))
    await store.cancel(["c"], NOW)

    assert sorted(await check(store, [*members, "outside"], where)) == sorted(meant)


@pytest.mark.parametrize("where", [{}, {"queue": ("a", "b")}, {"status": Status.DONE}], ids=str)
async def test_a_list_up_to_a_number_holds_no_later_job(node: Node, where: dict[str, Any]) -> None:
    ids = await fill(node)
    jobs = await stored(node.store, ids)
    top = sorted(one.seq for one in jobs)[len(jobs) // 2]
    asked = Filter(**where, top=top)
    page = await node.store.jobs(asked, 100, None)

    assert [job.id for job in page.jobs] == [one.job.id for one in jobs if matches(one, asked)]
    assert len(page.jobs) > 0


async def test_the_edge_of_a_page_of_several_ranges_is_a_place(node: Node) -> None:
    """Behind which the next page goes on, though the ranges hold the same jobs."""
    for number in range(6):
        await bring_to(node, Status.DONE, f"j{number}", options=Options(tags=("t", "u")))
    where = Filter(tag=("t", "u"))
    first = await node.store.jobs(where, 4, None)
    assert isinstance(first.next_before, Place)
    rest = await node.store.jobs(where, 4, first.next_before)

    assert [job.id for job in first.jobs] == ["j5", "j4", "j3", "j2"]
    assert [job.id for job in rest.jobs] == ["j1", "j0"]


async def test_texts_that_no_database_can_hold_match_nothing(store: Store) -> None:
    for name in ("queue", "tag", "group", "key", "id", "error_type", "fingerprint", "text"):
        value: Any = "a\0b"
        asked: list[Any] = [value] if name == "text" else [value, (value, "c")]
        for one in asked:
            assert not (await store.jobs(replace(Filter(), **{name: one}), 5, None)).jobs


async def test_a_filter_of_an_error_finds_jobs_that_wait_again(node: Node) -> None:
    """Their last error counts."""
    await bring_to(node, Status.RETRYING, "a")
    await bring_to(node, Status.FAILED, "b")
    job = await bring_to(node, Status.RUNNING, "c")
    assert job is not None
    await node.settle(job, Outcome.FAIL, error=JobError("KeyError", "x"))
    found = [job.id for job in (await node.store.jobs(Filter(error_type="ValueError"), 9, None)).jobs]

    assert sorted(found) == ["a", "b"]
    assert (await get(node.store, "c")).status in ENDED


@pytest.mark.parametrize("damage", [b"{", b"\xff", b"[1]", b'"key"', b'{"key":["acme"]}', b""])
async def test_a_row_that_cannot_be_read_has_no_key_and_hides_no_other(store: Store, damage: bytes) -> None:
    await add(store, *(new_job(one, options=Options(key="acme")) for one in "ab"))

    async def harm(tx: Transaction) -> None:
        tx.run("update jobs set options = :damage where id = 'a'", {"damage": damage})

    some: Any = store
    await some._transact(harm)

    assert [job.id for job in (await store.jobs(Filter(key=("acme", "k")), 9, None)).jobs] == ["b"]
