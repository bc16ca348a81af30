"""Rows in the order of a key: a heap from which any row can leave."""

import heapq
from collections.abc import Iterator

from jobpipe.store.base import STEP

SLACK = 64
"""How many dead entries a heap may have beyond as many as live ones."""

Key = tuple[float, ...]
Entry = tuple[Key, int]
"""A key and the seq of the row that has it."""


class Line:
    """Rows, told by their seq, in order of a key and then of arrival.

    What leaves from the middle stays in the heap until it comes up, or until most of the heap is dead:
    so each change costs a logarithm, and the heap is never much larger than what it holds.
    """

    def __init__(self) -> None:
        self._heap: list[Entry] = []
        self._keys: dict[int, Key] = {}

    def __len__(self) -> int:
        return len(self._keys)

    def put(self, seq: int, *key: float) -> None:
        """Add a row that is not in the line."""
        self._keys[seq] = key
        heapq.heappush(self._heap, (key, seq))

    def drop(self, seq: int) -> None:
        """Take a row out, if it is in the line."""
        self._keys.pop(seq, None)
        if len(self._heap) > 2 * len(self._keys) + SLACK:
            self._heap = [(key, one) for one, key in self._keys.items()]
            heapq.heapify(self._heap)

    def first(self) -> Entry | None:
        """The first row's key and seq."""
        while self._heap and self._keys.get(self._heap[0][1]) != self._heap[0][0]:
            heapq.heappop(self._heap)
        return self._heap[0] if self._heap else None

    def start(self) -> float | None:
        """The first part of the first row's key."""
        first = self.first()
        return None if first is None else first[0][0]

    def until(self, time: float) -> Iterator[int]:
        """The seqs of the first `STEP` rows whose key is at or before a time; each must leave before the next."""
        for _ in range(STEP):
            first = self.first()
            if first is None or first[0][0] > time:
                return
            yield first[1]
