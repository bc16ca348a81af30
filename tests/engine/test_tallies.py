"""What is counted, and under which names."""

from collections import Counter

import msgspec
import pytest

from jobpipe.engine.admission import REFUSED
from jobpipe.engine.tallies import MOST, OTHER, PAIRS, RUNS, WAITS, Histogram, Tallies
from jobpipe.job import JobError, Outcome, Status
from jobpipe.store.base import STORED, Add, Batch, Receipts, Settlement
from tests.engine.conftest import NOW, new_job


def settled(seq=1, **changes):
    usual = Settlement(
        seq=seq,
        id=f"j{seq}",
        queue="mail",
        kind="act",
        claim=1,
        outcome=Outcome.DONE,
        status=Status.DONE,
        attempt=1,
        due_at=NOW,
        started_at=NOW + 1,
        settled_at=NOW + 3,
    )
    return msgspec.structs.replace(usual, **changes)


def written(*settlements, **receipts):
    tallies = Tallies()
    tallies.write(Batch(node="n1", now=NOW, settlements=settlements), Receipts(**receipts))
    return tallies


def ends(tallies, kind="act"):
    return dict(tallies.work[kind].ends)


@pytest.mark.parametrize(
    ("values", "buckets", "total"),
    [
        ([], [0, 0, 0], 0),
        ([0.5], [1, 0, 0], 0.5),
        ([1, 1.01], [1, 1, 0], 2.01),  # a value on a bound is in the bucket of the bound
        ([7, 2, 1e9], [0, 1, 2], 9 + 1e9),
        ([-5, 3], [1, 0, 1], 3),  # a clock was set back
    ],
)
def test_a_histogram_puts_each_value_into_its_bucket(values, buckets, total):
    histogram = Histogram((1, 2))
    histogram.add(values)

    assert (histogram.buckets, histogram.total) == (buckets, total)


def test_ends_are_counted_by_kind_with_their_waits_by_queue():
    tallies = written(
        settled(1),
        settled(2, queue="pdf", started_at=NOW + 90, settled_at=NOW + 90),
        settled(3, outcome=Outcome.RETRY, status=Status.RETRYING),
        settled(4, kind="other-kind", outcome=None, status=Status.QUEUED, started_at=None),
    )

    assert ends(tallies) == {
        (Outcome.DONE, Status.DONE): 2,
        (Outcome.RETRY, Status.RETRYING): 1,
    }
    assert ends(tallies, "other-kind") == {(None, Status.QUEUED): 1}
    assert (tallies.work["act"].runs.total, sum(tallies.work["act"].runs.buckets)) == (4, 3)
    assert tallies.work["act"].runs.buckets[RUNS.index(2.5)] == 2
    assert {queue: one.total for queue, one in tallies.waits.items()} == {"mail": 2, "pdf": 90}
    assert tallies.waits["pdf"].buckets[WAITS.index(300)] == 1


def test_only_what_the_store_has_written_is_counted_and_as_what_it_was_written():
    tallies = written(
        settled(1),
        settled(2),
        settled(3),
        settled(4, outcome=Outcome.RETRY, status=Status.RETRYING, error=JobError("E", "e")),
        stale=frozenset({(1, 1)}),
        locked=frozenset({(2, 1)}),
        settled={4: Status.CANCELLED},
    )

    assert ends(tallies) == {(Outcome.DONE, Status.DONE): 1, (Outcome.RETRY, Status.CANCELLED): 1}


def test_new_jobs_are_counted_where_they_were_stored_also_those_of_an_attempt():
    tallies = Tallies()
    adds = [Add([new_job("a"), new_job("b", queue="mail")]), Add([new_job("c")]), Add([new_job("d")])]
    brought = [settled(1, jobs=[new_job("e")]), settled(2, jobs=[new_job("f")])]
    tallies.write(
        Batch(node="n1", now=NOW, adds=adds, settlements=brought),
        Receipts(adds=[[STORED, STORED], [REFUSED], [STORED]], settled={2: Status.FAILED}),
        0.02,
    )

    assert {pair: one.value for pair, one in tallies.enqueued.items()} == {
        ("act", "default"): 3,
        ("act", "mail"): 1,
    }
    assert {part: (sum(one.buckets), one.total) for part, one in tallies.sizes.items()} == {
        "adds": (1, 4),
        "outcomes": (1, 2),
        "claims": (0, 0),
    }
    assert tallies.commits.total == 0.02


def test_the_first_names_keep_their_counts_and_all_others_share_one():
    tallies = Tallies()
    tallies.expect({"served", "also"})
    for number in range(MOST + 5):
        tallies.work[f"k{number}"].ends[Outcome.DONE, Status.DONE] += 1
    tallies.work["served"].ends[Outcome.DONE, Status.DONE] += 1
    counted = {kind: sum(work.ends.values()) for kind, work in tallies.work.items()}

    assert len(counted) == MOST + 1
    assert counted["served"] == 1
    assert (counted["k61"], "k62" in counted, counted[OTHER]) == (1, False, 7)


def test_a_kind_that_is_called_other_is_counted_with_the_others():
    tallies = Tallies()
    tallies.work[OTHER].ends[Outcome.DONE, Status.DONE] += 1
    for number in range(MOST + 1):
        tallies.work[str(number)].ends[Outcome.DONE, Status.DONE] += 1

    assert sum(tallies.work[OTHER].ends.values()) == 2


def test_of_too_many_pairs_of_kind_and_queue_the_kind_is_still_counted():
    tallies = Tallies()
    tallies.add(new_job(kind=f"k{kind}", queue=f"q{queue}") for kind in range(66) for queue in range(66))
    of_kinds = Counter[str]()
    for (kind, _), one in tallies.enqueued.items():
        of_kinds[kind] += int(one.value)

    assert len(tallies.enqueued) <= PAIRS + MOST + 1
    assert {kind: jobs for kind, jobs in of_kinds.items() if jobs != 66} == {OTHER: 132}
