"""What needs somebody, and what does not."""

import msgspec

from jobpipe.engine.attention import MOST, Late, Lingers, Seen, needs
from jobpipe.job import JobError, Status
from jobpipe.store.base import ErrorGroup, QueueState, Unserved

NOW = 10_000.0


def queue(name, *, paused=False, oldest=0.0, until=None):
    return QueueState(
        name=name, paused=paused, paused_until=until, counts={Status.QUEUED: 3}, oldest_queued_at=oldest
    )


def group(first_at):
    return ErrorGroup(
        fingerprint="1-x",
        jobs=2,
        exact=True,
        first_at=first_at,
        last_at=NOW,
        kinds=["mail"],
        queues=["q"],
        newest=JobError("TimeoutError", "late"),
        examples=["a"],
    )


def told(**seen):
    return [need.what for need in needs(Seen(now=NOW, **seen))]


def test_nothing_needs_attention_where_all_is_well():
    assert told(queues=[queue("q", oldest=NOW - 1)], counts={Status.QUEUED: 3}, max_backlog=10) == []


def test_the_worst_comes_first_and_no_more_than_somebody_can_begin_with():
    seen = Seen(
        now=NOW,
        phase="draining",
        store="the disk is full",
        watchdog="a handler blocks",
        listener="no notifications",
        lingering=[Lingers("a", "k", "cancel", NOW - 41), Lingers("b", "k", "timeout", NOW - 50)],
        counts={Status.QUEUED: 9},
        max_backlog=10,
        unserved=[Unserved("k", 37, NOW - 61), Unserved("fresh", 1, NOW - 59)],
        queues=[queue("paused", paused=True), queue("nobody")],
        served=frozenset({"q"}),
        errors=[group(NOW - 10), group(NOW - 4000)],
        late=[Late("nightly", NOW - 31), Late("soon", NOW - 29)],
    )

    assert [need.what for need in needs(seen)] == [
        "store", "blocked", "handler", "handler", "draining", "backlog", "unserved", "queue_unserved",
    ]  # fmt: skip
    assert [need.job_id for need in needs(seen)][2:4] == ["b", "a"]
    assert len(needs(seen)) == MOST
    rest = msgspec.structs.replace(
        seen, store=None, watchdog=None, lingering=(), phase="running", unserved=()
    )
    assert [need.what for need in needs(rest)] == [
        "backlog", "queue_unserved", "error", "schedule", "paused", "listener",
    ]  # fmt: skip


def test_a_pause_is_told_once_jobs_have_waited_for_it_and_not_once_it_is_over():
    assert told(queues=[queue("q", paused=True, oldest=NOW - 299)]) == []
    assert told(queues=[queue("q", paused=True, oldest=NOW - 301)]) == ["paused"]
    assert told(queues=[queue("q", paused=True, oldest=0.0, until=NOW - 1)]) == []
