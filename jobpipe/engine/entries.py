"""What waits at the ledger: entries to be written with their receipts, and those who claim ready jobs."""

from collections.abc import Sequence
from typing import Generic, Protocol, TypeVar

import msgspec
import trio

from jobpipe.engine.attempt import Attempt
from jobpipe.store.base import Add, Batch, ClaimRequest, Receipt, Start

W = TypeVar("W")
R = TypeVar("R")


class Entry(Generic[W, R]):
    """Something that a waiter wants written, and the receipt that it waits for."""

    def __init__(self, what: W) -> None:
        self.what = what
        self._done = trio.Event()
        self._receipt: R
        self._error: Exception | None = None

    async def receipt(self) -> R:
        """Wait until it is written; raises what `refuse` was told. A cancel leaves the entry where it is."""
        await self._done.wait()
        if self._error is not None:
            raise self._error
        return self._receipt

    def hand(self, receipt: R) -> None:
        """It is written."""
        self._receipt = receipt
        self._done.set()

    def refuse(self, error: Exception) -> None:
        """It could not be written. One that has its receipt keeps it."""
        if not self._done.is_set():
            self._error = error
            self._done.set()


class Claimer(Protocol):
    """Who claims jobs, for as long as the ledger knows of it. It is asked anew for each batch."""

    def wanted(self) -> int:
        """How many jobs to take at most at this moment; nothing is claimed when less than one."""

    def pressing(self) -> bool:
        """Whether the claim is worth a commit of its own; else it waits for something else to be written."""

    def request(self, limit: int) -> ClaimRequest:
        """What to ask the store for, where it may have so many jobs."""

    def learn(self, *, held_back: bool) -> None:
        """What came of its claim: `held_back` when jobs were left for want of a free worker; see `Receipts`."""

    def take(self, asked: ClaimRequest, attempts: Sequence[Attempt]) -> None:
        """Take over jobs that a request claimed, and that this node holds.

        Raises nothing: a job that it cannot take it hands back.
        """


class Gathered(msgspec.Struct, frozen=True):
    """A batch with those who wait for its receipts."""

    batch: Batch
    adds: Sequence[Entry[Add, Sequence[Receipt]]]
    starts: Sequence[Entry[Start, bool]]
    renewals: Sequence[Entry[None, bool]]
    noted: dict[tuple[int, int], Start]
    claimers: Sequence[Claimer]
    """whose claims the batch holds"""
    tenure: int
    """under which of the node's leases it was gathered"""
