"""What handlers say of their attempt: checked, bounded, and such that every store can hold it."""

import math
from collections.abc import Mapping
from datetime import UTC, datetime
from decimal import Decimal
from typing import Any

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st
from structlog.testing import capture_logs

from jobpipe import Context
from jobpipe.handlers.joblog import composed
from jobpipe.job import LINE_BYTES, PROGRESS_MESSAGE, Level


class Kept:
    """Takes what a handler writes."""

    def __init__(self) -> None:
        self.progresses: list[tuple[Any, float, str]] = []
        self.lines: list[tuple[str, str, bytes | None]] = []

    def progress(self, run: Any, fraction: float, message: str) -> None:
        self.progresses.append((run, fraction, message))

    def line(self, run: Any, level: Level, text: str, fields: bytes | None) -> None:
        self.lines.append((level, text, fields))


def context(notes: Kept | None = None) -> Context:
    return Context(
        id="j1",
        kind="mail.send",
        queue="default",
        attempt=2,
        max_retries=5,
        claim=3,
        deadline=math.inf,
        _notes=notes,
        _run="run",
    )


# --- progress ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("fraction", "kept"),
    [
        (0, 0.0),
        (1, 1.0),
        (0.4, 0.4),
        (1 + 1e-15, 1.0),
        (-1e-15, 0.0),
        (1 - 1e-16, 1 - 1e-16),
    ],
)
def test_progress_is_a_number_from_0_to_1(fraction: float, kept: float) -> None:
    notes = Kept()
    context(notes).progress(fraction, "so far")

    assert notes.progresses == [("run", kept, "so far")]
    assert type(notes.progresses[0][1]) is float


@pytest.mark.parametrize(
    ("fraction", "error"),
    [
        *((wrong, ValueError) for wrong in (1.1, -0.1, 40, math.nan, math.inf, -math.inf, 10**400)),
        *((wrong, TypeError) for wrong in (True, "0.4", None, Decimal("0.4"), 1j, [0.4])),
    ],
)
def test_any_other_progress_is_refused_with_what_to_do(fraction: Any, error: type[Exception]) -> None:
    notes = Kept()
    with pytest.raises(error, match=r"from 0 to 1, got .*: pass done / total"):
        context(notes).progress(fraction)

    assert notes.progresses == []


def test_a_long_message_is_cut() -> None:
    notes = Kept()
    context(notes).progress(0.5, "x" * 1000)

    assert notes.progresses == [("run", 0.5, "x" * PROGRESS_MESSAGE)]


def test_a_message_that_is_no_text_is_refused() -> None:
    with pytest.raises(TypeError, match="is a text, got bytes"):
        context(Kept()).progress(0.5, b"half")  # type: ignore[arg-type] # which is what is tried


@pytest.mark.parametrize(("message", "kept"), [("a\0b", "a\ufffdb"), ("a\ud800b", "a?b"), ("ü€😀", "ü€😀")])
def test_garbage_in_a_message_is_made_harmless(message: str, kept: str) -> None:
    notes = Kept()
    context(notes).progress(0.5, message)
    context(notes).log.info(message)

    assert notes.progresses == [("run", 0.5, kept)]
    assert notes.lines == [("info", kept, None)]


# --- log --------------------------------------------------------------------------------------------------------------


def test_each_level_has_its_name() -> None:
    notes = Kept()
    log = context(notes).log
    log.debug("a")
    log.info("b", n=1)
    log.warning("c")
    log.error("d", to=["x"], event="e", self=2, message="m", level=None)

    assert notes.lines == [
        ("debug", "a", None),
        ("info", "b", b'{"n":1}'),
        ("warning", "c", None),
        ("error", "d", b'{"to":["x"],"event":"e","self":2,"message":"m","level":null}'),
    ]


def test_fields_can_be_bound() -> None:
    notes = Kept()
    log = context(notes).log.bind(page=4)
    log.bind(row=1).info("a", page=5)
    log.info("b")

    assert notes.lines == [("info", "a", b'{"page":5,"row":1}'), ("info", "b", b'{"page":4}')]


def test_an_exception_is_logged_with_its_traceback() -> None:
    notes = Kept()
    try:
        int("no luck")
    except ValueError:
        context(notes).log.exception("failed", to="ann")

    ((level, text, fields),) = notes.lines
    decoded = msgspec.json.decode(fields or b"")
    assert (level, text, decoded["to"]) == ("error", "failed", "ann")
    assert decoded["traceback"].endswith("ValueError: invalid literal for int() with base 10: 'no luck'\n")


@pytest.mark.parametrize("message", [b"bytes", 7, None, ValueError("x")])
def test_a_line_begins_with_a_text(message: Any) -> None:
    notes = Kept()
    with pytest.raises(TypeError, match=r"begins with a text, got .*: pass values as fields"):
        context(notes).log.info(message)

    assert notes.lines == []


def test_in_a_test_of_a_handler_what_it_says_goes_nowhere() -> None:
    context().progress(0.5, "half")
    context().log.info("hello")


def test_the_log_of_the_service_has_the_lines_at_debug() -> None:
    """With the job; names that a line has itself are told apart."""
    with capture_logs() as lines:
        context(Kept()).log.warning("sent", to="ann", kind="x", event="y", self="z")

    assert lines == [
        {
            "event": "sent",
            "log_level": "debug",
            "severity": "warning",
            "job": "j1",
            "kind": "mail.send",
            "attempt": 2,
            "to": "ann",
            "kind_": "x",
            "event_": "y",
            "self_": "z",
        }
    ]


# --- what lines are made of -------------------------------------------------------------------------------------------


class Silent:
    """A value that cannot be looked at."""

    def __repr__(self) -> str:
        raise RuntimeError("no")


DEEP: Any = []
for _ in range(5000):
    DEEP = [DEEP]


@pytest.mark.parametrize(
    ("value", "shown"),
    [
        (datetime(2030, 1, 31, tzinfo=UTC), "2030-01-31T00:00:00Z"),
        (math.nan, None),
        ({"a": [1, None, True]}, {"a": [1, None, True]}),
        (object, "<class 'object'>"),
        ({1: object}, {"1": "<class 'object'>"}),
        (ValueError("x"), "ValueError('x')"),
        ("a\0b", "a\0b"),
        ("a\ud800b", "'a\\ud800b'"),
        (Silent(), "<Silent that cannot be shown>"),
        (msgspec.Raw(b"\xff"), None),
        (2**70, 2**70),
    ],
)
def test_any_value_may_be_a_field(value: Any, shown: Any) -> None:
    text, fields = composed("hello", {"value": value, "other": 1})

    assert text == "hello"
    decoded = msgspec.json.decode(fields or b"", strict=False)
    assert decoded["other"] == 1
    if not isinstance(value, msgspec.Raw):
        assert decoded["value"] == shown


def test_a_value_that_nests_too_deep_costs_itself_alone() -> None:
    """As a text it is too long, or Python refuses to make one: that depends on its version."""
    text, fields = composed("hello", {"value": DEEP, "other": 1})
    decoded = msgspec.json.decode(fields or b"")

    assert (text, decoded) in [
        ("hello", {"value": "<list that cannot be shown>", "other": 1}),
        ("hello [1 of 2 fields left out]", {"other": 1}),
    ]


def size(line: tuple[str, bytes | None]) -> int:
    return len(line[0].encode()) + len(line[1] or b"")


def test_a_long_text_is_cut_and_says_so() -> None:
    line = composed("ü" * 5000, {"n": 1})

    assert size(line) <= LINE_BYTES
    assert line[1] == b'{"n":1}'
    kept = line[0].count("ü")
    assert line[0] == "ü" * kept + f" [{10_000 - 2 * kept} bytes cut]"
    assert kept > 1900


def test_fields_that_do_not_fit_are_left_out_and_counted() -> None:
    text, fields = composed("hello", {"a": 1, "big": "x" * 5000, "b": 2, "other": "y" * 4000})

    assert (text, fields) == ("hello [2 of 4 fields left out]", b'{"a":1,"b":2}')


def test_half_of_a_line_is_for_its_text() -> None:
    line = composed("x" * 3000, {"a": "y" * 3000, "b": "z" * 1500})

    assert size(line) <= LINE_BYTES
    assert line[0].startswith("x" * 2000)
    assert line[0].endswith(" [1 of 2 fields left out, 512 bytes cut]")
    assert (line[1] or b"").startswith(b'{"b":"zzz')


def test_a_line_of_just_so_many_bytes_is_whole() -> None:
    assert composed("x" * LINE_BYTES, {}) == ("x" * LINE_BYTES, None)
    assert composed("x" * (LINE_BYTES - 7), {"n": 1}) == ("x" * (LINE_BYTES - 7), b'{"n":1}')
    assert composed("x" * (LINE_BYTES + 1), {})[0].endswith(" bytes cut]")


VALUES = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text() | st.binary(),
    lambda inner: st.lists(inner) | st.dictionaries(st.text(), inner),
    max_leaves=10,
)
ANY_TEXT = st.builds(
    lambda text, times: text * times,
    st.text(st.characters(exclude_categories=())),
    st.sampled_from([1, 1, 100, 3000]),
)


@given(message=ANY_TEXT, fields=st.dictionaries(ANY_TEXT, VALUES, max_size=5))
def test_whatever_is_logged_is_bounded_and_can_be_stored(message: str, fields: Mapping[str, Any]) -> None:
    text, encoded = line = composed(message, fields)

    assert size(line) <= LINE_BYTES
    assert "\0" not in text
    assert encoded is None or isinstance(msgspec.json.decode(encoded), dict)
    assert b"\0" not in (encoded or b"")
    assert bool(fields) or encoded is None
