"""Cuts a batch that an exception broke, until the entry which broke it stands alone."""

from collections.abc import Sequence
from typing import Any, Literal

import msgspec

from jobpipe.engine.entries import Gathered
from jobpipe.job import JobError, Outcome, Status
from jobpipe.store.base import Settlement

Part = tuple[Literal["noted", "start", "note", "settlement", "add", "renewals", "claim"], Any]
"""One thing that can break a batch: of what sort it is, and the thing itself."""

LARGEST = 2**31 - 1
"""The largest count of attempts that every store can write."""


def parts(entries: Gathered) -> Sequence[Part]:
    """What a batch consists of, in the order in which it is carried out. Renewals are one part."""
    renewals: list[Part] = [("renewals", entries.renewals)] if entries.renewals else []
    return [
        *renewals,
        *(("noted", start) for start in entries.noted.values()),
        *(("start", entry) for entry in entries.starts),
        *(("note", one) for one in entries.batch.notes),
        *(("settlement", one) for one in entries.batch.settlements),
        *(("add", entry) for entry in entries.adds),
        *(("claim", pair) for pair in zip(entries.claimers, entries.batch.claims, strict=True)),
    ]


def halves(entries: Gathered) -> tuple[Gathered, Gathered] | None:
    """Two batches that come to the same one after the other; None when there is but one part."""
    all_of_it = parts(entries)
    if len(all_of_it) < 2:  # noqa: PLR2004 - two halves
        return None
    middle = len(all_of_it) // 2
    return _of(entries, all_of_it[:middle]), _of(entries, all_of_it[middle:])


def _of(entries: Gathered, some: Sequence[Part]) -> Gathered:
    """A batch of some parts of another."""

    def those(sort: str) -> list[Any]:
        return [what for one, what in some if one == sort]

    adds, starts, noted, claims = those("add"), those("start"), those("noted"), those("claim")
    renewals = [entry for entries_ in those("renewals") for entry in entries_]
    batch = msgspec.structs.replace(
        entries.batch,
        lease_until=entries.batch.lease_until if renewals else None,
        starts=[*noted, *(entry.what for entry in starts)],
        notes=those("note"),
        settlements=those("settlement"),
        adds=[entry.what for entry in adds],
        claims=[claim for _, claim in claims],
    )
    return msgspec.structs.replace(
        entries,
        batch=batch,
        adds=adds,
        starts=starts,
        renewals=renewals,
        noted={(start.seq, start.claim): start for start in noted},
        claimers=[claimer for claimer, _ in claims],
    )


def smaller_claim(entries: Gathered) -> Gathered | None:
    """A batch of one claim, with half as many jobs to take; None when it asks for one."""
    (claim,) = entries.batch.claims
    if claim.limit < 2:  # noqa: PLR2004 - two halves
        return None
    fewer = msgspec.structs.replace(claim, limit=claim.limit // 2)
    return msgspec.structs.replace(entries, batch=msgspec.structs.replace(entries.batch, claims=[fewer]))


def with_settlement(entries: Gathered, one: Settlement) -> Gathered:
    """A batch of one settlement, with another in its place."""
    return msgspec.structs.replace(entries, batch=msgspec.structs.replace(entries.batch, settlements=[one]))


def plain_settlements(one: Settlement, words: str) -> Sequence[Settlement]:
    """What to write in place of a settlement that cannot be written: the job is failed, in words.

    Each one asks less of the store than the one before it; the last touches nothing but the job's row.
    """
    count = min(max(one.attempt, one.number, 1), LARGEST)
    failed = Settlement(
        seq=one.seq,
        id=one.id,
        queue=one.queue,
        kind=one.kind,
        claim=one.claim,
        outcome=Outcome.FAIL,
        status=Status.FAILED,
        attempt=count,
        number=count,
        due_at=one.due_at,
        started_at=one.started_at,
        settled_at=one.settled_at,
        error=JobError("InternalError", words),
    )
    return failed, msgspec.structs.replace(failed, outcome=None, started_at=None)
