"""How an attempt is judged, and what becomes of its job. Pure: no clock, no task."""

import contextlib
import datetime as dt
import decimal
import math
import uuid
from collections.abc import Callable, Sequence
from typing import Any

import msgspec
import pytest
import trio
from hypothesis import given
from hypothesis import strategies as st

from jobpipe.engine import outcomes
from jobpipe.engine.outcomes import (
    CANCELLED,
    HANDED_BACK,
    INTERRUPTED,
    MESSAGE,
    TRACEBACK,
    Verdict,
    raised,
    returned,
)
from jobpipe.fingerprints import marked
from jobpipe.handlers.exceptions import Fail, Retry, Snooze
from jobpipe.job import DEEPEST, ENDED, FOLLOWS, Backoff, JobError, Outcome, Status
from jobpipe.store.base import Settlement
from tests.engine.conftest import NOW, claimed

LIMIT = 1000
ERROR = JobError("ValueError", "no luck", "Traceback ...")
EXACT = Backoff(base=2, factor=3, cap=1000, jitter="none")


class Unspeakable(Exception):  # noqa: N818 - not an error of the project
    """Cannot be shown."""

    def __init__(self, obstacle: BaseException) -> None:
        self.obstacle = obstacle

    def __str__(self) -> str:
        raise self.obstacle


class Point(msgspec.Struct):
    x: float


def thrown(error: BaseException) -> BaseException:
    """The error as it is after it was raised and caught."""
    with contextlib.suppress(BaseException):
        raise error
    return error


def nested(error: BaseException, depth: int) -> BaseException:
    for _ in range(depth):
        error = BaseExceptionGroup("nursery", [error])
    return error


async def cancelled() -> trio.Cancelled:
    """Trio's own word, taken from where it belongs."""
    caught: list[trio.Cancelled] = []
    with trio.CancelScope() as scope:
        scope.cancel()
        try:
            await trio.lowlevel.checkpoint()
        except trio.Cancelled as error:
            caught.append(error)
            raise
    return caught[0]


def settled(verdict: Verdict, random: float = 0.5, policy: Backoff = EXACT, **job: Any) -> Settlement:
    return outcomes.settlement(
        claimed(**job), verdict, started_at=NOW, now=NOW + 10, policy=policy, random=lambda: random
    )


# --- what a handler returns -------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("value", "result"),
    [
        (None, b"null"),
        (0, b"0"),
        (2**70, str(2**70).encode()),
        ("ü\x00", b'"\xc3\xbc\\u0000"'),
        ([None, 1.5, {"a": [True]}], b'[null,1.5,{"a":[true]}]'),
        ((1, None), b"[1,null]"),
        ({7}, b"[7]"),
        ({1: None}, b'{"1":null}'),
        (b"ab", b'"YWI="'),
        (Point(1.5), b'{"x":1.5}'),
        (Status.DONE, b'"done"'),
        (decimal.Decimal("1.10"), b'"1.10"'),
        (dt.date(2030, 1, 31), b'"2030-01-31"'),
        (uuid.UUID(int=0), b'"00000000-0000-0000-0000-000000000000"'),
    ],
)
def test_what_json_can_hold_is_the_result(value: Any, result: bytes) -> None:
    """As msgspec writes it: bytes in base64, a set as a list, a struct as an object."""
    assert returned(value, LIMIT) == Verdict(Outcome.DONE, result=result)


def itself() -> list[Any]:
    """A list that holds itself."""
    loop: list[Any] = []
    loop.append(loop)
    return loop


@pytest.mark.parametrize(
    "value",
    [
        object(),
        {object()},
        [1, {"a": object()}],
        lambda: None,
        {(1, 2): 3},
        "\ud800",
        {"\udfff": 1},
        math.nan,
        [None, math.inf],
        {"a": (None, -math.inf)},
        Point(math.nan),
        iter([1]),
        ValueError("returned, not raised"),
    ],
    ids=[
        "object",
        "set",
        "nested",
        "function",
        "keys",
        "surrogate",
        "surrogate-key",
        "NaN",
        "infinity",
        "deeper",
        "struct",
        "iterator",
        "error",
    ],
)
def test_what_json_cannot_hold_fails_the_job(value: Any) -> None:
    """At once: to run it again would not mend that."""
    verdict = returned(value, LIMIT)

    assert (verdict.outcome, verdict.result) == (Outcome.FAIL, None)
    assert verdict.error is not None
    assert verdict.error.type == "ResultError"
    assert "JSON" in verdict.error.message


def test_a_result_that_is_too_large_fails_the_job() -> None:
    """And says how large it may be; one of just that size is kept."""
    small, large = returned("x" * (LIMIT - 2), LIMIT), returned("x" * (LIMIT - 1), LIMIT)

    assert small.outcome is Outcome.DONE
    assert large.outcome is Outcome.FAIL
    assert large.error is not None
    assert "1001 bytes" in large.error.message
    assert "1000" in large.error.message


JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(), inner, max_size=3),
    max_leaves=8,
)


def holds_no_number(value: Any) -> bool:
    if isinstance(value, dict | list):
        return any(map(holds_no_number, value.values() if isinstance(value, dict) else value))
    return isinstance(value, float) and not math.isfinite(value)


@given(JSON)
def test_a_result_says_what_was_returned_or_the_job_fails(value: Any) -> None:
    """No value is changed on its way: above all, NaN does not become null."""
    verdict = returned(value, 10**6)

    assert (verdict.outcome is Outcome.FAIL) == holds_no_number(value)
    if verdict.result is not None:
        assert msgspec.json.decode(verdict.result) == value


# --- what a handler raises --------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "error",
    [
        ValueError("x"),
        SystemExit(3),
        KeyboardInterrupt(),
        GeneratorExit(),
        StopIteration(),
        MemoryError(),
        RecursionError("deep"),
        trio.ClosedResourceError(),
        trio.TooSlowError(),
        AssertionError(),
    ],
    ids=lambda error: type(error).__name__,
)
def test_any_error_means_to_try_again(error: BaseException) -> None:
    """By the backoff, and with the error kept."""
    verdict = raised(thrown(error))

    assert (verdict.outcome, verdict.after) == (Outcome.RETRY, None)
    assert verdict.error is not None
    assert (verdict.error.type, verdict.error.message) == (type(error).__name__, str(error))
    assert "in thrown" in str(verdict.error.traceback)


async def test_a_foreign_cancelled_is_an_error_like_any_other() -> None:
    """One that was caught elsewhere and raised here, where nobody has cancelled."""
    verdict = raised(thrown(await cancelled()))

    assert verdict.outcome is Outcome.RETRY
    assert verdict.error is not None
    assert verdict.error.type == "Cancelled"


@pytest.mark.parametrize("depth", [0, 1, 3, 3000])
def test_a_word_in_a_group_counts_when_it_is_alone(depth: int) -> None:
    """A nursery wraps what its tasks raise, once for each nursery."""
    retry, snooze, fail = Retry("later", after=5), Snooze(7), Fail("never")

    assert [raised(nested(word, depth)).outcome for word in (retry, snooze, fail)] == [
        Outcome.RETRY,
        Outcome.SNOOZE,
        Outcome.FAIL,
    ]
    assert raised(nested(retry, depth)).after == 5
    assert raised(nested(snooze, depth)).after == 7


def test_an_error_alone_in_groups_is_told_as_itself() -> None:
    """With the traceback of the whole."""
    verdict = raised(thrown(nested(thrown(KeyError("name")), 2)))

    assert verdict.error is not None
    assert (verdict.error.type, verdict.error.message) == ("KeyError", "'name'")
    assert "ExceptionGroup: nursery" in str(verdict.error.traceback)


@pytest.mark.parametrize(
    ("errors", "outcome", "kind"),
    [
        ([Retry(after=5), ValueError()], Outcome.RETRY, "ExceptionGroup"),
        ([Retry(after=5), Retry(after=6)], Outcome.RETRY, "ExceptionGroup"),
        ([Snooze(5), ValueError()], Outcome.RETRY, "ExceptionGroup"),
        ([ValueError(), SystemExit()], Outcome.RETRY, "BaseExceptionGroup"),
        ([ValueError(), Fail("no")], Outcome.FAIL, "Fail"),
        ([Retry(after=5), nested(Fail("no"), 2)], Outcome.FAIL, "Fail"),
    ],
)
def test_of_several_errors_in_a_group_only_fail_decides(
    errors: Sequence[BaseException], outcome: Outcome, kind: str
) -> None:
    """Several others are tried again, by the backoff."""
    verdict = raised(BaseExceptionGroup("nursery", errors))

    assert (verdict.outcome, verdict.after) == (outcome, None)
    assert verdict.error is not None
    assert verdict.error.type == kind


class Seconds(float):
    """A number with a mind of its own."""

    def __le__(self, other: object) -> bool:
        raise SystemExit

    def __repr__(self) -> str:
        raise SystemExit


TEN_YEARS = 315_360_000


@pytest.mark.parametrize("word", [lambda named: Retry(after=named), Snooze], ids=["Retry", "Snooze"])
@pytest.mark.parametrize(
    "named",
    [
        -1,
        -1e-9,
        math.nan,
        math.inf,
        -math.inf,
        TEN_YEARS + 1,
        1e12,
        10**400,
        "5",
        True,
        False,
        [5],
        dt.timedelta(5),
        decimal.Decimal(5),
        Seconds(-1),
        Seconds("nan"),
        object(),
    ],
    ids=range(17),
)
def test_a_wait_that_is_no_number_of_seconds_is_an_error_in_words(word: Any, named: Any) -> None:
    """The attempt has failed, and counts: what the handler meant is not known."""
    verdict = raised(word(named))

    assert (verdict.outcome, verdict.after) == (Outcome.RETRY, None)
    assert verdict.error is not None
    assert "takes a number of seconds, from 0 to 315,360,000 (ten years): got " in verdict.error.message
    assert verdict.error.message.startswith(verdict.error.type)


def test_a_wrong_wait_is_told_with_the_value_and_what_the_handler_said() -> None:
    """Both help to find it."""
    error = raised(Snooze("5", "not yet")).error  # type: ignore[arg-type]  # that is the point
    assert error is not None
    assert error.message.endswith("got '5'; not yet")
    none = raised(Snooze(None)).error  # type: ignore[arg-type]  # the same
    assert none is not None
    assert "got None" in none.message


@pytest.mark.parametrize("named", [0, 0.0, 5, 1.5, TEN_YEARS, float(TEN_YEARS), Seconds(5)], ids=range(7))
def test_a_wait_may_be_any_number_of_seconds_up_to_ten_years(named: Any) -> None:
    """Both ends are allowed."""
    assert raised(Retry(after=named)).after == raised(Snooze(named)).after == float(named)
    assert raised(Snooze(named)).outcome is Outcome.SNOOZE


def test_a_retry_that_names_no_wait_goes_by_the_backoff() -> None:
    """As its default says."""
    assert raised(Retry()).after is raised(Retry(after=None)).after is None


@pytest.mark.parametrize(
    ("claim", "attempt", "asked", "waits"),
    [
        (1, 0, 0, 0.1),
        (2, 0, 0, 0.2),
        (3, 0, 0, 0.4),
        (4, 0, 0, 0.8),
        (5, 0, 0, 1.0),
        (10**6, 0, 0, 1.0),
        (4, 3, 0, 0.1),
        (1, 0, 0.1, 0.1),
        (1, 0, 0.2, 0.2),
        (9, 0, 0.99, 1.0),
        (9, 0, 1.01, 1.01),
        (1, 3, 0, 0.1),
    ],
)
def test_a_job_that_snoozes_again_and_again_does_not_spin(
    claim: int, attempt: int, asked: float, waits: float
) -> None:
    """The more claims that were no attempt, the longer the shortest snooze, up to a second."""
    settlement = settled(Verdict(Outcome.SNOOZE, after=asked), claim=claim, attempt=attempt)

    assert settlement.run_at == round(NOW + 10 + waits, 3)


@pytest.mark.parametrize("obstacle", [ValueError(), SystemExit(), KeyboardInterrupt(), RecursionError()])
def test_an_error_that_cannot_be_shown_is_kept_all_the_same(obstacle: BaseException) -> None:
    """Whatever its own __str__ raises."""
    verdict = raised(thrown(Unspeakable(obstacle)))

    assert verdict.error is not None
    assert (verdict.error.type, verdict.error.message) == ("Unspeakable", "(the error cannot be shown)")
    assert "in thrown" in str(verdict.error.traceback)


class Untrue(Exception):  # noqa: N818 - not an error of the project
    """Has no truth."""

    def __bool__(self) -> bool:
        raise SystemExit


def test_an_error_without_truth_is_an_error() -> None:
    """Some carry a list and are as true as that; nobody asks them."""
    error = Untrue("no")
    told = raised(error).error

    assert told is not None
    assert (told.type, told.message) == ("Untrue", "no")
    assert outcomes.without_cancelled(error) is error
    assert outcomes.described(nested(error, 2)).type == "Untrue"


def test_lone_surrogates_in_an_error_are_replaced() -> None:
    """So that it can be stored and sent."""
    verdict = raised(thrown(ValueError("a\ud800b")))

    assert verdict.error is not None
    assert verdict.error.message == "a?b"
    assert b"a?b" in msgspec.json.encode(verdict.error)


def test_an_error_is_kept_in_bounds() -> None:
    """The head of a long traceback and, more of it, the tail; the beginning of a long message."""

    def deeper(levels: int) -> None:
        if levels == 0:
            raise ValueError("x" * 10**6)
        deeper(levels - 1)

    with pytest.raises(ValueError) as caught:
        deeper(500)
    kept = outcomes.described(caught.value)

    assert len(kept.message) == MESSAGE
    assert len(str(kept.traceback)) == TRACEBACK
    assert str(kept.traceback).startswith("Traceback")
    assert str(kept.traceback).endswith("x\n")


def test_a_long_chain_of_errors_is_kept_in_bounds() -> None:
    """However many causes an error has."""
    error: BaseException = ValueError("first")
    for number in range(3000):
        later = ValueError(f"cause {number}")
        later.__cause__ = error
        error = later
    kept = outcomes.described(error)

    assert kept.message == "cause 2999"
    assert len(str(kept.traceback)) <= TRACEBACK


async def test_what_a_cleanup_raised_is_told_apart_from_the_cancel() -> None:
    """Nothing is left of Trio's Cancelled alone, however deep it lies."""
    cancel, error = await cancelled(), OSError("cleanup")
    both = BaseExceptionGroup("nursery", [cancel, nested(error, 1)])

    assert outcomes.without_cancelled(cancel) is None
    assert outcomes.without_cancelled(nested(cancel, 3000)) is None
    assert outcomes.without_cancelled(error) is error
    assert list(outcomes._leaves(outcomes.without_cancelled(both) or cancel)) == [error]
    assert outcomes.without_cancelled(nested(BaseExceptionGroup("x", [cancel, error]), 3000)) is not None


# --- what becomes of the job ------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("verdict", "status", "attempt", "run_at"),
    [
        (Verdict(Outcome.DONE, result=b"1"), Status.DONE, 1, None),
        (Verdict(Outcome.RETRY, error=ERROR), Status.RETRYING, 1, NOW + 12),
        (Verdict(Outcome.RETRY, error=ERROR, after=77), Status.RETRYING, 1, NOW + 87),
        (Verdict(Outcome.RETRY, error=ERROR, after=0), Status.RETRYING, 1, NOW + 10),
        (Verdict(Outcome.FAIL, error=ERROR), Status.FAILED, 1, None),
        (Verdict(Outcome.SNOOZE, after=5), Status.SCHEDULED, 0, NOW + 15),
        (CANCELLED, Status.CANCELLED, 1, None),
        (INTERRUPTED, Status.QUEUED, 0, None),
        (HANDED_BACK, Status.QUEUED, 0, None),
    ],
)
def test_each_outcome_has_its_status(
    verdict: Verdict, status: Status, attempt: int, run_at: float | None
) -> None:
    """And counts as an attempt or not."""
    settlement = settled(verdict)

    assert (settlement.outcome, settlement.status) == (verdict.outcome, status)
    assert (settlement.attempt, settlement.number, settlement.run_at) == (attempt, 1, run_at)


@pytest.mark.parametrize(("retries", "attempts"), [(0, 1), (1, 2), (3, 4)])
def test_max_retries_allows_so_many_attempts_after_the_first(retries: int, attempts: int) -> None:
    """`max_retries: 3` means at most four attempts; the last one fails the job."""
    statuses = [
        settled(Verdict(Outcome.RETRY, error=ERROR), attempt=number, max_retries=retries).status
        for number in range(attempts)
    ]

    assert statuses == [Status.RETRYING] * retries + [Status.FAILED]


def test_the_last_retry_counts_as_a_failure() -> None:
    """Also when the handler named a wait."""
    settlement = settled(Verdict(Outcome.RETRY, error=ERROR, after=5), attempt=3)

    assert (settlement.outcome, settlement.status, settlement.run_at) == (Outcome.FAIL, Status.FAILED, None)
    assert settlement.error == marked(ERROR, "act")


def test_a_job_cancelled_before_it_began_has_spent_nothing() -> None:
    """No attempt is put on record."""
    settlement = outcomes.settlement(
        claimed(attempt=2), CANCELLED, started_at=None, now=NOW, policy=EXACT, random=lambda: 0.5
    )

    assert (settlement.outcome, settlement.status, settlement.attempt) == (None, Status.CANCELLED, 2)


def test_a_settlement_weighs_what_is_kept() -> None:
    """Payload, result and error, for the retention of ended jobs."""
    done = settled(Verdict(Outcome.DONE, result=b"12345"), payload=b"123")
    failed = settled(Verdict(Outcome.FAIL, error=JobError("E", "12", "1234")), payload=b"123")

    assert (done.size, failed.size) == (8, 9)


@given(
    st.sampled_from([*Outcome, None]),
    st.integers(0, 10_000),
    st.integers(0, 10_000),
    st.none() | st.floats(0, 1e8),
    st.floats(0, 1, exclude_max=True),
)
def test_every_settlement_is_an_allowed_step(
    outcome: Outcome | None, attempt: int, retries: int, after: float | None, random: float
) -> None:
    """From running to what it came to, never back in time, never more attempts than allowed."""
    error = ERROR if outcome in {Outcome.RETRY, Outcome.FAIL} else None
    settlement = settled(
        Verdict(outcome, error=error, after=after), random, Backoff(), attempt=attempt, max_retries=retries
    )

    assert settlement.status in FOLLOWS[Status.RUNNING]
    assert settlement.attempt in (attempt, attempt + 1)
    assert settlement.run_at is None or settlement.run_at >= NOW + 10
    if settlement.status is Status.RETRYING:
        assert settlement.attempt <= retries
    if settlement.status in ENDED:
        assert settlement.attempt == attempt + 1


# --- what would hurt --------------------------------------------------------------------------------------------------


class Liar(str):
    """A text with methods of its own."""

    __slots__ = ()

    def __getitem__(self, key: Any) -> Any:
        return 5

    def encode(self, *_: Any, **__: Any) -> Any:
        raise SystemExit


class Lying(Exception):  # noqa: N818 - not an error of the project
    """Says so with such a text."""

    def __str__(self) -> str:
        return Liar("lies")


class Nameless(type):
    """Classes of it have no name to speak of."""

    @property
    def __name__(cls) -> Any:  # type: ignore[override]  # that is the point
        raise SystemExit


class Classless(Exception, metaclass=Nameless):  # noqa: N818 - not an error of the project
    """Does not say what it is."""

    @property  # type: ignore[misc]  # that is the point
    def __class__(self) -> Any:
        raise SystemExit


class Endless(BaseExceptionGroup[BaseException]):
    """A group that holds itself, as it says."""

    @property
    def exceptions(self) -> Any:
        return (self,)


class Asked(Snooze):
    """A snooze that was made without its parts."""

    def __init__(self) -> None:
        """Leave everything out."""


class Refusing(Snooze):
    """A snooze whose time cannot be asked for."""

    seconds = property(lambda _: 1 / 0)

    def __init__(self) -> None:
        """Leave everything out."""


def doubled(depth: int) -> BaseException:
    """A group of two groups of two groups..., each pair the same one: 2 ** depth errors to who follows them all."""
    error: BaseException = ValueError("deep")
    for _ in range(depth):
        error = BaseExceptionGroup("g", [error, error])
    return error


def chained(length: int) -> BaseException:
    """An error with many causes."""
    error = ValueError("last")
    one: BaseException = error
    for _ in range(length):
        one.__cause__ = ValueError("cause")
        one = one.__cause__
    return error


NASTY: dict[str, Callable[[], BaseException]] = {
    "a text with methods of its own": Lying,
    "no class": lambda: Classless(),  # noqa: PLW0108 - pytest would ask it for its name
    "holds itself": lambda: Endless("g", [ValueError("inside")]),
    "long name": lambda: type("x" * 10**6, (Exception,), {})("long name"),
    "no time": Asked,
    "raising property": Refusing,
    "2 ** 60 in a group": lambda: doubled(60),
    "100,000 causes": lambda: chained(100_000),
    "50,000 in a group": lambda: BaseExceptionGroup(
        "wide", [ValueError(str(each)) for each in range(50_000)]
    ),
}


@pytest.mark.parametrize("kind", NASTY)
def test_no_error_can_hurt_who_judges_it(kind: str) -> None:
    """Not by its methods, its name, its size or its shape: what is kept can be stored."""
    error = thrown(NASTY[kind]())
    for verdict in (raised(error), Verdict(None, error=outcomes.described(error))):
        assert verdict.error is not None
        assert len(msgspec.json.encode(verdict.error)) < 20_000
        assert type(verdict.error.message) is str


@pytest.mark.parametrize("links", [0, 50])
def test_causes_are_kept_with_the_traceback(links: int) -> None:
    """As Python shows them, when they are not too many."""
    error = outcomes.described(chained(links))

    assert error.traceback is not None
    assert error.traceback.count("ValueError: cause") == links


RAW = [b"{", b"nope", b'"\xff"', b"1 2", b"[1,]", b"1e999"]


@pytest.mark.parametrize("raw", RAW, ids=range(len(RAW)))
@pytest.mark.parametrize("around", [lambda raw: raw, lambda raw: [raw], lambda raw: {"a": raw}], ids=range(3))
def test_a_raw_result_that_is_no_json_is_unfit(raw: bytes, around: Any) -> None:
    """It would spoil every answer that shows it."""
    verdict = returned(around(msgspec.Raw(raw)), LIMIT)

    assert verdict.outcome is Outcome.FAIL
    assert verdict.error is not None
    assert verdict.error.type == "ResultError"


def test_a_raw_result_that_is_json_stands_as_it_is() -> None:
    """For those who have it encoded already."""
    assert returned([msgspec.Raw(b'{"a": 1}')], LIMIT) == Verdict(Outcome.DONE, result=b'[{"a": 1}]')


async def forgotten() -> None:
    """A coroutine that nobody awaits."""


@pytest.mark.parametrize(
    ("value", "words"),
    [
        (Retry("later"), "the handler returned Retry: raise it"),
        (Snooze(5), "the handler returned Snooze: raise it"),
        (Fail("no"), "the handler returned Fail: raise it"),
        (ValueError("no"), "a value that JSON can't hold"),
        (iter([1]), "a value that JSON can't hold"),
        (10**5000, "a value that JSON can't hold"),
    ],
    ids=range(6),
)
def test_what_is_no_result_is_told_in_words(value: Any, words: str) -> None:
    """And what to do, where that is known."""
    error = returned(value, LIMIT).error
    assert error is not None
    assert words in error.message


def test_a_coroutine_that_was_returned_is_told_in_words() -> None:
    """As by a decorator that is not async around a function that is."""
    error = returned(forgotten(), LIMIT).error
    assert error is not None
    assert (
        error.message == "the handler returned a coroutine that was never awaited: define it with `async def`"
    )


# Limits


def deep(levels: int, bottom: Any, *, tables: bool) -> Any:
    """A value that nests so many levels."""
    for _ in range(levels):
        bottom = {"a": bottom} if tables else [bottom]
    return bottom


@pytest.mark.parametrize("bottom", [1, None, math.pi, "null"])
@pytest.mark.parametrize("tables", [False, True])
def test_a_result_may_nest_as_deep_as_a_payload(bottom: Any, tables: bool) -> None:
    """Whatever lies at the bottom: null is what NaN would be written as, so it is looked at twice."""
    verdict = returned(deep(DEEPEST, bottom, tables=tables), 10**6)

    assert verdict.outcome is Outcome.DONE
    assert msgspec.json.decode(verdict.result or b"") == deep(DEEPEST, bottom, tables=tables)


@pytest.mark.parametrize("levels", [DEEPEST + 1, 2 * DEEPEST, 100_000])
@pytest.mark.parametrize("bottom", [1, None, math.nan])
def test_a_result_that_nests_deeper_fails_in_words(levels: int, bottom: Any) -> None:
    """The handler returned it, and its author has to know."""
    verdict = returned(deep(levels, bottom, tables=False), 10**6)

    assert verdict.outcome is Outcome.FAIL
    assert verdict.error is not None
    assert verdict.error.message


def test_the_words_for_a_result_that_nests_too_deep_name_the_limit() -> None:
    """Also for one that never ends."""
    for value in (deep(DEEPEST + 1, 1, tables=True), itself()):
        error = returned(value, 10**6).error

        assert error is not None
        assert f"deeper than {DEEPEST} levels" in error.message


def test_nan_is_found_however_deep() -> None:
    """At the bottom of the deepest value."""
    error = returned(deep(DEEPEST, math.nan, tables=False), 10**6).error

    assert error is not None
    assert "NaN" in error.message
