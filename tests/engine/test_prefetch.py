"""How many jobs are worth claiming ahead of the workers."""

import trio

from jobpipe.engine.prefetch import AHEAD, HOLD, LONGEST_AHEAD, Prefetch, horizon


def of(size: int, workers: int, *turns: tuple[int, float]) -> Prefetch:
    prefetch = Prefetch(size, workers)
    for jobs, seconds in turns:
        prefetch.worked(jobs, seconds)
    return prefetch


async def test_nothing_is_claimed_ahead_of_what_is_unknown() -> None:
    """At first, and after it was forgotten."""
    prefetch = of(64, 4)
    unknown = prefetch.ahead(0, 0.001)
    prefetch.worked(100, 0.1)
    known = prefetch.ahead(0, 0.001)
    prefetch.forget()

    assert (unknown, known, prefetch.ahead(0, 0.001)) == (0, 64, 0)


async def test_what_is_claimed_ahead_is_what_the_pool_takes_within_the_horizon() -> None:
    """Of jobs of 5 ms four workers take 16 in 20 ms."""
    assert of(64, 4, (100, 0.5)).ahead(0, 0.0) == AHEAD * 4 / 0.005
    assert of(64, 4, (100, 30.0)).ahead(0, 0.0) == 0


async def test_the_horizon_grows_with_the_time_of_an_exchange_up_to_a_bound() -> None:
    """A database far away is asked for more at a time."""
    assert horizon(0.0) == AHEAD
    assert horizon(0.01) == AHEAD + 0.02
    assert horizon(10.0) == LONGEST_AHEAD


async def test_no_more_is_claimed_ahead_than_was_seen() -> None:
    """One short job says little of those to come."""
    assert [of(64, 4, (jobs, 0.0001)).ahead(0, 0.0) for jobs in (1, 8, 63, 64, 65)] == [1, 8, 63, 64, 64]


async def test_the_mean_follows_the_last_jobs() -> None:
    """A thousand short ones count for no more than sixteen."""
    prefetch = of(64, 4, (1000, 0.01))
    before = prefetch.ahead(0, 0.0)
    prefetch.worked(4, 4.0)

    assert (before, prefetch.ahead(0, 0.0)) == (64, 0)


async def test_jobs_that_take_no_time_fill_the_channel() -> None:
    """As under a virtual clock."""
    assert of(64, 4, (100, 0.0)).ahead(0, 0.0) == 64


async def test_a_pool_that_is_idle_for_a_while_forgets(autojump_clock) -> None:
    """All of it: one worker that waits says nothing."""
    prefetch = of(64, 4, (100, 0.01))
    prefetch.idle()
    await trio.sleep(2 * HOLD)
    one_free = prefetch.ahead(1, 0.0)
    all_free = prefetch.ahead(4, 0.0)

    assert (one_free, all_free, prefetch.ahead(0, 0.0)) == (64, 0, 0)


async def test_a_buffer_runs_dry_when_the_pool_will_have_taken_it() -> None:
    """Jobs of 10 ms: in 50 ms, four workers take twenty."""
    prefetch = of(64, 4, (100, 1.0))

    assert [prefetch.runs_dry(buffered, 0.05) for buffered in (0, 19, 20, 21)] == [True, True, True, False]
