"""Which function performs the jobs of which kind."""

import importlib
import inspect
import sys
import types
import typing
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, TypeVar

import msgspec

from jobpipe.errors import HandlerError
from jobpipe.handlers.context import Context
from jobpipe.job import Backoff, Name, Retries, Timeout

SHIPPED = ("jobpipe.handlers.echo", "jobpipe.handlers.demo")
_MARK = "__jobpipe_handler__"

Function = TypeVar("Function", bound=Callable[..., Any])


class Handler(msgspec.Struct, frozen=True, kw_only=True):
    """A function with what it asks for. Times in seconds; None: the usual."""

    kind: str
    function: Callable[..., Any]
    is_async: bool
    takes_context: bool
    payload_type: Any = Any
    timeout: float | None = None
    max_retries: int | None = None
    backoff: Backoff | None = None

    def typed(self, payload: Any) -> Any:  # noqa: ANN401 - a payload is any JSON
        """The payload as the type that the handler is annotated with; raises `msgspec.ValidationError`."""
        if self.payload_type is Any:
            return payload
        # str_keys: in JSON every key is a text, so that of a dict[int, ...] too.
        return msgspec.convert(payload, self.payload_type, str_keys=True)

    def arguments(self, payload: bytes, context: Context) -> tuple[Any, ...]:
        """What the function is called with; raises `msgspec.ValidationError` when the payload does not fit."""
        decoded = msgspec.json.decode(payload, type=self.payload_type)
        return (decoded, context) if self.takes_context else (decoded,)


class _Asked(msgspec.Struct, frozen=True, kw_only=True):
    """The decorator's arguments, to be checked."""

    kind: Name
    timeout: Timeout | None
    max_retries: Retries | None
    backoff: Backoff | None


def handler(
    kind: str,
    *,
    timeout: float | None = None,
    max_retries: int | None = None,
    backoff: Backoff | None = None,
) -> Callable[[Function], Function]:
    """Let a function, async or not, perform the jobs of `kind`. It stays callable as it is.

    The function takes the payload, checked against its annotation, and optionally the job's `Context`; what it returns,
    as JSON, is the job's result. One that is not async runs in a thread. `timeout` is seconds an attempt,
    `max_retries` and `backoff` count when the job itself says nothing else. Raises `HandlerError` at once when
    the function cannot be called so.
    """
    asked = {"kind": kind, "timeout": timeout, "max_retries": max_retries, "backoff": backoff}
    try:
        # By way of builtins, since the values of a ready-made Backoff would not be checked.
        checked = msgspec.convert(msgspec.to_builtins(asked), _Asked)
    except (msgspec.ValidationError, TypeError) as error:
        raise HandlerError(f"@handler({kind!r}): {error}") from None

    def mark(function: Function) -> Function:
        setattr(function, _MARK, _described(function, msgspec.structs.asdict(checked)))
        return function

    return mark


def _described(function: Callable[..., Any], asked: Mapping[str, Any]) -> Handler:
    if inspect.isgeneratorfunction(function) or inspect.isasyncgenfunction(function):
        raise HandlerError(f"{function.__qualname__} yields: a handler returns its result")
    positional = (inspect.Parameter.POSITIONAL_ONLY, inspect.Parameter.POSITIONAL_OR_KEYWORD)
    parameters = list(inspect.signature(function).parameters.values())
    taken = [one for one in parameters if one.kind in positional]
    required = [one for one in parameters if one.default is one.empty and one.kind is not one.VAR_KEYWORD]
    if not 1 <= len(taken) <= 2 or len(required) > len(taken):  # noqa: PLR2004 - payload and context
        raise HandlerError(
            f"{function.__qualname__} must take the payload, and may take the context: nothing else"
        )
    return Handler(
        function=function,
        is_async=inspect.iscoroutinefunction(function),
        takes_context=len(taken) > 1,
        payload_type=_payload_type(function, taken[0].name),
        **asked,
    )


def _payload_type(function: Callable[..., Any], parameter: str) -> Any:  # noqa: ANN401 - a type form has no type yet
    try:
        payload_type = typing.get_type_hints(function, include_extras=True).get(parameter, Any)
        msgspec.json.Decoder(payload_type)
    except (NameError, TypeError) as error:
        raise HandlerError(
            f"{function.__qualname__}: the type of its payload cannot be read from JSON: {error}"
        ) from None
    return payload_type


class Registry:
    """The handlers of a node, by kind."""

    def __init__(self, handlers: Iterable[Handler]) -> None:
        self._by_kind: dict[str, Handler] = {}
        for one in handlers:
            if (other := self._by_kind.setdefault(one.kind, one)) is not one:
                raise HandlerError(f"kind {one.kind!r} has two handlers: {_where(other)} and {_where(one)}")

    def find(self, kind: str) -> Handler | None:
        """The handler of a kind, or None."""
        return self._by_kind.get(kind)

    @property
    def kinds(self) -> Sequence[str]:
        """Every kind that has a handler, sorted."""
        return sorted(self._by_kind)

    @property
    def served(self) -> frozenset[str]:
        """Every kind that has a handler."""
        return frozenset(self._by_kind)


def load(modules: Iterable[str]) -> Registry:
    """Import modules, the shipped ones first, and gather the handlers that they define.

    Modules are looked up in the working directory too. Raises `HandlerError` when one cannot be imported.
    """
    if (here := str(Path.cwd())) not in sys.path:
        sys.path.append(here)
    found: dict[int, Handler] = {}
    for name in (*SHIPPED, *modules):
        found |= {id(one): one for one in handlers_of(_imported(name))}
    return Registry(found.values())


def _imported(name: str) -> types.ModuleType:
    try:
        return importlib.import_module(name)
    except (Exception, SystemExit) as error:
        raise HandlerError(f"HANDLERS: cannot import {name!r} ({type(error).__name__}: {error})") from error


def handlers_of(module: types.ModuleType) -> Sequence[Handler]:
    """The handlers that a module holds, in order of definition."""
    # Static: to ask a proxy for an attribute, such as Flask's `request`, may raise anything.
    marks = (inspect.getattr_static(value, _MARK, None) for value in vars(module).values())
    return [mark for mark in marks if isinstance(mark, Handler)]


def _where(one: Handler) -> str:
    return f"{one.function.__module__}.{one.function.__qualname__}"
