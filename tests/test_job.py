"""The job's words and rules: which status may follow which, ids, sameness, and what a crash makes of a job."""

import inspect
import itertools
import re
import sys
import uuid
from random import Random
from typing import Any

import msgspec
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from msgspec.structs import replace

from jobpipe.fingerprints import marked
from jobpipe.job import (
    ACTIVE,
    ATTEMPTS_KEPT,
    DEEPEST,
    ENDED,
    FOLLOWS,
    WAITING,
    AttemptRecord,
    Backoff,
    Job,
    JobError,
    JobId,
    Name,
    NewJob,
    Options,
    Outcome,
    Seconds,
    State,
    Status,
    Tag,
    kept,
    new_job_id,
    same_content,
)
from jobpipe.transitions import Stored, follows, rescued

UNTIMED = settings(deadline=None)
"""A busy machine is no fault."""

NOW = 1_700_000_000.0


def new_job(**changes: Any) -> NewJob:
    usual = NewJob(
        id="a",
        kind="echo",
        queue="default",
        payload=b"null",
        priority=0,
        max_retries=3,
        created_at=NOW,
        run_at=NOW,
    )
    return replace(usual, **changes)


# --- statuses ---------------------------------------------------------------------------------------------------------


def test_each_status_waits_runs_or_has_ended() -> None:
    """One of the three, and only one."""
    groups = [WAITING, ACTIVE, ENDED]

    assert frozenset().union(*groups) == set(Status)
    assert all(not one & other for one, other in itertools.combinations(groups, 2))


def test_every_status_is_told_what_may_follow() -> None:
    """And nothing follows itself: that is no transition."""
    assert set(FOLLOWS) == set(Status)
    assert all(status not in after for status, after in FOLLOWS.items())


def test_from_an_ended_status_only_a_retry_by_hand_leads_on() -> None:
    """So an end is told once."""
    assert {FOLLOWS[status] for status in ENDED} == {frozenset({Status.QUEUED, Status.BLOCKED})}


@pytest.mark.parametrize("status", list(Status))
def test_every_status_can_be_reached_and_leads_to_an_end(status: Status) -> None:
    """No job is stuck for ever, whatever its status."""

    def reached(start: Status) -> set[Status]:
        found, new = set(), {start}
        while new:
            found |= new
            new = {after for one in new for after in FOLLOWS[one]} - found
        return found

    assert status in reached(Status.SCHEDULED)
    assert reached(status) & ENDED


def test_a_job_that_was_asked_to_stop_never_waits_again() -> None:
    """Cancelling leads to an end only."""
    assert FOLLOWS[Status.CANCELLING] <= ENDED


def test_only_what_waits_can_expire() -> None:
    """What runs is bounded by its timeout."""
    assert {status for status, after in FOLLOWS.items() if Status.EXPIRED in after} == WAITING


def test_a_job_can_be_cancelled_until_it_has_ended() -> None:
    """At once, or by way of `cancelling`."""
    cancellable = {status for status, after in FOLLOWS.items() if Status.CANCELLED in after}

    assert cancellable == WAITING | ACTIVE


# --- new jobs ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("ahead", "status"), [(-1, Status.QUEUED), (0, Status.QUEUED), (0.001, Status.SCHEDULED)]
)
def test_a_new_job_is_scheduled_when_its_run_at_lies_ahead(ahead: float, status: Status) -> None:
    """Else it is queued."""
    assert new_job(run_at=NOW + ahead).status is status


def test_a_job_is_known_by_what_was_asked_and_stands_as_its_state_says() -> None:
    """One that was just stored has not run."""
    job = Job(new_job(id="b"), State(Status.QUEUED))

    assert (job.id, job.status, job.attempts, job.damage) == ("b", Status.QUEUED, (), ())
    assert (job.state.attempt, job.state.claim) == (0, 0)


def fits(kind: Any, value: Any) -> bool:
    try:
        msgspec.convert(value, kind)
    except msgspec.ValidationError:
        return False
    return True


@pytest.mark.parametrize(
    "job_id", ["t1", "a", "x" * 200, "größe", "💥", "a.b", "...", "a:b;c", "%2F", "'\"\\"]
)
def test_an_id_is_up_to_200_characters_without_spaces_and_slashes(job_id: str) -> None:
    """Whatever else they are: an id is a part of a path."""
    assert fits(JobId, job_id)


@pytest.mark.parametrize(
    "job_id", ["", "x" * 201, "a b", "a/b", ".", "..", "a\n", "\n", "\t", "a\x00", "\x7f", "\u00a0", "\u2028"]
)
def test_an_id_that_no_path_can_hold_is_refused(job_id: str) -> None:
    """Empty, too long, with a space, a slash or a control character, or a dot that a client would resolve."""
    assert not fits(JobId, job_id)


@pytest.mark.parametrize(
    ("name", "good"),
    [("default", True), ("email.send", True), ("A-1_b", True), ("7", True), ("x" * 100, True)]
    + [(name, False) for name in ("", ".a", "-a", "_a", "a b", "a/b", "größe", "x" * 101, "a\n")],
)
def test_a_name_is_letters_digits_dots_dashes_and_underscores(name: str, good: bool) -> None:
    """And begins with a letter or a digit."""
    assert fits(Name, name) is good


def test_tags_and_seconds_are_bounded() -> None:
    """A tag has 1 to 100 characters, a number of seconds is at most ten years."""
    assert [fits(Tag, tag) for tag in ("", "t", "x" * 100, "x" * 101)] == [False, True, True, False]
    assert [fits(Seconds, number) for number in (-0.1, 0, 315_360_000, 315_360_001)] == [
        False,
        True,
        True,
        False,
    ]


@pytest.mark.parametrize(
    "policy",
    [
        {"base": -1},
        {"base": 86_401},
        {"factor": 0.9},
        {"factor": 101},
        {"cap": -1},
        {"jitter": "some"},
        {"bas": 1},
    ],
    ids=str,
)
def test_a_backoff_out_of_bounds_is_refused(policy: dict[str, Any]) -> None:
    """So is one with an unknown field: a typo must not pass."""
    assert not fits(Backoff, policy)
    assert fits(Backoff, {})


# --- ids --------------------------------------------------------------------------------------------------------------

TIMES = st.floats(0, 4e9).map(lambda seconds: round(seconds, 3))


@UNTIMED
@given(now=TIMES, seed=st.integers())
def test_a_new_id_is_a_uuid_of_version_7_of_its_moment(now: float, seed: int) -> None:
    """RFC 9562, section 5.7: 48 bits of milliseconds, and the rest random."""
    job_id = new_job_id(now, Random(seed).getrandbits)
    read = uuid.UUID(job_id)

    assert re.fullmatch(r"[0-9a-f]{8}-[0-9a-f]{4}-7[0-9a-f]{3}-[89ab][0-9a-f]{3}-[0-9a-f]{12}", job_id)
    assert (read.version, read.variant, str(read)) == (7, uuid.RFC_4122, job_id)
    assert read.int >> 80 == int(now * 1000)
    assert fits(JobId, job_id)


@UNTIMED
@given(earlier=TIMES, later=TIMES, seed=st.integers())
def test_ids_of_different_moments_are_in_their_order(earlier: float, later: float, seed: int) -> None:
    """So that neighbours lie together in an index."""
    earlier, later = sorted((earlier, later))
    random = Random(seed).getrandbits
    first, second = new_job_id(earlier, random), new_job_id(later, random)

    assert first < second or int(earlier * 1000) == int(later * 1000)


def test_ids_of_one_moment_differ() -> None:
    """74 random bits see to it."""
    random = Random(17).getrandbits

    assert len({new_job_id(NOW, random) for _ in range(10_000)}) == 10_000


@pytest.mark.parametrize("fill", [0, -1])
def test_all_random_bits_are_used_and_none_spills(fill: int) -> None:
    """Version and variant stand, whatever is drawn."""
    job_id = new_job_id(NOW, lambda count: fill & (1 << count) - 1)

    assert uuid.UUID(job_id).version == 7
    assert job_id.endswith("7000-8000-000000000000" if fill == 0 else "7fff-bfff-ffffffffffff")


# --- sameness ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("one", "other", "same"),
    [
        (b'{"x":1,"y":[2]}', b'{ "y": [2], "x": 1 }', True),
        (b"[1,2]", b"[2,1]", False),
        (b"1", b"1.0", True),
        (b"100", b"1e2", True),
        (b"1", b"2", False),
        (b"1", b'"1"', False),
        (b'"\\u00fc"', '"ü"'.encode(), True),
        (b"null", b"{}", False),
        (b"{}", b"[]", False),
        (b'{"x":null}', b"{}", False),
    ],
)
def test_payloads_are_the_same_when_they_mean_the_same(one: bytes, other: bytes, same: bool) -> None:
    """As JSON values: spaces, the order of keys and the spelling of a number do not count."""
    job = new_job(payload=one)

    assert same_content(new_job(payload=one), job)
    assert same_content(new_job(payload=other), job) is same


@pytest.mark.parametrize(
    ("one", "other"), [(b"true", b"1"), (b"false", b"0"), (b'{"x":[true]}', b'{"x":[1]}')]
)
def test_true_is_no_number(one: bytes, other: bytes) -> None:
    """Python's True == 1, but in JSON they differ."""
    assert not same_content(new_job(payload=other), new_job(payload=one))


@pytest.mark.parametrize(
    ("one", "other"),
    [
        (b"9007199254740993", b"9007199254740992"),
        (b"123456789012345678901234567890", b"123456789012345678901234567891"),
    ],
)
def test_large_whole_numbers_are_compared_to_the_last_digit(one: bytes, other: bytes) -> None:
    """Ids of other systems are such numbers; rounded, two different ones would be the same."""
    assert not same_content(new_job(payload=other), new_job(payload=one))


JSON = st.recursive(
    st.none()
    | st.booleans()
    | st.integers(-(2**63), 2**63)
    | st.floats(allow_nan=False, allow_infinity=False)
    | st.text(),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(), inner, max_size=3),
    max_leaves=8,
)


def turned(value: Any) -> Any:
    """The same JSON value with the keys of each object in the reverse order."""
    match value:
        case dict():
            return {key: turned(value[key]) for key in reversed(value)}
        case list():
            return [turned(one) for one in value]
        case _:
            return value


@UNTIMED
@given(value=JSON)
def test_a_payload_with_its_keys_turned_is_the_same(value: Any) -> None:
    """At any depth, however it is laid out."""
    payload = msgspec.json.encode(value)
    other = msgspec.json.format(msgspec.json.encode(turned(value)), indent=2)

    assert same_content(new_job(payload=other), new_job(payload=payload))


@pytest.mark.parametrize(
    "changes",
    [
        {"kind": "demo"},
        {"queue": "mail"},
        {"priority": 1},
        {"max_retries": 0},
        {"expires_at": NOW + 60},
        {"payload": b"1"},
        {"options": Options(timeout=1)},
        {"options": Options(backoff=Backoff())},
        {"options": Options(on_crash="fail")},
        {"options": Options(tags=("t",))},
        {"options": Options(delay=5)},
        {"options": Options(run_at=NOW)},
    ],
    ids=str,
)
def test_whatever_else_was_asked_makes_another_job(changes: dict[str, Any]) -> None:
    """The same id then is a conflict."""
    assert not same_content(new_job(**changes), new_job())
    assert same_content(new_job(**changes), new_job(**changes))


def test_when_it_was_asked_and_what_became_of_it_do_not_count() -> None:
    """A request repeated an hour later is the same request, although its job has run and was retried."""
    asked = new_job(run_at=NOW + 9)

    assert same_content(new_job(created_at=NOW + 3600, run_at=NOW + 3600), asked)


# --- crashes and history ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("status", "attempt", "on_crash", "becomes", "message"),
    [
        (Status.QUEUED, 0, "retry", Status.QUEUED, None),
        (Status.QUEUED, 9, "retry", Status.QUEUED, None),
        (Status.QUEUED, 0, "fail", Status.QUEUED, None),
        (Status.RUNNING, 1, "retry", Status.QUEUED, "the node died during the attempt"),
        (Status.RUNNING, 3, "retry", Status.QUEUED, "the node died during the attempt"),
        (Status.RUNNING, 4, "retry", Status.FAILED, "the node died during the last attempt"),
        (
            Status.RUNNING,
            1,
            "fail",
            Status.FAILED,
            'the node died during the attempt, and "on_crash" is "fail"',
        ),
        (Status.CANCELLING, 1, "retry", Status.CANCELLED, None),
        (Status.CANCELLING, 4, "fail", Status.CANCELLED, None),
    ],
)
def test_what_becomes_of_a_job_whose_node_died(
    status: Status, attempt: int, on_crash: Any, becomes: Status, message: str | None
) -> None:
    """One that had not begun has spent nothing; a broken attempt counts, and three retries mean four attempts."""
    job = Job(new_job(options=Options(on_crash=on_crash)), State(status, attempt))
    after = rescued(Stored(job=job, seq=1, held=True), NOW)

    assert after is not None
    assert (after.job.status, after.held, after.rescued) == (becomes, False, 1)
    assert after.job.state.error == (message and marked(JobError("NodeDied", message), "echo"))


@pytest.mark.parametrize("status", [Status.QUEUED, *sorted(ACTIVE)])
def test_what_a_crash_makes_of_a_job_is_an_allowed_transition(status: Status) -> None:
    """Those are the statuses in which a node can hold one."""
    before = Stored(job=Job(new_job(), State(status, attempt=1)), seq=1, held=True)
    after = rescued(before, NOW)

    assert after is not None
    follows(before, after)


@pytest.mark.parametrize("count", [0, 1, ATTEMPTS_KEPT, ATTEMPTS_KEPT + 7])
def test_the_newest_attempts_are_kept(count: int) -> None:
    """In their order, at most ATTEMPTS_KEPT."""
    records = [
        AttemptRecord(number=number, claim=number, node="n", started_at=NOW, outcome=Outcome.RETRY)
        for number in range(count)
    ]

    assert kept(records) == tuple(records[max(0, count - ATTEMPTS_KEPT) :])


def test_the_words_are_those_of_the_json() -> None:
    """A status and an outcome are written as they are named, and read back."""
    for words in (Status, Outcome):
        assert [msgspec.json.decode(msgspec.json.encode(word), type=words) for word in words] == list(words)
        assert all(str(word) == word.value == word.name.lower() for word in words)


def test_options_that_ask_nothing_are_stored_as_nothing() -> None:
    """Most jobs ask nothing."""
    asked = Options(timeout=3, tags=("a", "b"), backoff=Backoff(jitter="none"))

    assert msgspec.json.encode(Options()) == b"{}"
    assert msgspec.json.decode(msgspec.json.encode(asked), type=Options) == asked


def nested(levels: int, bottom: bytes, *, tables: bool = False) -> bytes:
    """JSON that nests so many levels."""
    opening, closing = (b'{"a":', b"}") if tables else (b"[", b"]")
    return opening * levels + bottom + closing * levels


@pytest.mark.parametrize("tables", [False, True])
@pytest.mark.parametrize("levels", [1, DEEPEST - 1, DEEPEST])
def test_the_deepest_payloads_are_compared_to_their_bottom(levels: int, tables: bool) -> None:
    """Though the stack would not bear a walk from level to level."""
    job = new_job(payload=nested(levels, b"1", tables=tables))

    assert same_content(new_job(payload=nested(levels, b" 1.0", tables=tables)), job)
    assert not same_content(new_job(payload=nested(levels, b"2", tables=tables)), job)
    assert not same_content(new_job(payload=nested(levels, b"true", tables=tables)), job)


def test_a_comparison_works_where_hardly_any_stack_is_left() -> None:
    """As below many frames of other code."""

    def below(frames: int) -> bool:
        if frames:
            return below(frames - 1)
        return same_content(new_job(payload=nested(20, b"1 ")), new_job(payload=nested(20, b"1")))

    assert below(sys.getrecursionlimit() - len(inspect.stack()) - 30)


@pytest.mark.parametrize("stored", [b"[" * 100_000 + b"]" * 100_000, b"1e400", b"nonsense", b'"\xff"', b""])
def test_a_stored_payload_that_cannot_be_read_is_another_content(stored: bytes) -> None:
    """Whoever wrote it: a comparison must not end the node."""
    assert not same_content(new_job(payload=b"1"), new_job(payload=stored))
    assert same_content(new_job(payload=stored), new_job(payload=stored))


INVISIBLE = (
    "\x00\x1b\x7f\x80\x9b\x9f\xad\u061c\u180e\u200b\u200e\u200f\u2028\u2029\u202a\u202e"
    "\u2060\u2066\u2069\ufeff\ufff9\U000e0041"
)


@pytest.mark.parametrize("kind", [JobId, Tag], ids=["id", "tag"])
@pytest.mark.parametrize("character", list(INVISIBLE), ids=ascii)
def test_characters_that_nobody_sees_are_refused(kind: Any, character: str) -> None:
    """They reorder what is shown, or make two names look the same."""
    for text in (character, f"a{character}", f"{character}b", f"a{character}b"):
        with pytest.raises(msgspec.ValidationError):
            msgspec.convert(text, kind)


@pytest.mark.parametrize("text", ["é", "日本", "\U0001f600", "\u0646\u0627\u0645", "a-b_c.d", "...", "~"])
def test_characters_that_are_seen_are_taken(text: str) -> None:
    """Of whatever script."""
    assert msgspec.convert(text, JobId) == msgspec.convert(text, Tag) == text


@pytest.mark.parametrize(
    "joined", ["\U0001f468\u200d\U0001f469", "\u0645\u06cc\u200c\u062e\u0648\u0627\u0647\u0645"]
)
def test_a_tag_may_hold_what_joins_characters_and_an_id_may_not(joined: str) -> None:
    """A tag is a word of people; an id is one of programs."""
    assert msgspec.convert(joined, Tag) == joined
    with pytest.raises(msgspec.ValidationError):
        msgspec.convert(joined, JobId)
