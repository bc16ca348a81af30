"""What nodes tell one another over a channel: a word, and what it is about.

Anyone who can connect to the database may notify too, so each of these is only a reason to look in the store.
"""

from collections.abc import Iterator, Sequence

from jobpipe.store.base import Notification
from jobpipe.store.postgres.arrays import Texts
from jobpipe.store.postgres.session import Session

LONGEST = 7900
"""Bytes of one notification; PostgreSQL takes less than 8,000."""

READY = "ready"
"""Jobs may be ready."""

CANCEL = "cancel"
"""A held job was asked to stop."""

PAUSED = "paused"
"""A queue was paused."""

SCHEDULES = "schedules"
"""A schedule may be due earlier than it was."""

ENDED = "ended"
"""Watched jobs have ended; their ids follow."""

_NOTIFY = "select pg_notify(%(channel)s, %(word)s)"
_WAKE = """
select pg_notify(%(channel)s, %(word)s)
where exists (
    select from nodes
    where idle
        and lease_until is not null
        and name <> %(node)s
        and (%(kinds)s::text[] is null or kinds && %(kinds)s::text[])
        and (%(queues)s::text[] is null or idle_for is null or idle_for && %(queues)s::text[])
)
"""


def notify(session: Session, channel: str, words: Sequence[str]) -> None:
    """Tell other nodes when this transaction is committed."""
    for word in words:
        session.run(_NOTIFY, {"channel": channel, "word": word})


def wake(session: Session, channel: str, node: str, kinds: Texts | None, queues: Texts | None) -> None:
    """Tell that jobs of these kinds and queues are ready, if another node that serves one has room for them.

    None: they may be of any.
    """
    session.run(_WAKE, {"channel": channel, "word": READY, "node": node, "kinds": kinds, "queues": queues})


def ended_words(ids: Sequence[str]) -> Sequence[str]:
    """Watched jobs have ended. An id has no spaces."""
    return list(_joined(ids)) if ids else []


def _joined(ids: Sequence[str]) -> Iterator[str]:
    word = ENDED
    for job_id in ids:
        if len(f"{word} {job_id}".encode()) > LONGEST:
            yield word
            word = ENDED
        word += f" {job_id}"
    yield word


def news(word: str) -> Sequence[Notification] | None:
    """What a notification may mean; None: it is none of ours."""
    match word.split(" "):
        case [one] if one in {READY, CANCEL}:
            return [Notification("look")]
        case [one] if one == PAUSED:
            return [Notification("paused")]
        case [one] if one == SCHEDULES:
            return [Notification("schedules")]
        case [one, *ids] if one == ENDED and ids and all(ids):
            return [Notification("ended", id=job_id) for job_id in ids]
        case _:
            return None
