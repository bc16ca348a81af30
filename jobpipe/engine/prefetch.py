"""How many jobs are worth claiming: one for each free worker, and ahead of them what the pool will take very soon."""

import trio

AHEAD, LONGEST_AHEAD = 0.02, 0.05
"""Seconds of work to claim ahead, beside the time of two exchanges; and the most of both together."""

HOLD = 0.1
"""Seconds after which claimed jobs that the workers do not come to go back to the store."""

MEMORY = 16
"""How many jobs the past counts for, so that the mean follows what the jobs are like now."""


class Prefetch:
    """Learns from the workers how long a job takes, and says how many the pool will take within a moment.

    A job that waits claimed is out of reach: of other nodes, of a more urgent job, of a pause. With too few claimed
    jobs, workers wait for commits. So the pool is given work for at most `LONGEST_AHEAD` seconds, and never more than
    `size` jobs. Nobody knows how long the next jobs will take: when they turn out to be longer, too many are claimed,
    and the intake hands them back after `HOLD` seconds.
    """

    def __init__(self, size: int, workers: int) -> None:
        self._size, self._workers = size, workers
        self._idle_since = 0.0
        self.forget()

    def forget(self) -> None:
        """Start to learn anew: the jobs are not what they were."""
        self._jobs = self._seconds = 0.0
        self._seen = 0

    def worked(self, jobs: int, seconds: float) -> None:
        """A worker was busy for `seconds` with so many jobs, which are over."""
        kept = min(self._jobs, MEMORY) / self._jobs if self._jobs else 0.0
        self._jobs = self._jobs * kept + jobs
        self._seconds = self._seconds * kept + seconds
        self._seen += jobs

    def idle(self) -> None:
        """A worker found nothing to do."""
        self._idle_since = trio.current_time()

    def ahead(self, free: int, exchange: float) -> int:
        """How many jobs to claim beyond one for each of the `free` workers; `exchange`: seconds that a claim takes.

        None while the jobs are unknown: at first, and after the whole pool was idle for a while. Never more than were
        seen, so that a few short jobs before the long ones do not fill the channel.
        """
        if free == self._workers and trio.current_time() - self._idle_since > HOLD:
            self.forget()
        return min(self._size, self._seen, self._taken_within(horizon(exchange)))

    def runs_dry(self, buffered: int, within: float) -> bool:
        """Whether the pool will have taken so many buffered jobs `within` so many seconds."""
        return buffered <= self._taken_within(within)

    def _taken_within(self, seconds: float) -> int:
        if self._seconds <= 0:
            return self._size
        return min(self._size, round(seconds * self._workers * self._jobs / self._seconds))


def horizon(exchange: float) -> float:
    """For how many seconds ahead the pool is given work, when a claim takes `exchange` seconds."""
    return min(AHEAD + 2 * exchange, LONGEST_AHEAD)
