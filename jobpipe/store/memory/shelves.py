"""Every row, and the places where the verbs look for it."""

import heapq
from collections import Counter, defaultdict
from collections.abc import Iterator

import msgspec

from jobpipe.job import Job, NewJob, Status, as_stored
from jobpipe.store.memory.line import Line


class Row(msgspec.Struct, eq=False):
    """A job, and what only the store knows of it. `node` is who holds it."""

    seq: int
    job: Job
    node: str | None = None
    rescued: int = 0
    size: int = 0


class Queue:
    """A queue's counts, and its ready jobs in the order of claiming (`ready`) and by run_at alone (`since`)."""

    def __init__(self) -> None:
        self.paused = False
        self.counts: Counter[Status] = Counter()
        self.ready = Line()
        self.since = Line()

    def enter(self, row: Row) -> None:
        """A job is ready from now on."""
        self.ready.put(row.seq, -row.job.priority, row.job.run_at)
        self.since.put(row.seq, row.job.run_at)

    def quit(self, row: Row) -> None:
        """A job is ready no longer."""
        self.ready.drop(row.seq)
        self.since.drop(row.seq)


class Shelves:
    """Every row, and each in the places where the verbs look for it; `become` is the only way from one to another."""

    def __init__(self) -> None:
        self.leases: dict[str, float] = {}
        self.rows: dict[int, Row] = {}
        self.by_id: dict[str, Row] = {}
        self.queues: defaultdict[str, Queue] = defaultdict(Queue)
        """every queue that was ever used or paused"""
        self.with_ready: dict[str, Queue] = {}
        self.held: dict[str, dict[int, Row]] = {}
        self.due, self.expiring = Line(), Line()
        self.done, self.failed = Line(), Line()
        self.waiting = self.ended_size = 0
        self._seq = 0

    def add(self, new: NewJob) -> None:
        """Put a new job where it belongs."""
        self._seq += 1
        row = self.rows[self._seq] = self.by_id[new.id] = Row(self._seq, as_stored(new))
        self._place(row)

    def become(self, row: Row, job: Job, node: str | None = None, size: int = 0) -> None:
        """Change a row's job and who holds it. `size` counts when the job has ended."""
        self._take(row)
        row.job, row.node, row.size = job, node, size
        self._place(row)

    def end(self, row: Row, job: Job) -> None:
        """End a job without a settlement."""
        self.become(row, job, size=len(job.payload))

    def remove(self, row: Row) -> None:
        """Delete a row."""
        self._take(row)
        del self.rows[row.seq], self.by_id[row.job.id]

    def next_due(self) -> float | None:
        """When the next job is to be promoted or expired."""
        times = (self.due.start(), self.expiring.start())
        return min((time for time in times if time is not None), default=None)

    def ready(self) -> Iterator[Row]:
        """The ready rows of the queues that are not paused, in order. Each has left its line when it comes out."""
        open_ones = [queue for queue in self.with_ready.values() if not queue.paused]
        heads = [(*first, queue) for queue in open_ones if (first := queue.ready.first())]
        heapq.heapify(heads)
        while heads:
            _, seq, queue = heads[0]
            queue.ready.drop(seq)
            yield self.rows[seq]
            if first := queue.ready.first():
                heapq.heapreplace(heads, (*first, queue))
            else:
                heapq.heappop(heads)

    def ended(self, status: Status) -> Line:
        """Where ended jobs stand, by finished_at: those that went well, and the others."""
        return self.done if status is Status.DONE else self.failed

    def _place(self, row: Row) -> None:
        job, queue = row.job, self.queues[row.job.queue]
        queue.counts[job.status] += 1
        if row.node is not None:
            self.held.setdefault(row.node, {})[row.seq] = row
        elif job.finished_at is not None:
            self.ended(job.status).put(row.seq, job.finished_at)
            self.ended_size += row.size
        else:
            self._wait(row, job, queue)

    def _wait(self, row: Row, job: Job, queue: Queue) -> None:
        self.waiting += 1
        if job.expires_at is not None:
            self.expiring.put(row.seq, job.expires_at)
        if job.status is Status.QUEUED:
            queue.enter(row)
            self.with_ready[job.queue] = queue
        else:
            self.due.put(row.seq, job.run_at)

    def _take(self, row: Row) -> None:
        job, queue = row.job, self.queues[row.job.queue]
        queue.counts[job.status] -= 1
        if row.node is not None:
            self._let_go(row, row.node)
        elif job.finished_at is not None:
            self.ended(job.status).drop(row.seq)
            self.ended_size -= row.size
        else:
            self._wait_no_more(row, job, queue)

    def _let_go(self, row: Row, node: str) -> None:
        del self.held[node][row.seq]
        if not self.held[node]:
            del self.held[node]

    def _wait_no_more(self, row: Row, job: Job, queue: Queue) -> None:
        self.waiting -= 1
        self.expiring.drop(row.seq)
        if job.status is Status.QUEUED:
            queue.quit(row)
            if not queue.ready:
                self.with_ready.pop(job.queue, None)
        else:
            self.due.drop(row.seq)
