"""What each queue gives to a claim, by the weights of the queues."""

from collections import Counter
from collections.abc import Mapping, Sequence

import pytest
from hypothesis import given
from hypothesis import strategies as st

from jobpipe.engine.shares import Shares
from jobpipe.store.base import OTHERS, Share

WEIGHTS = st.dictionaries(st.sampled_from([*"abcdef", OTHERS]), st.integers(1, 1000), min_size=1)


def taken(shares: Shares, limit: int, ready: Mapping[str, int]) -> Counter[str]:
    """A claim of a store that has so many ready jobs; see `ClaimRequest.queues`."""
    asked = shares.of(limit)
    got: Counter[str] = Counter()
    for share in [*[one for one in asked if one.jobs] * limit, *asked]:
        left = ready.get(share.queue, 0) - got[share.queue]
        got[share.queue] += min(share.jobs or limit, left, limit - got.total())
    shares.took(asked, got)
    return got


def taken_over(shares: Shares, limits: Sequence[int], ready: Mapping[str, int]) -> Counter[str]:
    """All that was taken by claims from queues that always have so many."""
    return sum((taken(shares, limit, ready) for limit in limits), Counter())


@given(WEIGHTS, st.lists(st.integers(1, 500), min_size=1, max_size=20))
def test_shares_add_up_to_the_limit_and_are_the_part_of_each_rounded(weights, limits) -> None:
    """Up or down, whatever was taken before."""
    shares = Shares(weights)
    for limit in limits:
        asked = shares.of(limit)
        assert sum(share.jobs for share in asked) == limit
        for share in asked:
            assert abs(share.jobs - limit * weights[share.queue] / sum(weights.values())) < 1
        taken(shares, limit, dict.fromkeys(weights, 10_000))


@given(WEIGHTS, st.lists(st.integers(1, 30), min_size=1, max_size=60), st.data())
def test_queues_with_enough_jobs_are_served_by_their_weights(weights, limits, data) -> None:
    """Whatever the others have: their turns stay within what one claim takes."""
    full = data.draw(st.sets(st.sampled_from(sorted(weights)), min_size=1))
    ready = {queue: 10_000 if queue in full else data.draw(st.integers(0, 3)) for queue in weights}
    got = taken_over(Shares(weights), limits, ready)

    turns = [got[queue] / weights[queue] for queue in full]
    widest = max(limits) / min(weights[queue] for queue in full) + 1 / min(weights.values())
    assert max(turns) - min(turns) <= widest
    assert got.total() == sum(limits)


@given(WEIGHTS, st.lists(st.integers(1, 10), min_size=30, max_size=60))
def test_no_queue_that_has_a_job_starves(weights, limits) -> None:
    """Within one round of the weights it has its turn, also where each claim is for one job."""
    shares = Shares(weights)
    ready = dict.fromkeys(weights, 10_000)
    waiting = Counter(dict.fromkeys(weights, 0))
    for limit in limits:
        got = taken(shares, limit, ready)
        for queue in weights:
            waiting[queue] = 0 if got[queue] else waiting[queue] + limit
            assert waiting[queue] <= sum(weights.values()) / weights[queue] + len(weights) + max(limits)


@pytest.mark.parametrize("limit", [1, 2, 3, 4, 5, 7, 64])
def test_three_to_one_is_three_to_one(limit: int) -> None:
    """Within one claim."""
    got = taken_over(Shares({"a": 3, "b": 1}), [limit] * 1000, {"a": 10**6, "b": 10**6})

    assert abs(got["a"] - 750 * limit) <= limit


@pytest.mark.parametrize("others", [["b"], ["b", "c", "d"]])
def test_a_queue_saves_nothing_up_while_it_is_empty(others: Sequence[str]) -> None:
    """It comes first when it has jobs again, and then gets its part."""
    shares = Shares(dict.fromkeys(["a", *others], 1))
    taken_over(shares, [1] * 100, {"a": 10**6})
    again = [taken(shares, 1, {"a": 10**6, "b": 10**6}) for _ in range(20)]

    assert again[0]["b"] + again[1]["b"] >= 1
    assert sum(got["b"] for got in again) in {10, 11}


def test_what_a_queue_leaves_goes_to_the_others_by_their_weights() -> None:
    """Of three, one of which is empty."""
    got = taken_over(Shares({"a": 1, "b": 2, "c": 5}), [8] * 300, {"a": 10**6, "b": 10**6})

    assert abs(got["a"] - 800) <= 8


def test_jobs_of_queues_without_a_name_count_as_the_others() -> None:
    """All of them together have one weight."""
    shares = Shares({"a": 1, OTHERS: 1})
    asked = shares.of(2)
    shares.took(asked, {"x": 1, "y": 1})

    assert shares.of(1) == [Share("a", 1), Share(OTHERS, 0)]
    assert (shares.names, Shares({"a": 1, "b": 2}).names) == (None, frozenset("ab"))
