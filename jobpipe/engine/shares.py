"""What each queue gives to a claim, by the weights of the queues. Pure."""

from collections.abc import Collection, Mapping, Sequence

from jobpipe.store.base import OTHERS, Share


class Shares:
    """Deals claims among queues so that those with ready jobs are served in proportion to their weights.

    Each queue has a turn: how many jobs were taken from it, divided by its weight. Among queues that have enough ready
    jobs, the turns of any two differ by at most what one claim takes. A queue that had too few saves nothing up: its
    turn moves on with the others'. So once it has jobs again, it comes first, and then gets its part like before.
    """

    def __init__(self, weights: Mapping[str, int]) -> None:
        self._weights = weights
        self._sum = sum(weights.values())
        self._turns = dict.fromkeys(weights, 0.0)

    @property
    def names(self) -> frozenset[str] | None:
        """The queues that are served; None: all."""
        return None if OTHERS in self._weights else frozenset(self._weights)

    def of(self, limit: int) -> Sequence[Share]:
        """The shares of a claim of `limit` jobs, which they add up to: the queue whose turn is the lowest comes first.

        Each is `limit * weight / sum of the weights`, rounded up or down: up for the first queues, as far as that goes.
        """
        order = sorted(self._weights, key=lambda queue: (self._turns[queue], -self._weights[queue]))
        parts = {queue: divmod(limit * self._weights[queue], self._sum) for queue in order}
        rest = limit - sum(whole for whole, _ in parts.values())
        up = [queue for queue, (_, fraction) in parts.items() if fraction][:rest]
        return [Share(queue, whole + (queue in up)) for queue, (whole, _) in parts.items()]

    def took(self, asked: Sequence[Share], queues: Mapping[str, int]) -> None:
        """So many jobs of each queue were taken by a claim that asked for these shares."""
        taken = dict.fromkeys(self._turns, 0)
        for queue, jobs in queues.items():
            taken[queue if queue in taken else OTHERS] += jobs
        for queue, jobs in taken.items():
            self._turns[queue] += jobs / self._weights[queue]
        if sum(taken.values()) < sum(share.jobs for share in asked):
            self._turns = dict.fromkeys(self._turns, 0.0)  # no queue has any job left
            return
        empty = _empty(asked, taken)
        behind = min(turn for queue, turn in self._turns.items() if queue not in empty)
        self._turns |= {queue: max(self._turns[queue], behind) for queue in empty}


def _empty(asked: Sequence[Share], taken: Mapping[str, int]) -> Collection[str]:
    """The queues that had no more jobs: they gave less than their share, or one behind them gave more than its own."""
    beyond = [place for place, share in enumerate(asked) if taken[share.queue] > share.jobs]
    last = max(beyond, default=0)
    return {
        share.queue for place, share in enumerate(asked) if place < last or taken[share.queue] < share.jobs
    }
