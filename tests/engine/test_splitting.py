"""A batch that fails with what nobody foresaw: the entry which broke it is refused, and everything else is written."""

from collections.abc import Callable, Sequence

import msgspec
import pytest
import trio
import trio.lowlevel

from jobpipe.engine.attempt import Attempt
from jobpipe.engine.batching import STUCK
from jobpipe.engine.splitting import halves, parts
from jobpipe.engine.unforeseen import LINES, UNFORESEEN, Unforeseen, in_words
from jobpipe.errors import StoreUnavailable
from jobpipe.job import NewJob, Outcome, Status
from jobpipe.store.base import Add, Batch, ClaimRequest, Receipts, Settlement, Start
from jobpipe.store.memory import MemoryStore
from tests.engine.conftest import PLAIN, new_job, running


class Poisoned(MemoryStore):
    """A store that chokes on some batches, and counts those that it is given."""

    def __init__(self, poison: Callable[[Batch], object]) -> None:
        super().__init__()
        self.poison, self.seen = poison, 0
        self.error: Exception = TypeError("no such thing")

    async def exchange(self, batch: Batch) -> Receipts:
        self.seen += 1
        if self.poison(batch):
            await trio.lowlevel.checkpoint()
            raise self.error
        return await super().exchange(batch)


def adds(job_id: str) -> Callable[[Batch], bool]:
    return lambda batch: any(job.id == job_id for add in batch.adds for job in add.jobs)


def settles(job_id: str, *, until: int = 0) -> Callable[[Batch], bool]:
    """With an attempt to be recorded; `until`: also without, for so many times."""
    tries = iter(range(until))

    def poison(batch: Batch) -> bool:
        mine = [one for one in batch.settlements if one.id == job_id]
        return any(one.status is not Status.FAILED or next(tries, None) is not None for one in mine)

    return poison


async def test_an_add_that_cannot_be_written_is_refused_alone(autojump_clock) -> None:
    """Its asker gets the error itself; those who came with it are served."""
    store = Poisoned(adds("bad"))
    refused: list[Exception] = []

    async with running(store, expected=[UNFORESEEN]) as rig:

        async def add(job_id: str) -> None:
            try:
                await rig.enqueue(job_id)
            except TypeError as error:
                refused.append(error)

        async with trio.open_nursery() as nursery:
            for job_id in ("a", "b", "bad", "c", "d"):
                nursery.start_soon(add, job_id)
        for job_id in ("a", "b", "c", "d"):
            assert (await rig.ended(job_id)).status is Status.DONE
        assert await rig.store.get("bad") is None
        assert rig.node.ledger.arriving == 0
        lines = rig.logged(UNFORESEEN)

    assert refused == [store.error]
    assert [line["exc_info"] for line in lines] == [store.error] * len(lines)


@pytest.mark.parametrize("until", [0, 1])
async def test_an_outcome_that_cannot_be_written_fails_its_job_in_words(autojump_clock, until) -> None:
    """The plainest settlement that the store takes says so; the jobs that ended with it are done."""
    store = Poisoned(settles("bad", until=until))
    async with running(store, expected=[UNFORESEEN], workers=5) as rig:
        await rig.add(*(new_job(job_id) for job_id in ("a", "b", "bad", "c", "d")))
        for job_id in ("a", "b", "c", "d"):
            assert (await rig.ended(job_id)).status is Status.DONE
        bad = await rig.ended("bad")

    assert bad.status is Status.FAILED
    assert bad.state.error is not None
    assert bad.state.error.type == "InternalError"
    assert "could not be written (TypeError: no such thing)" in bad.state.error.message
    assert [one.outcome for one in bad.attempts] == ([] if until else [Outcome.FAIL])


async def test_an_outcome_that_can_be_written_in_no_way_is_given_up_aloud(autojump_clock) -> None:
    """The node goes on; the job is taken back when it ends."""
    store = Poisoned(lambda batch: any(one.id == "bad" for one in batch.settlements))
    async with running(store, expected=[UNFORESEEN, "the end of a job cannot be written"]) as rig:
        await rig.add(new_job("bad"), new_job("a"))
        assert (await rig.ended("a")).status is Status.DONE
        await trio.sleep(1)
        assert rig.logged("the end of a job cannot be written")
        store.poison = lambda _batch: False
        await rig.node.lease.rescue()
        rescued = await rig.store.rescue("other", rig.node.clock.now() + 3600)
        await rig.kill()

    assert [one.id for one in rescued] == ["bad"]


@pytest.mark.parametrize("waited_for", [True, False])
async def test_a_start_that_cannot_be_written_costs_at_most_its_job(autojump_clock, waited_for) -> None:
    """One that nobody waits for is dropped; a job whose start must be stored first fails in words."""
    store = Poisoned(lambda batch: batch.starts and not batch.settlements)
    options = msgspec.structs.replace(PLAIN, on_crash="fail" if waited_for else "retry")
    async with running(store, expected=[UNFORESEEN]) as rig:
        await rig.enqueue("a", ("sleep", 5), options=options)
        job = await rig.ended("a")

    assert job.status is (Status.FAILED if waited_for else Status.DONE)
    assert (job.state.error is not None and job.state.error.type == "InternalError") is waited_for


async def test_a_job_that_cannot_be_claimed_is_put_out_of_the_way(autojump_clock) -> None:
    """It fails; those behind it are claimed."""
    store = Poisoned(lambda _batch: False)
    for name in ("a", "bad", "b"):
        await store.exchange(Batch(node="n0", now=0, adds=[adding(new_job(name))]))
    store._db.execute("update jobs set claim = 9223372036854775807 where id = 'bad'")
    async with running(store, expected=[UNFORESEEN]) as rig:
        assert (await rig.ended("a")).status is Status.DONE
        assert (await rig.ended("b")).status is Status.DONE
        bad = await rig.ended("bad")
        counts = await rig.statuses()

    assert (bad.status, bad.state.error and bad.state.error.type) == (Status.FAILED, "DamagedRow")
    assert (counts[Status.DONE], counts[Status.FAILED], counts[Status.QUEUED]) == (2, 1, 0)


async def test_of_two_claims_the_one_that_breaks_the_batch_is_found(autojump_clock) -> None:
    """The other asker is served."""
    store = Poisoned(lambda batch: any("bad" in claim.kinds for claim in batch.claims))
    async with running(store, expected=[UNFORESEEN]) as rig:
        with rig.node.ledger.claiming(Asker(frozenset({"bad"}))):
            await rig.enqueue("a")
            assert (await rig.ended("a")).status is Status.DONE


class Asker:
    """Asks for a job of its kinds whenever somebody writes."""

    def __init__(self, kinds: frozenset[str]) -> None:
        self.kinds = kinds

    def learn(self, *, held_back: bool) -> None:
        pass

    def wanted(self) -> int:
        return 1

    def pressing(self) -> bool:
        return False

    def request(self, limit: int) -> ClaimRequest:
        return ClaimRequest(limit=limit, kinds=self.kinds)

    def take(self, asked: ClaimRequest, attempts: Sequence[Attempt]) -> None:
        raise NotImplementedError


def adding(job: NewJob) -> Add:
    return Add([job])


async def test_where_an_empty_batch_fails_too_the_store_is_to_blame(autojump_clock) -> None:
    """Nothing is refused for good: it is as if the disk were full."""
    store = Poisoned(lambda _batch: False)
    async with running(store, expected=[UNFORESEEN, "the store cannot write"]) as rig:
        await rig.enqueue("a", ("sleep", 1))
        store.poison = lambda _batch: True
        with pytest.raises(StoreUnavailable, match="TypeError: no such thing"):
            await rig.enqueue("b")
        await trio.sleep(10)
        assert rig.node.ledger.trouble == "TypeError: no such thing"
        store.poison = lambda _batch: False
        job = await rig.ended("a")

    assert job.status is Status.DONE


async def test_a_store_that_fails_amid_the_parts_keeps_the_rest_for_later(autojump_clock) -> None:
    """Outcomes that were not written are tried again, and none is written twice."""
    store = Poisoned(lambda batch: len(batch.settlements) > 1)

    async with running(store, expected=[UNFORESEEN, "the store cannot write"], workers=8) as rig:
        await rig.add(*(new_job(str(number)) for number in range(8)))
        await trio.lowlevel.checkpoint()
        store.error = TypeError("together")
        for number in range(8):
            assert (await rig.ended(str(number))).status is Status.DONE
        assert rig.node.ledger.stale == 0


async def test_a_time_that_is_no_time_does_not_stop_the_ledger(autojump_clock) -> None:
    """And a job that stays due, since nothing can be done about it, keeps nobody busy."""
    store = Strange(float("nan"))
    async with running(store) as rig:
        await rig.enqueue("a")
        assert (await rig.ended("a")).status is Status.DONE
        store.due, before = 5.0, store.seen
        rig.node.ledger.look()
        await trio.sleep(10)
        looks = store.seen - before

    assert looks <= 10 / STUCK + 20


class Strange(MemoryStore):
    """A store whose next job is due at a strange time."""

    def __init__(self, due: float) -> None:
        super().__init__()
        self.due, self.seen = due, 0

    async def exchange(self, batch: Batch) -> Receipts:
        self.seen += 1
        return msgspec.structs.replace(await super().exchange(batch), next_due=self.due)


async def test_halves_are_the_whole_in_the_same_order(autojump_clock) -> None:
    """However often a batch is cut, its parts come in the order in which they are carried out."""
    async with running() as rig:
        ledger = rig.node.ledger
        for number in range(5):
            ledger._settlements.append(settlement(number))
            ledger._noted[number, 1] = start(number)
        whole = ledger._gather()
        cut = [whole]
        while any(halves(one) for one in cut):
            cut = [half for one in cut for half in (halves(one) or (one,))]
        await rig.kill()

    assert [parts(one)[0] for one in cut] == list(parts(whole))
    assert all(len(parts(one)) == 1 for one in cut)


def settlement(number: int) -> Settlement:
    return Settlement(
        seq=number,
        id=str(number),
        queue="q",
        claim=1,
        outcome=None,
        status=Status.QUEUED,
        attempt=0,
        settled_at=0,
    )


def start(number: int) -> Start:
    return Start(number, 1, 1, 0.0)


async def test_of_many_tracebacks_a_few_a_second_are_logged(autojump_clock) -> None:
    """The next line says how many were left out."""
    async with running(expected=[UNFORESEEN]) as rig:
        unforeseen = Unforeseen()
        for _ in range(100):
            unforeseen.tell(ValueError("again"), "nothing")
        await trio.sleep(2)
        unforeseen.tell(ValueError("again"), "nothing")

    assert len(rig.logged(UNFORESEEN)) == LINES + 1
    assert rig.logged(UNFORESEEN)[-1]["more"] == 100 - LINES


@pytest.mark.parametrize(
    ("error", "words"),
    [
        (ValueError("one\ntwo"), "ValueError: one"),
        (ValueError("\ud800\0"), "ValueError: ? "),
        (KeyError(), "KeyError:"),
    ],
)
def test_an_error_in_words_is_one_line_that_any_store_can_hold(error, words) -> None:
    """No line feed, no NUL, no half of a character."""
    assert in_words(error) == words
