"""What nodes tell one another over a channel: a word, and what it is about."""

from collections.abc import Iterator, Sequence

from jobpipe.store.base import News
from jobpipe.store.postgres.parameters import Texts
from jobpipe.store.postgres.session import Session

LONGEST = 7900
"""Bytes of one notification; PostgreSQL takes less than 8,000."""

READY = "ready"

_NOTIFY = "select pg_notify(%s, %s)"
_WAKE = (
    "select pg_notify(%s, %s) "
    "where exists (select from nodes where hungry and lease_until is not null and name <> %s "
    "and (%s::text[] is null or kinds && %s::text[]))"
)


def notify(session: Session, channel: str, words: Sequence[str]) -> None:
    """Tell other nodes when this transaction is committed."""
    for word in words:
        session.run(_NOTIFY, (channel, word))


def wake(session: Session, channel: str, node: str, kinds: Texts | None) -> None:
    """Tell that jobs of these kinds are ready, or of any, if another node that serves one has room for them."""
    session.run(_WAKE, (channel, READY, node, kinds, kinds))


def cancel_words(seq: int, claim: int, job_id: str) -> Sequence[str]:
    """A held job was asked to stop."""
    return [f"cancel {seq} {claim} {job_id}"]


def ended_words(ids: Sequence[str]) -> Sequence[str]:
    """Watched jobs have ended. An id has no spaces."""
    return list(_joined(ids)) if ids else []


def _joined(ids: Sequence[str]) -> Iterator[str]:
    word = "ended"
    for job_id in ids:
        if len(f"{word} {job_id}".encode()) > LONGEST:
            yield word
            word = "ended"
        word += f" {job_id}"
    yield word


def news(word: str) -> Sequence[News]:
    """What a notification says; one that is not understood, from a newer node it may be, is a reason to look."""
    match word.split(" "):
        case ["cancel", seq, claim, job_id] if seq.isdecimal() and claim.isdecimal():
            return [News("cancel", id=job_id, seq=int(seq), claim=int(claim))]
        case ["ended", *ids]:
            return [News("ended", id=job_id) for job_id in ids]
        case _:
            return [News("look")]
