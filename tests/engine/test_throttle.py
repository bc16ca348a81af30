"""A log that stays short."""

import trio

from jobpipe.engine.throttle import WINDOW, LogThrottle


async def test_as_many_lines_as_allowed_come_through_in_a_window(autojump_clock) -> None:
    """The rest is counted, and told with the next one that comes through."""
    sparing = LogThrottle(2)
    first = [sparing.lets_through() for _ in range(5)]
    await trio.sleep(WINDOW)
    later = sparing.lets_through()

    assert first == [True, True, False, False, False]
    assert (later, sparing.take(), sparing.take()) == (True, 3, 0)


async def test_what_comes_slowly_comes_through_whole(autojump_clock) -> None:
    """Nothing is held back where there is nothing to spare."""
    sparing = LogThrottle(1)
    through = []
    for _ in range(5):
        through.append(sparing.lets_through())
        await trio.sleep(WINDOW)

    assert through == [True] * 5
    assert sparing.take() == 0
