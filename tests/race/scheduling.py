"""The one place that seeds Trio's scheduler, so that a run of tasks can be had again.

Trio runs the tasks that are ready in batches, and shuffles each batch on purpose. The shuffle draws from one
`random.Random`, and the batch is sorted first when determinism is asked for: both are private names of Trio's,
`trio._core._run._r` and `_ALLOW_DETERMINISTIC_SCHEDULING`, kept for Hypothesis and pytest-trio, which set them in
the same way (python-trio/trio, pull requests 840, 890 and 2985).

What a seed promises: on the memory store, in virtual time and without threads, the very same order of steps. On
SQLite the order in which tasks run within a batch is the seed's too, but when a thread comes back is the machine's:
there a seed finds the same faults often, not always.
"""

from collections.abc import Awaitable, Callable
from typing import Any, TypeVar

import trio
import trio.testing

T = TypeVar("T")

_scheduler: Any = trio._core._run


def run(seed: int, main: Callable[[], Awaitable[T]], *, virtual: bool) -> T:
    """Run `main` to its end under the schedule of a seed; in virtual time the clock jumps when all tasks wait."""
    before = _scheduler._ALLOW_DETERMINISTIC_SCHEDULING, _scheduler._r.getstate()
    _scheduler._ALLOW_DETERMINISTIC_SCHEDULING = True
    _scheduler._r.seed(seed)
    try:
        return trio.run(main, clock=trio.testing.MockClock(autojump_threshold=0) if virtual else None)
    finally:
        _scheduler._ALLOW_DETERMINISTIC_SCHEDULING = before[0]
        _scheduler._r.setstate(before[1])
