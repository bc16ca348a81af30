"""How long to wait before a retry: exponential, capped, jittered. Pure; randomness is passed in."""

import math
from collections.abc import Callable
from typing import assert_never

from jobpipe.job import Backoff


def ceiling(policy: Backoff, retry: int) -> float:
    """The wait before retry number `retry` (from 1), in seconds, without jitter.

    `min(cap, base * factor ** (retry - 1))`, compared as logarithms first, so that no retry number overflows.
    """
    if policy.base == 0 or policy.cap == 0:
        return 0.0
    growth = (retry - 1) * math.log(policy.factor)
    if growth >= math.log(policy.cap) - math.log(policy.base):
        return policy.cap
    # In two halves, neither of which overflows where the product does not.
    half = (retry - 1) // 2
    return min(policy.cap, policy.base * policy.factor**half * policy.factor ** (retry - 1 - half))


def delay(policy: Backoff, retry: int, random: Callable[[], float]) -> float:
    """The wait before retry number `retry` (from 1), in seconds; `random` returns numbers in [0, 1).

    Jitter as in "Exponential Backoff And Jitter" (AWS Architecture Blog, 2015): `full` spreads the
    waits over the whole interval from zero, `equal` over its upper half.
    """
    longest = ceiling(policy, retry)
    match policy.jitter:
        case "none":
            return longest
        case "full":
            return longest * random()
        case "equal":
            return longest / 2 + longest / 2 * random()
        case _:
            assert_never(policy.jitter)
