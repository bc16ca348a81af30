"""What each queue gives to a claim, by the weights of the queues. Pure."""

from collections.abc import Mapping, Sequence

from jobpipe.store.base import OTHERS, Share


class Shares:
    """Deals claims among queues so that those with ready jobs are served in proportion to their weights.

    Each queue has a turn: how many jobs were taken from it, divided by its weight. Among queues that have enough ready
    jobs, the turns of any two differ by at most what one claim takes. A queue that had too few saves up no more than
    its share of one claim. So once it has jobs again, it comes first, and then gets its part like before.
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
        short = _short(asked, taken)
        behind = min(turn for queue, turn in self._turns.items() if queue not in short)
        for queue, share in short.items():
            self._turns[queue] = max(self._turns[queue], behind - share / self._weights[queue])


def _short(asked: Sequence[Share], taken: Mapping[str, int]) -> Mapping[str, int]:
    """The queues that had too few jobs, or those of which other nodes held the first ones; with their shares.

    They gave less than their share. Those without a share come last: where one gave jobs, those before it had none.
    """
    last = max(
        (place for place, share in enumerate(asked) if taken[share.queue] > share.jobs == 0), default=0
    )
    return {
        share.queue: share.jobs
        for place, share in enumerate(asked)
        if taken[share.queue] < share.jobs or (place < last and not taken[share.queue])
    }
