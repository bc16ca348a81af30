"""Which function performs the jobs of which kind."""

import dataclasses
import enum
import functools
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, Literal

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

import jobpipe
from jobpipe.errors import HandlerError
from jobpipe.handlers.context import Context
from jobpipe.handlers.registry import Handler, Registry, handler, handlers_of, load
from jobpipe.job import Backoff


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
        ("k", {"timeout": "1m"}, "timeout"),
        ("k", {"max_retries": -1}, "max_retries"),
        ("k", {"max_retries": 1.5}, "max_retries"),
        ("k", {"max_retries": 10_001}, "max_retries"),
        ("k", {"backoff": Backoff(base=-1)}, "backoff"),
        ("k", {"backoff": Backoff(factor=0.5)}, "backoff"),
        ("k", {"backoff": Backoff(jitter="some")}, "backoff"),  # type: ignore[arg-type]  # that is the point
        ("k", {"backoff": {"bass": 1}}, "backoff"),
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


def nothing() -> None: ...
def three(payload: Any, context: Any, more: Any) -> None: ...
def by_name(payload: Any, *, context: Any) -> None: ...
def only_by_name(*, payload: Any) -> None: ...
def any_number(*payloads: Any) -> None: ...
def anything(**payload: Any) -> None: ...
def yielding(payload: Any) -> Iterator[int]:
    yield 1


async def async_yielding(payload: Any) -> Any:
    yield 1


@pytest.mark.parametrize(
    "function",
    [nothing, three, by_name, only_by_name, any_number, anything, yielding, async_yielding],
    ids=lambda function: function.__name__,
)
def test_a_function_that_cannot_be_called_with_a_job_is_refused(function) -> None:
    """At its definition, by name."""
    with pytest.raises(HandlerError, match=function.__name__):
        handler("k")(function)


def optional(payload: Any, context: Any, more: int = 0) -> None: ...
def defaults(payload: Any = None, context: Any = None) -> None: ...
def options(payload: Any, *, dry_run: bool = False) -> None: ...
def extras(payload: Any, **extra: Any) -> None: ...
def one(payload: Any, /) -> None: ...


@pytest.mark.parametrize("function", [defaults, options, extras, one], ids=lambda function: function.__name__)
def test_what_a_function_takes_besides_by_default_is_its_own(function) -> None:
    """As long as payload and context come first."""
    found = marked(handler("k")(function))

    function(*found.arguments(b"1", CONTEXT))


def test_more_than_payload_and_context_is_refused_even_with_a_default() -> None:
    """A third place looks like something that jobpipe would fill."""
    with pytest.raises(HandlerError, match="optional"):
        handler("k")(optional)


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


def ambiguous(payload: Point | Line) -> None: ...
def unknown(payload: "Nowhere") -> None: ...  # type: ignore[name-defined]  # noqa: F821 - that is the point
def context_only_unknown(payload: int, context: "Nowhere") -> None: ...  # type: ignore[name-defined]  # noqa: F821 - the same


@pytest.mark.parametrize(
    "function", [ambiguous, unknown, context_only_unknown], ids=lambda function: function.__name__
)
def test_a_type_that_cannot_be_read_from_json_is_refused_at_once(function) -> None:
    """And not when the first job of the kind arrives."""
    with pytest.raises(HandlerError, match=function.__name__):
        handler("k")(function)


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
    one_of_them = msgspec.structs.replace(typed(Any), function=one)
    Registry([one_of_them, one_of_them])
    with pytest.raises(HandlerError, match=r"kind 'k' has two handlers: .*one and .*three"):
        Registry([one_of_them, msgspec.structs.replace(typed(Any), function=three)])


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
        ("import sys\nsys.exit('bye')\n", "SystemExit: bye"),
        ('@handler("k")\ndef bad(a, b, c): ...\n', "bad must take the payload"),
        ('@handler("k", timeout=-1)\ndef bad(a): ...\n', "timeout"),
        ("undefined_name\n", "undefined_name"),
    ],
)
def test_a_module_that_cannot_be_imported_is_told_in_one_line(folder: Path, text: str, reason: str) -> None:
    """Which one, and why."""
    write(folder, "broken.py", text)
    with pytest.raises(HandlerError) as caught:
        load(["broken"])

    assert str(caught.value).startswith("HANDLERS: cannot import 'broken' (")
    assert reason in str(caught.value)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("name", ["nowhere", "nowhere.at_all", "jobpipe.nowhere"])
def test_a_module_that_is_not_there_is_told_in_one_line(folder: Path, name: str) -> None:
    """By the name that the setting has."""
    with pytest.raises(HandlerError, match=f"HANDLERS: cannot import {name!r}"):
        load([name])


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
    assert set(jobpipe.__all__) == {"Backoff", "Context", "Fail", "Retry", "Snooze", "handler"}
