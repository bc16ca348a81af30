"""What nodes tell one another over a channel: a word, and what it is about.

Anyone who can connect to the database may notify too, so each of these is only a reason to look in the store.
"""

from collections.abc import Iterator, Mapping, Sequence
from typing import Annotated, Literal

import msgspec
from msgspec import Meta

from jobpipe.job import LATEST, Status
from jobpipe.store.base import Notification, Told, Untold
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

LISTENERS = "listeners"
"""Somewhere somebody listens to all jobs, or nobody any more."""

TOLD = "told"
"""What became of jobs, for those who listen to all of them; JSON follows."""

ASKED = "asked"
"""A node is asked for a look at the tasks of a job; its name follows."""

ANSWERED = "answered"
"""A node has answered."""

Number = Annotated[int, Meta(ge=0, lt=1 << 62)]


class Row(msgspec.Struct, frozen=True, array_like=True, forbid_unknown_fields=True):
    """What became of one job."""

    id: Annotated[str, Meta(min_length=1, max_length=200)]
    status: str | None
    at: Annotated[float, Meta(ge=0, le=LATEST)]


class Tale(msgspec.Struct, frozen=True, array_like=True, forbid_unknown_fields=True):
    """Changes that one node tells, numbered one after another, and how many it leaves out behind them."""

    node: Annotated[str, Meta(min_length=1, max_length=500)]
    first: Number
    more: Number
    changes: list[Row]


_STATUSES: Mapping[str | None, Status | Literal["deleted"] | None] = {
    None: None,
    "deleted": "deleted",
    **{one.value: one for one in Status},
}
_encode = msgspec.json.Encoder().encode
_tale = msgspec.json.Decoder(Tale).decode

_ALONE: Mapping[str, Notification] = {
    READY: Notification("look"),
    CANCEL: Notification("look"),
    PAUSED: Notification("paused"),
    SCHEDULES: Notification("schedules"),
    LISTENERS: Notification("listeners"),
    ANSWERED: Notification("answered"),
}
"""What the words mean that stand alone."""

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


def tale_word(node: str, first: int, changes: Sequence[Untold], more: int) -> tuple[str, int]:
    """A notification of changes (id, status, time), as many as it holds, and how many these are."""
    empty = f"{TOLD} {_encode([node, first, 1 << 61, []]).decode()}"
    room, told = LONGEST - len(empty.encode()), list[str]()
    for change in changes:
        encoded = _encode(change)
        room -= len(encoded) + 1
        if room < 0:
            break
        told.append(encoded.decode())
    left = len(changes) - len(told) + more
    return f"{TOLD} [{_encode(node).decode()},{first},{left},[{','.join(told)}]]", len(told)


def _told(tale: str) -> Sequence[Notification] | None:
    try:
        read = _tale(tale)
        statuses = [_STATUSES[one.status] for one in read.changes]
    except (msgspec.MsgspecError, UnicodeError, RecursionError, KeyError):
        return None
    told = [
        Notification("told", id=one.id, told=Told(read.node, number, statuses[number - read.first], one.at))
        for number, one in enumerate(read.changes, start=read.first)
    ]
    if read.more:
        last = read.first + len(told) + read.more - 1
        told.append(Notification("told", told=Told(read.node, last, None, 0.0)))
    return told


def news(word: str) -> Sequence[Notification] | None:
    """What a notification may mean; None: it is none of ours."""
    match word.split(" "):
        case [one, *_] if one == TOLD:
            return _told(word.removeprefix(TOLD))
        case [one] if one in _ALONE:
            return [_ALONE[one]]
        case [one, *_] if one == ASKED:
            return [Notification("asked", id=word.removeprefix(f"{ASKED} "))]
        case [one, *ids] if one == ENDED and ids and all(ids):
            return [Notification("ended", id=job_id) for job_id in ids]
        case _:
            return None
