"""How a handler is called: which of its parameters is the payload, and which the `Context`."""

import functools
import inspect
import re
import types
import typing
from collections.abc import Callable, Mapping, Sequence
from inspect import Parameter
from typing import Any

import msgspec

from jobpipe.errors import HandlerError
from jobpipe.handlers import payloads
from jobpipe.handlers.context import Context

CONTEXT_NAMES = frozenset({"context", "ctx", "job"})
"""Names by which a parameter without annotation gets the `Context`."""

_NAMED = re.compile(r"([\w.]*Optional\[)?([\w.]+\.)?Context\]?(\|None)?")

Annotations = Mapping[str, Any]


class Signature(msgspec.Struct, frozen=True):
    """A function as it is called: by position with the payload, then the context, as far as it takes them."""

    function: Callable[..., Any]
    is_async: bool
    takes_payload: bool
    takes_context: bool
    payload_type: Any
    """None where it takes no payload: only `null` fits then"""


def read_signature(function: Callable[..., Any]) -> Signature:
    """Which parameter of a function is the payload, and which the `Context`.

    The context goes to the parameter that is annotated `Context`, or that has no annotation and is called `context`,
    `ctx` or `job`. At most one other parameter is left, and gets the payload; one that has a default and can only be
    given by name keeps its default. Raises `HandlerError`, in words, for every other function.
    """
    name = name_of(function)
    try:
        _check_is_function(function)
        parameters = _parameters(function)
        annotations = _annotations(function, parameters)
        context = _context_parameter(parameters, annotations)
        payload = _payload_parameter([each for each in parameters if each is not context])
        payload_type = None if payload is None else _payload_type(payload, annotations)
    except HandlerError as error:
        raise HandlerError(f"handler {name}: {error}") from error.__cause__
    called_with = [each for each in (payload, context) if each is not None]
    return Signature(
        function
        if _by_position(called_with, parameters)
        else _called_by_name(function, called_with, parameters),
        inspect.iscoroutinefunction(_code_of(function)),
        payload is not None,
        context is not None,
        payload_type,
    )


def name_of(function: Callable[..., Any]) -> str:
    """A function by name; of an object that can be called, by the name of its class."""
    inner = function.func if isinstance(function, functools.partial) else function
    return str(getattr(inner, "__qualname__", type(inner).__qualname__))


def _check_is_function(function: Callable[..., Any]) -> None:
    if not callable(function):
        raise HandlerError("it cannot be called: put @handler on a function")
    if inspect.isclass(function):
        raise HandlerError("it is a class: put @handler on a function")
    if isinstance(function, staticmethod | classmethod) or _is_in_class(function):
        raise HandlerError("it is defined inside a class: move it to the top level of its module")
    code = _code_of(function)
    if inspect.isgeneratorfunction(code) or inspect.isasyncgenfunction(code):
        raise HandlerError("it yields: a handler returns its result")


def _is_in_class(function: Callable[..., Any]) -> bool:
    """Whether a plain function stands in the body of a class, where it would not be found."""
    if not isinstance(function, types.FunctionType):
        return False
    around = function.__qualname__.rpartition(".")[0]
    return bool(around) and not around.endswith("<locals>")


def _code_of(function: Callable[..., Any]) -> Callable[..., Any]:
    """What is run by a call: of a partial its function, of an object its method `__call__`."""
    while isinstance(function, functools.partial):
        function = function.func
    if isinstance(function, types.FunctionType | types.MethodType | types.BuiltinFunctionType):
        return function
    return type(function).__call__


def _parameters(function: Callable[..., Any]) -> Sequence[Parameter]:
    try:
        return list(inspect.signature(function).parameters.values())
    except (ValueError, TypeError, NameError) as error:
        raise HandlerError(f"its parameters cannot be read ({error}): wrap it in a function") from error


def _annotations(function: Callable[..., Any], parameters: Sequence[Parameter]) -> Annotations:
    """The annotations of the parameters, with those that are text read. One that cannot be read stays text."""
    names = getattr(inspect.unwrap(_code_of(inspect.unwrap(function))), "__globals__", {})
    return {
        each.name: _read_annotation(each.annotation, names)
        for each in parameters
        if each.annotation is not each.empty
    }


def _read_annotation(annotation: Any, names: Mapping[str, Any]) -> Any:  # noqa: ANN401 - a type form has no type yet
    holder = types.SimpleNamespace(__annotations__={"it": annotation})
    try:
        return typing.get_type_hints(holder, globalns=dict(names), include_extras=True)["it"]
    except Exception:  # noqa: BLE001 - text may be any expression; what it means is judged where it is needed
        return annotation


def _is_context(annotation: Any) -> bool:  # noqa: ANN401 - see above
    """Whether an annotation asks for the `Context`: it, it or None, or its name where that cannot be looked up."""
    if isinstance(annotation, str):  # as where it is imported for type checkers only
        return _NAMED.fullmatch(annotation.replace(" ", "")) is not None
    if typing.get_origin(annotation) in (typing.Union, types.UnionType):
        members = set(typing.get_args(annotation)) - {types.NoneType}
        return len(members) == 1 and _is_context(members.pop())
    return annotation is Context or getattr(annotation, "__origin__", None) is Context


def _context_parameter(parameters: Sequence[Parameter], annotations: Annotations) -> Parameter | None:
    asking = [each for each in parameters if _is_context(annotations.get(each.name))] or [
        each for each in parameters if each.name in CONTEXT_NAMES and each.name not in annotations
    ]
    if len(asking) > 1:
        raise HandlerError(
            f"both {_listed(asking)} would get the Context: annotate the right one as jobpipe.Context"
        )
    for each in asking:
        _refuse_variable(each)
    return asking[0] if asking else None


def _refuse_variable(parameter: Parameter) -> None:
    if parameter.kind in (Parameter.VAR_POSITIONAL, Parameter.VAR_KEYWORD):
        raise HandlerError(
            f"it takes {_listed([parameter])}: name one parameter for the payload "
            "(a decorator between the function and @handler should use functools.wraps)"
        )


def _payload_parameter(rest: Sequence[Parameter]) -> Parameter | None:
    """The parameter that gets the payload, of those that are not the context."""
    given = [each for each in rest if each.kind is not Parameter.KEYWORD_ONLY or each.default is each.empty]
    # What `**extra` would take, nobody gives: it does no harm beside a parameter for the payload.
    asking = [each for each in given if each.kind is not Parameter.VAR_KEYWORD] or given
    if not asking:
        return None
    first, *others = asking
    _refuse_variable(first)
    if any(each.default is each.empty for each in others):
        raise HandlerError(
            f"it takes {_listed(asking)}, but a job has one payload: take one parameter (a dict, or a msgspec.Struct "
            "with these fields); to give one of them the Context, annotate it as jobpipe.Context"
        )
    if others:
        raise HandlerError(
            f"nothing would ever fill {_listed(others)}: make it a field of the payload, or put * before it "
            "to keep its default; to give it the Context, annotate it as jobpipe.Context"
        )
    return first


def _listed(parameters: Sequence[Parameter]) -> str:
    return " and ".join(f"`{str(each).partition(':')[0].partition('=')[0]}`" for each in parameters)


def _payload_type(parameter: Parameter, annotations: Annotations) -> Any:  # noqa: ANN401 - see above
    payload_type = annotations.get(parameter.name, Any)
    if isinstance(payload_type, str):
        raise HandlerError(
            f"the type of its payload, {payload_type!r}, is not known in its module: "
            "import it there (not only for type checkers), at the top level"
        )
    try:
        payloads.check(payload_type)
    except HandlerError as error:
        raise HandlerError(f"its payload `{parameter.name}`: {error}") from error.__cause__
    return payload_type


def _by_position(called_with: Sequence[Parameter], parameters: Sequence[Parameter]) -> bool:
    """Whether payload and context can be given just so: they come first, in this order."""
    positional = (Parameter.POSITIONAL_ONLY, Parameter.POSITIONAL_OR_KEYWORD)
    return all(each.kind in positional for each in called_with) and (
        list(parameters[: len(called_with)]) == list(called_with)
    )


def _called_by_name(
    function: Callable[..., Any], called_with: Sequence[Parameter], parameters: Sequence[Parameter]
) -> Callable[..., Any]:
    """The function as one that takes payload and context by position, in this order."""
    names = [each.name for each in called_with]
    first = [
        each.name for each in parameters if each.kind is Parameter.POSITIONAL_ONLY and each in called_with
    ]

    @functools.wraps(function)
    def call(*values: Any) -> Any:  # noqa: ANN401 - payload and context, and whatever it returns
        given = dict(zip(names, values, strict=True))
        return function(*[given.pop(name) for name in first], **given)

    return call
