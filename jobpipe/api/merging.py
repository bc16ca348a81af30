"""`unique`, `throttle` and `debounce` in a request: what they ask for, with what is left out, and what is wrong."""

from collections.abc import Sequence
from typing import NamedTuple

from jobpipe.api.problems import Fault
from jobpipe.api.schemas import EnqueueRequest, UniqueRequest
from jobpipe.job import Debounce, Over, Phase, Throttle, Unique
from jobpipe.merging import MAX_WAITS

PHASES: Sequence[tuple[Phase, ...]] = (("queued",), ("queued", "running"))


class Asked(NamedTuple):
    """How a request is to be merged with others; at most one of them."""

    unique: Unique | None = None
    throttle: Throttle | None = None
    debounce: Debounce | None = None


NOTHING = Asked()


def merging_of(request: EnqueueRequest, faults: list[Fault]) -> Asked:
    """How a request is to be merged with others; adds a fault for each thing that is wrong with that."""
    if request.unique is None and request.throttle is None and request.debounce is None:
        return NOTHING
    named = [name for name in ("unique", "throttle", "debounce") if getattr(request, name) is not None]
    faults += _combined(request, *named)
    return Asked(_unique(request.unique, faults), _throttle(request), _debounce(request, faults))


def _combined(request: EnqueueRequest, first: str, *others: str) -> Sequence[Fault]:
    """The faults of fields that do not go together."""
    faults = [Fault(f"/{name}", f"cannot be combined with {first}: send one of them") for name in others]
    if first != "unique":
        faults += [
            Fault(f"/{name}", f"cannot be combined with {first}, which says when the job is due")
            for name in ("delay", "run_at")
            if getattr(request, name) is not None
        ]
        if request.depends_on:
            faults.append(Fault("/depends_on", f"cannot be combined with {first}"))
    elif request.depends_on and request.unique is not None and request.unique.on_conflict == "replace":
        faults.append(Fault("/depends_on", 'cannot be combined with "on_conflict": "replace"'))
    return faults


def _unique(asked: UniqueRequest | None, faults: list[Fault]) -> Unique | None:
    if asked is None:
        return None
    over = _over(asked)
    if asked.key is None and not over:
        faults.append(Fault("/unique", "names nothing that is to be unique: send key or over"))
    if asked.on_conflict == "replace" and "kind" not in over:
        faults.append(Fault("/unique/over", "lacks kind: a job is replaced by one of its own kind only"))
    phases = PHASES[-1] if asked.while_ is None else tuple(sorted(set(asked.while_)))
    if phases not in PHASES:
        faults.append(Fault("/unique/while", 'begins with queued: send ["queued"] or ["queued", "running"]'))
    return Unique(asked.key, over, phases, asked.for_, asked.on_conflict)


def _over(asked: UniqueRequest) -> tuple[Over, ...]:
    """What belongs to a unique key beside the key that was sent."""
    if asked.over is not None:
        return tuple(sorted(set(asked.over)))
    return ("kind",) if asked.key is not None else ("kind", "payload")


def _throttle(request: EnqueueRequest) -> Throttle | None:
    asked = request.throttle
    return None if asked is None else Throttle(asked.key, asked.every, asked.trailing)


def _debounce(request: EnqueueRequest, faults: list[Fault]) -> Debounce | None:
    asked = request.debounce
    if asked is None:
        return None
    max_wait = MAX_WAITS * asked.wait if asked.max_wait is None else asked.max_wait
    if max_wait < asked.wait:
        faults.append(Fault("/debounce/max_wait", "is less than wait"))
    return Debounce(asked.key, asked.wait, max_wait)
