"""What a node holds: from the claim until the ledger has a settlement."""

import random

import pytest
import trio
from structlog.testing import capture_logs

from jobpipe.clock import VirtualClock
from jobpipe.engine import outcomes
from jobpipe.engine.attempt import Attempt
from jobpipe.engine.held import FAILURES, Held
from jobpipe.engine.unforeseen import UNFORESEEN
from jobpipe.job import Outcome, Status
from tests.engine.conftest import NOW, claimed


def held_here(*jobs: tuple[int, str]) -> tuple[Held, list[Attempt]]:
    """What holds these jobs, each given by its number and queue, and their attempts."""
    held = Held(VirtualClock(NOW), lambda _kind: 7, random.Random(0))
    claims = [claimed(f"job-{seq}", seq=seq, queue=queue) for seq, queue in jobs]
    return held, list(held.hold(claims))


def test_a_job_that_leaves_it_to_the_handler_has_the_handlers_number_of_retries() -> None:
    """From the claim on, so that whoever ends the attempt goes by it."""
    held, _ = held_here()
    decided, asked = held.hold([claimed(max_retries=None), claimed(seq=2, max_retries=0)])

    assert (decided.job.max_retries, asked.job.max_retries) == (7, 0)


def test_what_is_held_can_be_found() -> None:
    """By job, by claim, by queue, and by how far it has come."""
    held, (first, second, third) = held_here((1, "mail"), (2, "mail"), (3, "other"))
    first.taken, first.started_at, second.taken = True, NOW, True

    assert list(held) == [first, second, third]
    assert held.of_jobs(["job-3", "job-1", "absent"]) == [first, third]
    assert held.of_claims([(2, 1), (3, 0)]) == [second]
    assert held.unbegun("mail") == [second]
    assert held.untaken() == [third]
    assert (held.running, held.busy) == ([first], 1)


async def test_what_is_settled_is_held_no_more(autojump_clock) -> None:
    """It is counted by its outcome, once; a claim that is not held is passed over."""
    held, (first, second) = held_here((1, "mail"), (2, "mail"))
    done = held.settlement(first, outcomes.returned(1, 100))
    back = held.settlement(second, outcomes.HANDED_BACK)
    released = [held.release(one) for one in (done, back, done)]

    assert (done.status, back.status) == (Status.DONE, Status.QUEUED)
    assert released == [first, second, None]
    assert (first.over, second.over, list(held)) == (done, back, [])
    assert held.tally == {Outcome.DONE: 1, None: 1}


def test_what_another_claim_has_is_held_no_more_and_not_counted() -> None:
    """There is nothing to settle."""
    held, (attempt,) = held_here((1, "mail"))
    held.lose(attempt)

    assert (attempt.over, list(held), held.tally) == ("lost", [], {})


async def test_a_verdict_that_no_settlement_can_be_made_of_fails_the_job(
    autojump_clock, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The job must not stay held for it."""
    held, (attempt,) = held_here((1, "mail"))
    settlement, calls = outcomes.settlement, []

    def once(*args, **kwargs):
        calls.append(args)
        if len(calls) == 1:
            raise ValueError("odd")
        return settlement(*args, **kwargs)

    monkeypatch.setattr(outcomes, "settlement", once)
    with capture_logs() as log:
        written = held.settlement(attempt, outcomes.returned(1, 100))

    assert (written.status, written.error and written.error.type) == (Status.FAILED, "InternalError")
    assert [line["event"] for line in log] == [UNFORESEEN]


async def test_who_waits_until_no_handler_runs_is_told_at_the_last_end(autojump_clock) -> None:
    """Jobs that have not begun do not count."""
    held, (first, second, _) = held_here((1, "mail"), (2, "mail"), (3, "mail"))
    first.started_at = second.started_at = NOW
    async with trio.open_nursery() as nursery:
        nursery.start_soon(held.quiet)
        await trio.testing.wait_all_tasks_blocked()
        held.release(held.settlement(first, outcomes.INTERRUPTED))
        await trio.testing.wait_all_tasks_blocked()
        waits = len(nursery.child_tasks)
        held.release(held.settlement(second, outcomes.INTERRUPTED))

    assert waits == 1


async def test_of_many_failed_jobs_a_few_a_second_are_told(autojump_clock) -> None:
    """The next line says how many more there were."""
    held, attempts = held_here(*((seq, "mail") for seq in range(100)))
    with capture_logs() as log:
        for attempt in attempts:
            held.tell(attempt, held.settlement(attempt, outcomes.broken(ValueError("bad"))))
        await trio.sleep(2)
        held.tell(attempts[0], held.settlement(attempts[0], outcomes.broken(ValueError("bad"))))

    assert [line["event"] for line in log] == ["job failed"] * (FAILURES + 1)
    assert log[-1]["more"] == 100 - FAILURES
