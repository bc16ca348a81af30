"""Problems: a closed set of codes, and every fault of an input with its JSON pointer."""

import ast
import datetime as dt
import http
from pathlib import Path
from typing import Annotated, Literal

import msgspec
import pytest
import trio
from hypothesis import given
from hypothesis import strategies as st
from werkzeug import exceptions
from werkzeug.exceptions import HTTPException

import jobpipe.api
from jobpipe.api.answers import problem_answer
from jobpipe.api.app import _problem_from
from jobpipe.api.faults import escaped, fault_from, faults_of
from jobpipe.api.problems import LISTED, Code, Fault, Problem, conflict, invalid, unavailable
from jobpipe.errors import Draining, JobpipeError, QueueFull, StoreUnavailable

CODES = {
    "bad_request",
    "not_json",
    "cross_site",
    "not_found",
    "no_such_job",
    "no_such_operation",
    "no_such_error",
    "no_such_queue",
    "no_such_schedule",
    "no_such_group",
    "no_such_node",
    "node_silent",
    "declared",
    "queue_closed",
    "group_closed",
    "queue_not_empty",
    "method_not_allowed",
    "id_conflict",
    "not_unique",
    "dependency_failed",
    "unknown_dependency",
    "unknown_group",
    "wrong_status",
    "too_large",
    "unsupported_media_type",
    "invalid",
    "internal",
    "too_many_streams",
    "queue_full",
    "draining",
    "store_unavailable",
    "request_timeout",
    "wrong_host",
    "head_too_large",
    "not_implemented",
    "http_version",
}


class Inner(msgspec.Struct, forbid_unknown_fields=True):
    level: Annotated[int, msgspec.Meta(ge=0)]
    word: Literal["a", "b"] = "a"


class Outer(msgspec.Struct, forbid_unknown_fields=True, rename={"slashed": "a/b", "tilde": "a~b"}):
    name: Annotated[str, msgspec.Meta(pattern="^[a-z]+$", description="letters")]
    inner: Inner | None = None
    many: list[Inner] = []
    table: dict[str, int] = {}
    keys: dict[int, str] = {}
    pair: tuple[int, str] = (0, "")
    grid: list[list[int]] = []
    either: int | str = 0
    day: dt.date | None = None
    slashed: int = 0
    tilde: int = 0


class Open(msgspec.Struct, tag="open"):
    number: int = 0


def places(value, kind=Outer):
    return [fault.pointer for fault in faults_of(value, kind)]


# Codes


def test_the_codes_are_these_and_no_others():
    assert {code.value for code in Code} == CODES


def test_each_code_is_explained():
    source = ast.parse(Path(jobpipe.api.problems.__file__).read_text("utf-8"))
    (code,) = (node for node in source.body if isinstance(node, ast.ClassDef) and node.name == "Code")
    members, words = code.body[1::2], code.body[2::2]

    assert all(isinstance(member, ast.Assign) for member in members)
    assert all(
        isinstance(word, ast.Expr) and str(ast.literal_eval(word.value)).endswith(")") for word in words
    )
    assert len(members) == len(words) == len(Code)


@pytest.mark.parametrize(
    ("error", "code"),
    [
        (QueueFull("full"), Code.QUEUE_FULL),
        (Draining("draining"), Code.DRAINING),
        (StoreUnavailable("disk"), Code.STORE_UNAVAILABLE),
        (JobpipeError("else"), Code.STORE_UNAVAILABLE),
    ],
)
def test_what_the_engine_cannot_do_now_is_503_with_the_time_to_come_again(error, code):
    answer = problem_answer(unavailable(error))

    assert (answer.status, answer.content_type) == (503, "application/problem+json")
    assert answer.headers["Retry-After"] == "1"
    told = msgspec.json.decode(answer.body)
    assert (told["code"], told["status"]) == (code.value, 503)
    assert str(error) in told["detail"]
    assert set(told) == {"code", "title", "status", "detail"}


@pytest.mark.parametrize("error", [QueueFull("full"), Draining("draining"), StoreUnavailable("disk")])
@pytest.mark.parametrize("path", ["/enqueue", "/queues/mail/pause", "/a/new/route"])
async def test_what_any_route_raises_of_the_engine_is_answered_with_503(door, monkeypatch, error, path):
    """Whether the front calls it or Quart, and though the route itself says nothing of errors."""

    async def refuses(*_args, **_options):
        await trio.lowlevel.checkpoint()
        raise error

    monkeypatch.setattr(door.node.backlog, "enqueue", refuses)
    monkeypatch.setattr(door.node.control, "pause", refuses)
    door.app._app.post("/a/new/route")(refuses)
    answer = await door.post(path, json={})

    expected = problem_answer(unavailable(error))
    assert (answer.status_code, answer.content) == (503, expected.body)
    assert answer.headers["retry-after"] == "1"
    assert answer.headers["content-type"] == "application/problem+json"


@pytest.mark.parametrize(
    "error",
    [
        one
        for one in vars(exceptions).values()
        if isinstance(one, type) and issubclass(one, HTTPException) and one.code
    ],
)
async def test_whatever_http_itself_refuses_has_one_of_the_codes(door, error):
    async with door.app._app.test_request_context("/path"):
        problem = _problem_from(error(), door.node)

    details = problem.details
    assert details.code in Code
    assert details.status == (error.code if error.code < 500 else http.HTTPStatus.INTERNAL_SERVER_ERROR)
    assert details.title
    assert details.detail


def test_only_so_many_faults_and_ids_are_listed():
    faults = invalid([Fault(f"/{number}", "wrong") for number in range(LISTED + 1)]).details
    ids = conflict([str(number) for number in range(LISTED + 1)]).details

    assert (len(faults.faults), len(ids.ids)) == (LISTED, LISTED)
    assert "only the first" in faults.detail


def test_a_problem_says_itself_in_a_log():
    assert str(Problem(404, Code.NOT_FOUND, "Nothing", "there is nothing")) == "not_found: there is nothing"


# Faults


def test_what_fits_has_no_fault():
    assert faults_of({"name": "x", "inner": None, "many": [{"level": 1}], "day": "2030-01-31"}, Outer) == []


@pytest.mark.parametrize(
    ("value", "pointers"),
    [
        (None, [""]),
        ([], [""]),
        ({}, ["/name"]),
        ({"name": 1}, ["/name"]),
        ({"name": "x", "other": 1}, ["/other"]),
        ({"name": "x", "o/t~r": 1}, ["/o~1t~0r"]),
        ({"name": "x", "": 1}, ["/"]),
        ({"name": "x", "a/b": "1"}, ["/a~1b"]),
        ({"name": "x", "a~b": "1"}, ["/a~0b"]),
        ({"name": "x", "inner": 5}, ["/inner"]),
        ({"name": "x", "inner": {}}, ["/inner/level"]),
        (
            {"name": "x", "inner": {"level": -1, "word": "c", "x": 1}},
            ["/inner/x", "/inner/level", "/inner/word"],
        ),
        ({"name": "x", "many": {}}, ["/many"]),
        ({"name": "x", "many": [1, {"level": 1}, {"level": "x"}]}, ["/many/0", "/many/2/level"]),
        ({"name": "x", "table": {"k": "v"}}, ["/table"]),
        ({"name": "x", "keys": {"k": "v"}}, ["/keys"]),
        ({"name": "x", "pair": [1, 2]}, ["/pair/1"]),
        ({"name": "x", "pair": [1]}, ["/pair"]),
        ({"name": "x", "grid": [[1], [2, "x"]]}, ["/grid/1/1"]),
        ({"name": "x", "either": None}, ["/either"]),
        ({"name": "x", "day": "today"}, ["/day"]),
        ({"other": 1, "name": None, "inner": [], "pair": 1}, ["/other", "/name", "/inner", "/pair"]),
    ],
)
def test_each_fault_has_its_json_pointer(value, pointers):
    assert places(value) == pointers


def test_a_pattern_is_told_in_words():
    (fault,) = faults_of({"name": "X"}, Outer)

    assert fault == Fault("/name", "expected letters")


def test_a_field_that_is_close_to_a_known_one_is_told_so():
    (fault,) = faults_of({"name": "x", "iner": None}, Outer)

    assert fault.detail.startswith("unknown field; did you mean inner?")


def test_a_struct_that_takes_unknown_fields_is_not_strict_about_them():
    assert faults_of({"type": "open", "more": 1}, Open) == []
    assert places({"type": "open", "more": 1, "number": "x"}, Open) == ["/number"]


@pytest.mark.parametrize(
    ("path", "pointer"),
    [
        ("$", ""),
        ("$.a", "/a"),
        ("$.tags[0]", "/tags/0"),
        ("$[3].tags[12].x", "/3/tags/12/x"),
        ("$.table[...]", "/table"),
        ("$.table[...].x[1]", "/table"),
        ("$[...]", ""),
        ("$.a/b~c", "/a~1b~0c"),
    ],
)
def test_a_path_of_msgspec_becomes_a_json_pointer(path, pointer):
    error = msgspec.ValidationError(f"Expected `int`, got `str` - at `{path}`")

    assert fault_from(error) == Fault(pointer, "expected a whole number, got a string")
    assert fault_from(error, "/root").pointer == "/root" + pointer


def test_an_error_without_a_path_is_one_of_the_whole():
    assert fault_from(msgspec.ValidationError("Expected `int`"), "/x") == Fault(
        "/x", "expected a whole number"
    )


@given(st.text())
def test_a_name_is_escaped_so_that_it_can_be_read_back(name):
    assert "/" not in escaped(name)
    assert escaped(name).replace("~1", "/").replace("~0", "~") == name


@given(
    st.recursive(
        st.none() | st.booleans() | st.integers() | st.text(max_size=3),
        lambda inner: (
            st.lists(inner, max_size=3)
            | st.dictionaries(st.sampled_from(["name", "inner", "many", "level", "word", "grid", "x"]), inner)
        ),
        max_leaves=8,
    )
)
def test_faults_are_found_where_msgspec_finds_one_and_only_there(value):
    try:
        msgspec.convert(value, Outer)
    except msgspec.ValidationError as error:
        first = fault_from(error).pointer
        assert any(place.startswith(first) or first.startswith(place) for place in places(value))
    else:
        assert places(value) == []
