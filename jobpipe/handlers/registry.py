"""Which function performs the jobs of which kind."""

import functools
import importlib
import inspect
import sys
import traceback
import types
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import Any, TypeVar

import msgspec

from jobpipe.errors import HandlerError
from jobpipe.handlers.context import Context
from jobpipe.handlers.durations import Duration, in_seconds, seconds
from jobpipe.handlers.signature import name_of, read_signature
from jobpipe.job import DEFAULT_QUEUE, Backoff, Name, NewJob, Retries, Timeout, retries_of
from jobpipe.schedules import CatchUp, Declaration, Overlap, Spec, wrong

SHIPPED = ("jobpipe.handlers.echo", "jobpipe.handlers.demo")
_MARK = "__jobpipe_handler__"

FRAMES = 5
"""How many frames are shown of an error inside a module of handlers, the innermost ones."""

Function = TypeVar("Function", bound=Callable[..., Any])


class Handler(msgspec.Struct, frozen=True, kw_only=True):
    """A function with what it asks for. Times in seconds; None: the usual."""

    kind: str
    function: Callable[..., Any]
    """called by position with the payload, then the context, as far as it takes them"""
    is_async: bool
    takes_context: bool
    takes_payload: bool = True
    payload_type: Any = Any
    timeout: float | None = None
    max_retries: int | None = None
    backoff: Backoff | None = None
    schedule: Spec | None = None
    """when jobs of this kind are made by themselves"""

    def typed(self, payload: Any) -> Any:  # noqa: ANN401 - a payload is any JSON
        """The payload as the type that the handler is annotated with; raises `msgspec.ValidationError`."""
        if self.payload_type is Any:
            return payload
        # str_keys: in JSON every key is a text, so that of a dict[int, ...] too.
        return msgspec.convert(payload, self.payload_type, str_keys=True)

    def arguments(self, payload: bytes, context: Context | None) -> tuple[Any, ...]:
        """What the function is called with; raises `msgspec.ValidationError` when the payload does not fit.

        Only a function that takes the context needs one.
        """
        decoded = msgspec.json.decode(payload, type=self.payload_type)
        if self.takes_payload:
            return (decoded, context) if self.takes_context else (decoded,)
        return (context,) if self.takes_context else ()


class _Asked(msgspec.Struct, frozen=True, kw_only=True):
    """The decorator's arguments, to be checked."""

    kind: Name
    timeout: Timeout | None
    max_retries: Retries | None
    backoff: Backoff | None


def handler(  # noqa: PLR0913 - all by name
    kind: str,
    *,
    timeout: Duration | None = None,
    max_retries: int | None = None,
    backoff: Backoff | None = None,
    cron: str | None = None,
    every: Duration | None = None,
    timezone: str | None = None,
    overlap: Overlap | None = None,
    catch_up: CatchUp | None = None,
    jitter: Duration | None = None,
) -> Callable[[Function], Function]:
    """Let a function, async or not, perform the jobs of `kind`. It stays callable as it is.

    The function takes the payload, checked against its annotation, or nothing, and optionally the job's `Context`; what
    it returns, as JSON, is the job's result. A function that is not async runs in a thread. `timeout` is how long an
    attempt may take, in seconds or as `"5m"`; it, `max_retries` and `backoff` count where the job itself says nothing
    else.

    `cron` (with `timezone`) or `every` declares a schedule named like the kind, whose jobs have no payload; `overlap`,
    `catch_up` and `jitter` are as in `PUT /schedules/NAME`. Every node that has the handler declares it.

    Raises `HandlerError` at once when the function cannot be called so, or what is asked for makes no sense.
    """
    if not isinstance(kind, str):
        name = name_of(kind) if callable(kind) else ""
        raise HandlerError(f"@handler needs a kind: write @handler({name or 'KIND'!r})")
    # By way of builtins, since the values of a ready-made Backoff would not be checked.
    try:
        asked = msgspec.to_builtins(
            {"kind": kind, "timeout": seconds(timeout), "max_retries": max_retries, "backoff": backoff}
        )
        asked["backoff"] = in_seconds(asked["backoff"])
        checked = msgspec.convert(asked, _Asked)
        schedule = _schedule(
            cron=cron,
            every=seconds(every),
            timezone=timezone,
            overlap=overlap,
            catch_up=catch_up,
            jitter=seconds(jitter),
        )
    except (msgspec.ValidationError, TypeError, ValueError) as error:
        raise HandlerError(f"@handler({kind!r}): {error}") from None

    def mark(function: Function) -> Function:
        called = read_signature(function)
        described = Handler(
            **msgspec.structs.asdict(called), **msgspec.structs.asdict(checked), schedule=schedule
        )
        if schedule is not None:
            _check_needs_nothing(described)
        try:
            setattr(function, _MARK, described)
        except (AttributeError, TypeError):  # a method, a builtin: it takes no mark of its own
            carrier: Any = functools.partial(function)
            setattr(carrier, _MARK, described)
            return carrier  # type: ignore[no-any-return]  # called like the function itself
        return function

    return mark


def _schedule(**asked: object) -> Spec | None:
    """The schedule that was asked for; None: none was. Raises `ValueError` or `msgspec.ValidationError`."""
    given = {name: value for name, value in asked.items() if value is not None}
    if not given:
        return None
    spec = msgspec.convert(given, Spec)
    for field, words in wrong(spec):
        raise ValueError(f"{field} {words}")
    return spec


def _check_needs_nothing(described: Handler) -> None:
    try:
        described.typed(None)
    except msgspec.ValidationError:
        raise HandlerError(
            f"handler {name_of(described.function)}: the jobs of its schedule have no payload, and it needs one: "
            "let the parameter be None by default, or PUT a schedule with a payload"
        ) from None


class Registry:
    """The handlers of a node, by kind."""

    def __init__(self, handlers: Iterable[Handler], *, without: Sequence[str] = ()) -> None:
        self._by_kind: dict[str, Handler] = {}
        self.without = without
        """the modules that were named and define no handler"""
        for one in handlers:
            if (other := self._by_kind.setdefault(one.kind, one)) is not one:
                raise HandlerError(f"kind {one.kind!r} has two handlers: {_where(other)} and {_where(one)}")

    def find(self, kind: str) -> Handler | None:
        """The handler of a kind, or None."""
        return self._by_kind.get(kind)

    def max_retries(self, kind: str) -> int:
        """How many retries a job of a kind has that asks for no number."""
        found = self.find(kind)
        return retries_of(None if found is None else found.max_retries)

    @property
    def kinds(self) -> Sequence[str]:
        """Every kind that has a handler, sorted."""
        return sorted(self._by_kind)

    @property
    def declarations(self) -> Sequence[Declaration]:
        """The schedules that handlers declare."""
        return [
            Declaration(name=one.kind, spec=one.schedule, job=_job_of(one))
            for one in self._by_kind.values()
            if one.schedule is not None
        ]

    @property
    def served(self) -> frozenset[str]:
        """Every kind that has a handler."""
        return frozenset(self._by_kind)


def _job_of(one: Handler) -> NewJob:
    """What a schedule of a handler enqueues."""
    return NewJob(
        id="",
        kind=one.kind,
        queue=DEFAULT_QUEUE,
        payload=b"null",
        priority=0,
        max_retries=None,
        created_at=0.0,
        run_at=0.0,
    )


def load(modules: Iterable[str], *, shipped: bool = True) -> Registry:
    """Import modules, after those that jobpipe ships (unless not `shipped`), and gather the handlers they define.

    Modules are looked up in the working directory too. Raises `HandlerError` when one cannot be imported.
    """
    if (here := str(Path.cwd())) not in sys.path:
        sys.path.append(here)
    found: dict[int, Handler] = {}
    without: list[str] = []
    for name in (*(SHIPPED if shipped else ()), *modules):
        held = handlers_of(_imported(name))
        found |= {id(one): one for one in held}
        if not held:
            without.append(name)
    return Registry(found.values(), without=without)


def _imported(name: str) -> types.ModuleType:
    try:
        return importlib.import_module(name)
    except KeyboardInterrupt:
        raise
    except BaseException as error:
        # What a module raises costs the start, in words: SystemExit, a test framework's own exceptions, anything.
        raise HandlerError(f"HANDLERS: cannot import {name!r}: {_shown(name, error)}") from error  # noqa: ASYNC104 - see above


def _shown(name: str, error: BaseException) -> str:
    """An error in a module: its type and text, and the innermost frames below the import."""
    missing = error.name if isinstance(error, ModuleNotFoundError) else None
    if missing is not None and (name == missing or name.startswith(f"{missing}.")):
        return f"there is no module {missing!r} in {Path.cwd()} or among the installed packages"
    try:
        words = str(error) if isinstance(error, HandlerError) else _headed(error)
    except Exception:  # noqa: BLE001 - an error that cannot even be shown
        words = f"{type(error).__name__} (it cannot be shown)"
    frames = [each for each in traceback.extract_tb(error.__traceback__) if not _is_machinery(each)]
    lines = [line for each in traceback.format_list(frames[-FRAMES:]) for line in each.splitlines()]
    return "\n".join([words, *filter(str.strip, lines)])


def _headed(error: BaseException) -> str:
    """Type and text of an error; of wrong syntax also file, line and place."""
    return "".join(traceback.format_exception_only(error)).rstrip()


def _is_machinery(frame: traceback.FrameSummary) -> bool:
    """Whether a frame belongs to the import itself or to jobpipe's decorator."""
    own = (importlib.__file__, __file__, inspect.getfile(read_signature))
    return frame.filename.startswith("<frozen importlib") or frame.filename in own


def handlers_of(module: types.ModuleType) -> Sequence[Handler]:
    """The handlers that a module holds, in order of definition."""
    # Static: to ask a proxy for an attribute, such as Flask's `request`, may raise anything.
    marks = (inspect.getattr_static(value, _MARK, None) for value in vars(module).values())
    return [mark for mark in marks if isinstance(mark, Handler)]


def _where(one: Handler) -> str:
    return f"{getattr(one.function, '__module__', '?')}.{name_of(one.function)}"


def without_handlers(module: str) -> str:
    """What to say of a module of HANDLERS that defines no handler."""
    return f"module {module!r} defines no handler: is @handler missing, or are they in another module?"
