"""What each queue gives to a claim, by the weights of the queues. Pure."""

import math
from collections.abc import Mapping, Sequence

from jobpipe.store.base import OTHERS, Share


class Shares:
    """Deals claims among queues so that those with ready jobs are served in proportion to their weights.

    Each queue has a turn: how many jobs were taken from it, divided by its weight. Among queues that have enough ready
    jobs, the turns of any two differ by at most what one claim takes. A queue that had too few the last time is dry: a
    claim asks it first, and counts on nothing from it. It saves up no more than its share of one claim. So once it has
    jobs again, it comes first, and then gets its part like before.
    """

    def __init__(self, weights: Mapping[str, int]) -> None:
        self._weights = weights
        self._turns = dict.fromkeys(weights, 0.0)
        self._dry: frozenset[str] = frozenset()

    @property
    def names(self) -> frozenset[str] | None:
        """The queues that are served; None: all."""
        return None if OTHERS in self._weights else frozenset(self._weights)

    def of(self, limit: int) -> Sequence[Share]:
        """The shares of a claim of `limit` jobs, in the order in which the queues are asked.

        Dry queues come first, with their part of all weights, rounded up. Those of the others add up to the limit, as
        far as the dry ones leave it: each is its part of the weights of these, rounded up or down, and up for those
        whose turns are the lowest, which come first.
        """
        order = sorted(self._weights, key=lambda queue: (self._turns[queue], -self._weights[queue]))
        everything = sum(self._weights.values())
        first = [queue for queue in order if queue in self._dry]
        asked = [Share(queue, math.ceil(limit * self._weights[queue] / everything)) for queue in first]
        return [*asked, *self._parts([queue for queue in order if queue not in self._dry], limit)]

    def _parts(self, order: Sequence[str], limit: int) -> Sequence[Share]:
        sum_of_these = sum(self._weights[queue] for queue in order)
        parts = {queue: divmod(limit * self._weights[queue], sum_of_these) for queue in order}
        rest = limit - sum(whole for whole, _ in parts.values())
        up = [queue for queue, (_, fraction) in parts.items() if fraction][:rest]
        return [Share(queue, whole + (queue in up)) for queue, (whole, _) in parts.items()]

    def took(self, asked: Sequence[Share], limit: int, queues: Mapping[str, int]) -> None:
        """So many jobs of each queue were taken by a claim of `limit` jobs that asked for these shares."""
        taken = dict.fromkeys(self._turns, 0)
        for queue, jobs in queues.items():
            taken[queue if queue in taken else OTHERS] += jobs
        if sum(taken.values()) < limit:
            self._turns, self._dry = dict.fromkeys(self._turns, 0.0), frozenset()  # no queue has any job left
            return
        self._lift(
            [share for share in asked if share.queue in self._dry and taken[share.queue] >= share.jobs]
        )
        for queue, jobs in taken.items():
            self._turns[queue] += jobs / self._weights[queue]
        still = {
            share.queue for share in asked if share.queue in self._dry and taken[share.queue] < share.jobs
        }
        self._dry = frozenset(still | {*_dry(asked, taken)})

    def _lift(self, again: Sequence[Share]) -> None:
        """Queues that were dry have jobs again: they come close behind the others."""
        behind = min((turn for queue, turn in self._turns.items() if queue not in self._dry), default=0.0)
        for share in again:
            least = behind - share.jobs / self._weights[share.queue]
            self._turns[share.queue] = max(self._turns[share.queue], least)


def _dry(asked: Sequence[Share], taken: Mapping[str, int]) -> Sequence[str]:
    """The queues that gave less than their shares: they had too few jobs, or other nodes held the first ones.

    They are asked in order, round by round, and at the end those without a share. So where a queue gave more than its
    share, all were asked; else nothing is known of those behind the last that gave a job.
    """
    gave = [place for place, share in enumerate(asked) if taken[share.queue]]
    beyond = [place for place in gave if taken[asked[place].queue] > asked[place].jobs]
    last = len(asked) if beyond else max(gave, default=-1)
    last_without = max((place for place in beyond if not asked[place].jobs), default=-1)
    return [
        share.queue
        for place, share in enumerate(asked)
        if (taken[share.queue] < share.jobs and place < last)
        or (not share.jobs and not taken[share.queue] and place < last_without)
    ]
