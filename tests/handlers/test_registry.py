"""Which function performs the jobs of which kind."""

import dataclasses
import datetime as dt
import enum
import functools
import math
import re
import sys
import threading
from collections.abc import Callable, Hashable, Iterator
from fractions import Fraction
from pathlib import Path
from types import SimpleNamespace
from typing import Annotated, Any, Literal, NamedTuple, Optional, TypedDict

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

import jobpipe
from jobpipe.errors import HandlerError
from jobpipe.handlers.context import Context
from jobpipe.handlers.registry import FRAMES, Handler, Registry, handler, handlers_of, load
from jobpipe.job import Backoff
from jobpipe.schedules import Spec


class Mail(msgspec.Struct, forbid_unknown_fields=True):
    to: str
    copies: int = 0


@dataclasses.dataclass
class Point:
    x: float
    y: float


@dataclasses.dataclass
class Line:
    a: Point
    b: Point


class Colour(enum.StrEnum):
    RED = "red"


CONTEXT = Context(
    id="a",
    kind="k",
    queue="default",
    attempt=1,
    max_retries=3,
    claim=7,
    deadline=9.0,
)


def marked(function: Callable[..., Any]) -> Handler:
    """The handler that a decorated function carries."""
    module = type(sys)("made")
    module.__dict__["function"] = function
    (found,) = handlers_of(module)
    return found


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """The working directory, with nothing in it; what is imported from it is forgotten afterwards."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", list(sys.path))
    monkeypatch.setattr(sys, "dont_write_bytecode", True)
    before = set(sys.modules)
    yield tmp_path
    for name in set(sys.modules) - before:
        del sys.modules[name]


def write(folder: Path, name: str, text: str) -> None:
    path = folder / name
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("from jobpipe import *\nfrom jobpipe import handler\n" + text)


# --- the decorator ----------------------------------------------------------------------------------------------------


def test_a_function_becomes_a_handler_and_stays_itself() -> None:
    """So that it can be called in a test like any other function."""

    @handler("add")
    def add(payload: list[int]) -> int:
        return sum(payload)

    found = marked(add)

    assert add([1, 2]) == 3
    assert (found.kind, found.function, found.is_async, found.takes_context) == ("add", add, False, False)
    assert (found.timeout, found.max_retries, found.backoff) == (None, None, None)


def test_a_handler_may_ask_for_its_own_limits() -> None:
    """They count for jobs that say nothing else."""

    @handler("mail.send", timeout=30, max_retries=0, backoff=Backoff(base=5))
    async def send(payload: Mail, context: Context) -> None: ...

    found = marked(send)

    assert (found.is_async, found.takes_context, found.payload_type) == (True, True, Mail)
    assert (found.timeout, found.max_retries, found.backoff) == (30.0, 0, Backoff(base=5))


@pytest.mark.parametrize(
    ("kind", "asked", "fault"),
    [
        ("", {}, "kind"),
        ("a b", {}, "kind"),
        ("a/b", {}, "kind"),
        ("x" * 101, {}, "kind"),
        (5, {}, "kind"),
        ("k", {"timeout": 0}, "timeout"),
        ("k", {"timeout": -1}, "timeout"),
        ("k", {"timeout": "0s"}, "timeout"),
        ("k", {"timeout": "5 parsecs"}, "'5 parsecs' is not a duration"),
        ("k", {"timeout": True}, "timeout"),
        ("k", {"timeout": math.nan}, "timeout"),
        ("k", {"timeout": math.inf}, "timeout"),
        ("k", {"max_retries": -1}, "max_retries"),
        ("k", {"max_retries": 1.5}, "max_retries"),
        ("k", {"max_retries": 10_001}, "max_retries"),
        ("k", {"backoff": Backoff(base=-1)}, "backoff"),
        ("k", {"backoff": Backoff(factor=0.5)}, "backoff"),
        ("k", {"backoff": Backoff(jitter="some")}, "backoff"),  # type: ignore[arg-type]  # that is the point
        ("k", {"backoff": {"bass": 1}}, "backoff"),
        ("k", {"backoff": {"base": "soon"}}, "'soon' is not a duration"),
        ("k", {"backoff": 5}, "backoff"),
        ("k", {"backoff": object()}, "object"),
    ],
)
def test_senseless_wishes_are_refused_at_once(kind: Any, asked: dict[str, Any], fault: str) -> None:
    """And not when the first job of the kind fails."""
    with pytest.raises(HandlerError, match=fault):
        handler(kind, **asked)


def test_a_backoff_in_plain_words_will_do() -> None:
    """As it stands in a job's JSON."""

    @handler("k", backoff={"base": 5, "jitter": "none"})  # type: ignore[arg-type]  # allowed, not advertised
    def function(payload: Any) -> None: ...

    assert marked(function).backoff == Backoff(base=5, jitter="none")


@pytest.mark.parametrize(
    ("timeout", "seconds"),
    [(30, 30.0), ("90", 90.0), ("500ms", 0.5), ("5m", 300.0), (dt.timedelta(hours=1), 3600.0)],
)
def test_a_timeout_is_written_as_in_the_settings(timeout: Any, seconds: float) -> None:
    """Seconds, a text with a unit, or what Python has for durations."""

    @handler("k", timeout=timeout)
    def function(payload: Any) -> None: ...

    assert marked(function).timeout == seconds


def test_the_durations_of_a_backoff_are_written_so_too() -> None:
    """Its base and its cap."""

    @handler("k", backoff=Backoff(base="2s", cap="1h"))  # type: ignore[arg-type]  # allowed, not advertised
    def function(payload: Any) -> None: ...

    assert marked(function).backoff == Backoff(base=2.0, cap=3600.0)


def test_a_decorator_without_its_kind_is_refused_in_words() -> None:
    """It would have taken the function for the kind."""

    def nightly() -> None: ...

    with pytest.raises(HandlerError, match=r"needs a kind: write @handler\('.*nightly'\)"):
        handler(nightly)  # type: ignore[arg-type]  # that is the point


# --- signatures: what each function is called with --------------------------------------------------------------------

P, C = "the payload", CONTEXT


class Shop:
    """A class with methods of all kinds."""

    def send(self, mail: Any) -> Any:
        return mail

    async def send_soon(self, mail: Any) -> Any:
        return mail

    def __call__(self, mail: str, *, job: Context) -> Any:
        return mail, job

    @staticmethod
    def static(mail: Any) -> Any:
        return mail


class Slotted:
    """An object that can be called and takes no mark."""

    __slots__ = ()

    def __call__(self, mail: Any) -> Any:
        return mail


def logged(function: Callable[..., Any]) -> Callable[..., Any]:
    """A decorator as it should be."""

    @functools.wraps(function)
    def call(*arguments: Any, **keywords: Any) -> Any:
        return function(*arguments, **keywords)

    return call


def careless(function: Callable[..., Any]) -> Callable[..., Any]:
    """A decorator that hides what it wraps."""

    def call(*arguments: Any, **keywords: Any) -> Any:
        return function(*arguments, **keywords)

    return call


WORKING: dict[str, tuple[Any, tuple[Any, ...]]] = {}
REFUSED: dict[str, tuple[Any, str]] = {}


def works(*given: Any) -> Callable[[Any], Any]:
    """Note a function that returns what it was called with, and what that should be."""

    def note(function: Any) -> Any:
        WORKING[function.__name__] = function, given
        return function

    return note


def refused(words: str) -> Callable[[Any], Any]:
    """Note a function that is refused, and with which words."""

    def note(function: Any) -> Any:
        REFUSED[function.__name__] = function, words
        return function

    return note


# The parameters have no annotations where that is what is tested.
# mypy: disable-error-code="no-untyped-def"


@works()
def nothing() -> Any:
    return ()


@works(P)
def payload_alone(mail) -> Any:
    return (mail,)


@works(P)
def payload_by_position(mail: Any, /) -> Any:
    return (mail,)


@works(P)
def payload_by_name(*, mail: Any) -> Any:
    return (mail,)


@works(P)
def payload_with_a_default(mail: Any = None) -> Any:
    return (mail,)


@works(P, C)
def context_by_name_of_parameter(mail, context) -> Any:
    return mail, context


@works(P, C)
def context_called_ctx(mail, ctx) -> Any:
    return mail, ctx


@works(P, C)
def context_called_job(mail, job) -> Any:
    return mail, job


@works(P, C)
def context_by_annotation(mail: Any, anything: Context) -> Any:
    return mail, anything


@works(P, C)
def context_in_text(mail: "str", anything: "Context") -> Any:
    return mail, anything


@works(P, C)
def context_imported_for_type_checkers(mail: Any, anything: "jobpipe.handlers.Context | None" = None) -> Any:  # type: ignore[name-defined]  # that is the point
    return mail, anything


@works(P, C)
def context_or_none(mail: Any, context: Context | None = None) -> Any:
    return mail, context


@works(P, C)
def optional_context(mail: Any, it: Optional[Context] = None) -> Any:  # noqa: UP045 - the older way to write it
    return mail, it


@works(P, C)
def annotated_context(mail: Any, it: Annotated[Context, "ours"]) -> Any:
    return mail, it


@works(P, C)
def context_first(ctx: Context, mail: Any) -> Any:
    return mail, ctx


@works(P, C)
def context_first_by_position(ctx: Context, mail: Any, /) -> Any:
    return mail, ctx


@works(P, C)
def context_by_keyword(mail: Any, *, ctx: Context) -> Any:
    return mail, ctx


@works(P, C)
def all_by_keyword(*, ctx: Context, mail: Any) -> Any:
    return mail, ctx


@works(P, C)
def payload_by_position_context_by_keyword(mail: Any, /, *, ctx: Context) -> Any:
    return mail, ctx


@works(P, C)
def payload_called_job_beside_an_annotated_context(job, it: Context) -> Any:
    return job, it


@works(C)
def context_alone(job) -> Any:
    return (job,)


@works(P, False)
def option_by_keyword(mail: Any, *, dry_run: bool = False) -> Any:
    return mail, dry_run


@works(False)
def nothing_but_an_option(*, dry_run: bool = False) -> Any:
    return (dry_run,)


@works(P, {})
def extras_beside_the_payload(mail: Any, **extra: Any) -> Any:
    return mail, extra


@works(P, C)
@logged
def decorated(mail: str, context: Context) -> Any:
    return mail, context


@refused("nothing would ever fill `dry_run`")
def option_by_position(mail: Any, dry_run: bool = False) -> None: ...
@refused("nothing would ever fill `more`")
def option_after_the_context(mail: Any, context: Context, more: int = 0) -> None: ...
@refused("takes `a` and `b`, but a job has one payload")
def two_payloads(a: int, b: int) -> None: ...
@refused("takes `a` and `b` and `c`, but a job has one payload")
def three_payloads(a: int, b: int, c: int) -> None: ...
@refused("takes `mail` and `context`, but a job has one payload")
def context_annotated_as_a_dict(mail: Any, context: dict[str, Any]) -> None: ...
@refused("takes `mail` and `info`, but a job has one payload")
def context_by_another_name(mail, info) -> None: ...
@refused("takes `mail` and `to`, but a job has one payload")
def second_payload_by_keyword(mail: Any, *, to: str) -> None: ...
@refused("both `job` and `ctx` would get the Context")
def two_contexts(mail, job, ctx) -> None: ...
@refused("both `one` and `other` would get the Context")
def two_annotated_contexts(mail: Any, one: Context, other: Context) -> None: ...
@refused("name one parameter for the payload")
def any_number(*mails: Any) -> None: ...
@refused("name one parameter for the payload")
def anything(**mail: Any) -> None: ...
@refused("name one parameter for the payload")
def contexts(mail: Any, *jobs: Context) -> None: ...
@refused("takes `mail` and `\\*more`, but a job has one payload")
def payload_and_any_number(mail: Any, *more: Any) -> None: ...
@refused("it yields")
def yielding(mail: Any) -> Iterator[int]:
    yield 1


@refused("it yields")
async def async_yielding(mail: Any) -> Any:
    yield 1


@pytest.mark.parametrize("name", WORKING)
@pytest.mark.parametrize("is_async", [False, True], ids=["plain", "async"])
async def test_a_function_gets_the_payload_and_the_context_where_it_asks_for_them(
    name: str, is_async: bool
) -> None:
    """By position or by name, in any order, in a thread or not."""
    function, given = WORKING[name]
    if is_async:
        plain = function

        @functools.wraps(plain)
        async def function(*arguments: Any, **keywords: Any) -> Any:
            return plain(*arguments, **keywords)

    found = marked(handler("k")(function))
    payload = msgspec.json.encode(P if found.takes_payload else None)
    result = found.function(*found.arguments(payload, C))

    assert found.is_async == is_async
    assert (await result if is_async else result) == given


@pytest.mark.parametrize("name", REFUSED)
def test_a_function_that_no_job_can_call_is_refused_in_words(name: str) -> None:
    """At its definition, by name."""
    function, words = REFUSED[name]
    with pytest.raises(HandlerError, match=f"handler {name}: .*{words}"):
        handler("k")(function)


def test_a_plain_function_is_called_without_anything_between() -> None:
    """Most handlers take the payload, then the context."""
    for function in (payload_alone, context_by_annotation, nothing):
        assert marked(handler("k")(function)).function is function


@pytest.mark.parametrize(
    ("what", "given"),
    [
        (lambda mail: (mail,), (P,)),
        (Shop().send, P),
        (functools.partial(lambda a, mail: (a, mail), 1), (1, P)),
        (functools.partial(lambda mail, b: (mail, b), b=2), (P, 2)),
        (Shop(), (P, C)),
        (Slotted(), P),
        (len, len(P)),
    ],
    ids=["lambda", "method", "partial", "partial by name", "object", "object with slots", "builtin"],
)
def test_what_is_no_function_but_can_be_called_will_do(what: Any, given: Any) -> None:
    """What `handler` returns is called the same way, and is found in a module."""
    found = marked(handler("k")(what))

    assert not found.is_async
    assert found.function(*found.arguments(msgspec.json.encode(P), C)) == given


def test_a_method_may_be_async() -> None:
    """So may what is inside a partial."""
    assert marked(handler("k")(Shop().send_soon)).is_async is True
    assert marked(handler("k")(functools.partial(Shop.send_soon, Shop()))).is_async is True


@pytest.mark.parametrize(
    ("what", "words"),
    [
        (Shop, "Shop: it is a class"),
        (Shop.send, "Shop.send: it is defined inside a class"),
        (Shop.static, "Shop.static: it is defined inside a class"),
        (staticmethod(nothing), "nothing: it is defined inside a class"),
        (careless(nothing), r"call: it takes `\*arguments`: name one .*functools.wraps"),
        (print, r"print: it takes `\*args`: name one"),
        (5, "int: it cannot be called"),
        (None, "NoneType: it cannot be called"),
    ],
)
def test_what_cannot_perform_a_job_is_refused_in_words(what: Any, words: str) -> None:
    """Each for its own reason."""
    with pytest.raises(HandlerError, match=f"handler .*{words}"):
        handler("k")(what)


def test_a_handler_without_payload_takes_null_only() -> None:
    """A payload that nobody reads is a mistake of the client."""
    found = marked(handler("k")(nothing))

    assert found.typed(None) is None
    assert found.arguments(b"null", C) == ()
    with pytest.raises(msgspec.ValidationError):
        found.typed({"to": "ann"})


# --- payload types ----------------------------------------------------------------------------------------------------

TYPED: list[tuple[Any, bytes, Any]] = [
    (Any, b'{"a":[1]}', {"a": [1]}),
    (Mail, b'{"to":"x"}', Mail("x")),
    (Point, b'{"x":1,"y":2}', Point(1, 2)),
    (Line, b'{"a":{"x":1,"y":2},"b":{"x":3,"y":4}}', Line(Point(1, 2), Point(3, 4))),
    (list[int], b"[1,2]", [1, 2]),
    (int | str, b'"x"', "x"),
    (Mail | None, b"null", None),
    (Mail | list[Mail] | str, b'[{"to":"x"}]', [Mail("x")]),
    (dict[int, str], b'{"1":"a"}', {1: "a"}),
    (tuple[int, str], b'[1,"a"]', (1, "a")),
    (set[int], b"[1,1]", {1}),
    (Literal["a", "b"], b'"b"', "b"),
    (Colour, b'"red"', Colour.RED),
    (bytes, b'"YWI="', b"ab"),
]
WRONG: list[tuple[Any, bytes]] = [
    (Mail, b'{"to":5}'),
    (Mail, b"{}"),
    (Mail, b'{"to":"x","cc":"y"}'),
    (Point, b'{"x":1}'),
    (Line, b'{"a":{"x":1,"y":"2"},"b":{"x":3,"y":4}}'),
    (list[int], b"[1,1.5]"),
    (int | str, b"null"),
    (dict[int, str], b'{"x":"a"}'),
    (Literal["a", "b"], b'"c"'),
    (Colour, b'"blue"'),
]


def typed(payload_type: Any) -> Handler:
    return Handler(kind="k", function=print, is_async=False, takes_context=False, payload_type=payload_type)


@pytest.mark.parametrize(("payload_type", "payload", "value"), TYPED, ids=range(len(TYPED)))
def test_a_payload_comes_as_the_type_that_is_annotated(payload_type, payload, value) -> None:
    """The same at the door and in the attempt."""
    found = typed(payload_type)

    assert found.typed(msgspec.json.decode(payload)) == value
    assert found.arguments(payload, CONTEXT) == (value,)


@pytest.mark.parametrize(("payload_type", "payload"), WRONG, ids=range(len(WRONG)))
def test_a_payload_of_another_type_is_refused(payload_type, payload) -> None:
    """The same at the door and in the attempt, with the place of the fault."""
    found = typed(payload_type)
    with pytest.raises(msgspec.ValidationError):
        found.typed(msgspec.json.decode(payload))
    with pytest.raises(msgspec.ValidationError):
        found.arguments(payload, CONTEXT)


JSON = st.recursive(
    st.none()
    | st.booleans()
    | st.integers(-5, 5)
    | st.floats(-5, 5)
    | st.sampled_from(["1", "red", "a", ""]),
    lambda inner: (
        st.lists(inner, max_size=3) | st.dictionaries(st.sampled_from(["x", "y", "to", "1"]), inner)
    ),
    max_leaves=5,
)


@given(st.sampled_from([payload_type for payload_type, *_ in TYPED]), JSON)
def test_door_and_attempt_judge_every_payload_alike(payload_type: Any, payload: Any) -> None:
    """What was acknowledged does not fail for its type when it runs."""
    found = typed(payload_type)

    def judged(function: Callable[[], Any]) -> Any:
        try:
            return function()
        except msgspec.ValidationError:
            return "refused"

    at_the_door = judged(lambda: found.typed(payload))
    in_the_attempt = judged(lambda: found.arguments(msgspec.json.encode(payload), CONTEXT)[0])

    assert at_the_door == in_the_attempt


def test_an_annotation_may_be_a_text() -> None:
    """As with `from __future__ import annotations`."""

    @handler("k")
    def function(payload: "list[int]", context: "Context") -> None: ...

    assert marked(function).payload_type == list[int]


class Letter(msgspec.Struct):
    attachments: "list[dict[str, Attachment]]"


class Attachment(msgspec.Struct):
    path: Path
    also: "Attachment | None" = None


class Scene(TypedDict):
    lock: threading.Thread


class Size(NamedTuple):
    width: complex


@dataclasses.dataclass
class Order:
    created: "dt.datetime"
    price: dict[str, "Fraction"]


class Strange:
    """Not even its own checks can be trusted."""

    def __init_subclass__(cls) -> None:
        raise RuntimeError("no")


PATH = f"{Path.__module__}.Path"  # in Python 3.13 it lies in another module

UNREADABLE: list[tuple[Any, str]] = [
    (Path, f"its payload `it`: it is of type {PATH}, which JSON cannot hold"),
    (Path | None, f"it is of type {PATH}"),
    (Letter, rf"its field attachments\[\]\{{\}}.path is of type {PATH}"),
    (list[Letter], r"its field \[\].attachments"),
    (Scene, "its field lock is of type threading.Thread"),
    (Size, "its field width is of type builtins.complex"),
    (Order, r"its field price\{\} is of type fractions.Fraction"),
    (tuple[int, Path], rf"its field \[1\] is of type {PATH}"),
    (Callable[[int], int], "it is of type collections.abc.Callable"),
    (Iterator[int], "it is of type collections.abc.Iterator"),
    (Exception, "it is of type builtins.Exception"),
    (Strange, "it is of type .*Strange"),
    (dict[tuple[int, int], str], "a dict whose keys cannot be text"),
    (dict[bool, str], "a dict whose keys cannot be text"),
    (set[list[int]], "a set of items that no set can hold"),
    (frozenset[dict[str, int]], "a set of items that no set can hold"),
    (msgspec.Raw, "annotate it with Any"),
    (msgspec.msgpack.Ext, "annotate it with Any"),
    (Point | Line, "its type cannot be read from JSON"),
    (int | Path, "its type cannot be read from JSON"),
    (5, "its type cannot be read from JSON"),
    ("Nowhere", "'Nowhere', is not known in its module"),
    ("list[", "is not known in its module"),
    (list["Nowhere"], "its type cannot be read from JSON"),  # type: ignore[name-defined]  # noqa: F821 - that is the point
]


@pytest.mark.parametrize(("payload_type", "words"), UNREADABLE, ids=[str(each) for each, _ in UNREADABLE])
def test_a_type_that_cannot_be_read_from_json_is_refused_at_once(payload_type: Any, words: str) -> None:
    """And not when the first job of the kind arrives. The field and its type are named."""

    def function(it) -> None: ...

    function.__annotations__["it"] = payload_type
    with pytest.raises(HandlerError, match=f"function: .*{words}"):
        handler("k")(function)


@pytest.mark.parametrize(
    "payload_type", [object, Hashable, list[object], dict[str | None, int], set[str], set[Any]], ids=str
)
def test_a_type_that_some_json_fits_is_allowed(payload_type: Any) -> None:
    """Also where it is not one of those that JSON has."""

    def function(it) -> None: ...

    function.__annotations__["it"] = payload_type

    assert marked(handler("k")(function)).payload_type == payload_type


def test_what_is_returned_need_not_be_known() -> None:
    """Only parameters are looked at."""

    @handler("k")
    def function(payload: int) -> "Nowhere": ...  # type: ignore[name-defined]  # noqa: F821 - that is the point

    assert marked(function).payload_type is int


def test_a_handler_gets_the_context_when_it_takes_two() -> None:
    """Payload first."""
    found = Handler(kind="k", function=print, is_async=False, takes_context=True)

    assert found.arguments(b"[1]", CONTEXT) == ([1], CONTEXT)


# --- the registry -----------------------------------------------------------------------------------------------------


def test_a_registry_finds_by_kind() -> None:
    """And tells every kind, sorted."""
    first, second = typed(Any), msgspec.structs.replace(typed(Any), kind="b")
    registry = Registry([first, second])

    assert (registry.find("k"), registry.find("b"), registry.find("c")) == (first, second, None)
    assert registry.kinds == ["b", "k"]


def test_a_kind_has_one_handler() -> None:
    """Two are told by name; the same one twice is no fault."""
    one_of_them = msgspec.structs.replace(typed(Any), function=payload_alone)
    Registry([one_of_them, one_of_them])
    with pytest.raises(HandlerError, match=r"kind 'k' has two handlers: .*payload_alone and .*nothing"):
        Registry([one_of_them, msgspec.structs.replace(typed(Any), function=nothing)])


def test_the_shipped_kinds_are_always_there() -> None:
    """Without any module named."""
    assert load([]).kinds == ["demo", "echo"]


# --- modules ----------------------------------------------------------------------------------------------------------


def test_modules_are_looked_up_in_the_working_directory(folder: Path) -> None:
    """Alone and in packages, however the command was started."""
    write(folder, "one_module.py", '@handler("one")\ndef one(payload): ...\n')
    write(folder, "shop/mail.py", '@handler("mail")\nasync def mail(payload, context: Context): ...\n')
    registry = load(["one_module", "shop.mail"])

    assert registry.kinds == ["demo", "echo", "mail", "one"]
    found = registry.find("mail")
    assert found is not None
    assert (found.is_async, found.takes_context) == (True, True)


def test_the_working_directory_hides_nothing_that_is_installed(folder: Path) -> None:
    """A file `json.py` beside the service does not break it."""
    write(folder, "json.py", "raise RuntimeError")
    load([])
    load([])

    assert sys.path[-1] == str(folder)
    assert sys.path.count(str(folder)) == 1


def test_a_handler_imported_by_two_modules_is_one(folder: Path) -> None:
    """As when a package gathers those of its modules."""
    write(folder, "deep/inner.py", '@handler("inner")\ndef inner(payload): ...\n')
    write(folder, "deep/outer.py", "from deep.inner import inner\nalso = inner\n")

    assert load(["deep.inner", "deep.outer", "deep.outer"]).kinds == ["demo", "echo", "inner"]


def test_two_handlers_for_a_kind_are_refused_by_name(folder: Path) -> None:
    """Also when one of them is shipped."""
    write(folder, "first.py", '@handler("k")\ndef ours(payload): ...\n')
    write(folder, "second.py", '@handler("k")\ndef theirs(payload): ...\n')
    write(folder, "third.py", '@handler("echo")\ndef echo(payload): ...\n')
    with pytest.raises(HandlerError, match=r"kind 'k' has two handlers: first.ours and second.theirs"):
        load(["first", "second"])
    with pytest.raises(HandlerError, match=r"jobpipe.handlers.echo.echo and third.echo"):
        load(["third"])


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        ("import nowhere_to_be_found\n", "No module named 'nowhere_to_be_found'"),
        ("def (\n", "SyntaxError"),
        ("raise RuntimeError('no database')\n", "RuntimeError: no database"),
        ("import sys; sys.exit('bye')\n", "SystemExit: bye"),
        ('@handler("k")\ndef bad(a, b, c): ...\n', "bad: it takes `a` and `b` and `c`"),
        ('@handler("k", timeout=-1)\ndef bad(a): ...\n', "timeout"),
        ("@handler\ndef bad(a): ...\n", "write @handler('bad')"),
        ("undefined_name\n", "undefined_name"),
        ("import pytest; pytest.skip('no', allow_module_level=True)\n", "Skipped"),
        ("class E(Exception):\n  def __str__(self): raise SystemExit\nraise E\n", "E"),
        ("raise BaseExceptionGroup('g', [GeneratorExit()])\n", "BaseExceptionGroup: g"),
    ],
)
def test_a_module_that_cannot_be_imported_is_told_with_file_and_line(
    folder: Path, text: str, reason: str
) -> None:
    """Which one, why, and where in it."""
    write(folder, "broken.py", text)
    with pytest.raises(HandlerError) as caught:
        load(["broken"])

    told = str(caught.value)
    assert told.startswith("HANDLERS: cannot import 'broken': ")
    assert reason in told
    assert re.search(rf'File "{folder}/broken.py", line [35]\b', told)
    assert "importlib" not in told
    assert "registry.py" not in told


def test_only_the_innermost_frames_of_a_broken_module_are_told(folder: Path) -> None:
    """Those where it broke."""
    write(folder, "deep.py", "def f(n):\n    return f(n - 1) if n else 1 / 0\nf(50)\n")
    with pytest.raises(HandlerError) as caught:
        load(["deep"])

    assert "ZeroDivisionError: division by zero" in str(caught.value)
    assert 1 < str(caught.value).count("File ") <= FRAMES


def test_a_module_whose_import_is_interrupted_ends_the_start(folder: Path) -> None:
    """As Ctrl+C should."""
    write(folder, "slow.py", "raise KeyboardInterrupt\n")
    with pytest.raises(KeyboardInterrupt):
        load(["slow"])


def test_a_module_without_handlers_is_named(folder: Path) -> None:
    """It is no fault, but hardly what was meant."""
    write(folder, "empty.py", "")
    write(folder, "full.py", '@handler("k")\ndef k(): ...\n')
    write(folder, "in_a_class.py", 'class Shop:\n    handle = handler("m")(len)\n')

    assert load(["empty", "full", "in_a_class"]).without == ["empty", "in_a_class"]


def test_the_shipped_kinds_can_be_left_out(folder: Path) -> None:
    """Their names are free then."""
    write(folder, "ours.py", '@handler("echo")\ndef echo(payload): ...\n')

    assert load(["ours"], shipped=False).kinds == ["echo"]
    assert load([], shipped=False).kinds == []


@pytest.mark.parametrize("name", ["nowhere", "nowhere.at_all", "jobpipe.nowhere"])
def test_a_module_that_is_not_there_is_told_in_one_line(folder: Path, name: str) -> None:
    """By the name that the setting has."""
    with pytest.raises(HandlerError, match=f"HANDLERS: cannot import {name!r}: there is no module") as caught:
        load([name])

    assert str(folder) in str(caught.value)
    assert "\n" not in str(caught.value)


def test_a_module_may_hold_things_that_answer_no_question(folder: Path) -> None:
    """Proxies such as a web framework's `request` raise when they are asked for an attribute."""
    text = (
        "class Proxy:\n    def __getattr__(self, name): raise RuntimeError('outside of a request')\n"
        'request = Proxy()\n@handler("k")\ndef k(payload): ...\n'
    )
    write(folder, "web.py", text)

    assert "k" in load(["web"]).kinds


def test_a_wrapped_handler_is_found_as_what_was_decorated(folder: Path) -> None:
    """The inner function, under one kind."""

    @handler("k")
    def inner(payload: Any) -> None: ...

    @functools.wraps(inner)
    def outer(payload: Any) -> None: ...

    assert marked(outer).function is inner


def test_the_public_names_are_enough_to_write_handlers() -> None:
    """Nothing else of jobpipe is needed."""
    assert set(jobpipe.__all__) == {
        "Backoff",
        "Context",
        "EnqueueError",
        "Fail",
        "Retry",
        "Snooze",
        "handler",
    }


def test_a_handler_may_declare_a_schedule() -> None:
    @handler("report", cron="30 2 * * *", timezone="Europe/Berlin", jitter="5m")
    def report() -> None: ...

    @handler("poll", every=dt.timedelta(minutes=1), overlap="queue", catch_up="all")
    def poll(payload: Mail | None) -> None: ...

    registry = Registry(handlers_of(SimpleNamespace(report=report, poll=poll)))  # type: ignore[arg-type]
    declared = {one.name: one for one in registry.declarations}

    assert declared["report"].spec == Spec(cron="30 2 * * *", timezone="Europe/Berlin", jitter=300.0)
    assert declared["poll"].spec == Spec(every=60.0, overlap="queue", catch_up="all")
    assert (declared["poll"].job.kind, declared["poll"].job.payload) == ("poll", b"null")


@pytest.mark.parametrize(
    ("asked", "words"),
    [
        ({"cron": "61 * * * *"}, "cron"),
        ({"cron": "* * * * *", "every": 60}, "either cron or every"),
        ({"cron": "* * * * *", "timezone": "Europe/Atlantis"}, "unknown time zone"),
        ({"timezone": "Europe/Berlin"}, "either cron or every"),
        ({"every": 0.1}, "every"),
        ({"every": "often"}, "is not a duration"),
        ({"cron": "* * * * *", "overlap": "sometimes"}, "overlap"),
        ({"cron": "* * * * *", "catch_up": "all"}, "overlap"),
        ({"jitter": 5}, "either cron or every"),
    ],
)
def test_a_schedule_that_makes_no_sense_is_refused_at_once(asked: dict[str, Any], words: str) -> None:
    with pytest.raises(HandlerError, match=words):
        handler("report", **asked)


def test_a_handler_that_needs_a_payload_declares_no_schedule() -> None:
    """Its jobs have none."""
    with pytest.raises(HandlerError, match="have no payload"):

        @handler("mail", every=60)
        def mail(payload: Mail) -> None: ...
