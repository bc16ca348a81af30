"""What people ask of queues, and how a row of `queues` is read."""

from collections.abc import Collection, Sequence

import msgspec

from jobpipe.store.base import NOTHING_SET, QueueChange, QueueSettings
from jobpipe.store.verbs.transaction import PAUSED, READY, Transaction

_SETTINGS = QueueSettings.__struct_fields__
COLUMNS = ", ".join(("paused", "reason", "paused_until", *_SETTINGS))
"""What is read of a row; all of it is null where there is none."""

_PAUSE = """
insert into queues (name, paused, reason, paused_until)
values (:name, :paused, :reason, :until)
on conflict (name) do update set
    paused = excluded.paused,
    reason = excluded.reason,
    paused_until = excluded.paused_until
"""
_PUT = f"""
insert into queues (name, has_settings, {", ".join(_SETTINGS)})
values (:name, :has_settings, {", ".join(f":{name}" for name in _SETTINGS)})
on conflict (name) do update set
    has_settings = excluded.has_settings,
    {", ".join(f"{name} = excluded.{name}" for name in _SETTINGS)}
"""
_LOOK_THROUGH_AGAIN = "delete from sweeps"
_CLOSED = "select name from queues where closed = 1 and name in {each names}"

LARGEST = 1e15
"""A number beyond it is none that was set: its row is damaged."""


def settings_from(values: Sequence[object]) -> QueueSettings:
    """The settings in a row, as its columns have them. What cannot have been set counts as not set."""
    closed, *numbers = values
    if closed is None:
        return NOTHING_SET
    keep_done, keep_failed, keep_jobs, keep_bytes = map(_sound, numbers)
    return QueueSettings(
        closed=closed == 1,
        keep_done=keep_done,
        keep_failed=keep_failed,
        keep_jobs=None if keep_jobs is None else int(keep_jobs),
        keep_bytes=None if keep_bytes is None else int(keep_bytes),
    )


def _sound(value: object) -> float | None:
    return value if isinstance(value, int | float) and 0 <= value <= LARGEST else None


async def pause(tx: Transaction, queue: str, reason: str | None = None, until: float | None = None) -> None:
    """See `jobpipe.store.base.ControlStore.pause`."""
    _set_paused(tx, queue, paused=True, reason=reason, until=until)
    tx.tell(PAUSED)


async def resume(tx: Transaction, queue: str) -> None:
    """See `jobpipe.store.base.ControlStore.resume`."""
    _set_paused(tx, queue, paused=False)
    tx.tell(READY)


def _set_paused(
    tx: Transaction, queue: str, *, paused: bool, reason: str | None = None, until: float | None = None
) -> None:
    at = None if until is None else float(until)
    tx.run(_PAUSE, {"name": queue, "paused": paused, "reason": reason, "until": at})


async def put(tx: Transaction, queue: str, settings: QueueSettings) -> None:
    """See `jobpipe.store.base.ControlStore.put_queue`."""
    values = {
        name: float(value) if name in {"keep_done", "keep_failed"} and value is not None else value
        for name, value in msgspec.structs.asdict(settings).items()
    }
    values["closed"] = int(settings.closed)
    tx.run(_PUT, {"name": queue, "has_settings": int(settings != NOTHING_SET), **values})
    if settings.keeps:
        tx.run(_LOOK_THROUGH_AGAIN, {})


async def closed(tx: Transaction, names: Collection[str]) -> frozenset[str]:
    """Those of the queues that take no new jobs."""
    if not names:
        return frozenset()
    values = {"names": msgspec.json.encode(sorted(set(names))).decode()}
    return frozenset(name for (name,) in await tx.rows(_CLOSED, values))


async def delete(tx: Transaction, queue: str) -> QueueChange:
    """See `jobpipe.store.base.ControlStore.delete_queue`."""
    state = await tx.queue(queue)
    if state is None:
        return QueueChange("absent")
    if state.counts:
        return QueueChange("refused", state)
    tx.forget_queue(queue)
    return QueueChange("changed")
