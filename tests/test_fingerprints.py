"""Which failures are taken to be the same one."""

import sysconfig
import time
import types
from collections.abc import Callable, Sequence
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from jobpipe.engine import outcomes
from jobpipe.fingerprints import FRAMES, VERSION, WORDS, Frame, marked, of_frames, of_kind, own, wording
from jobpipe.handlers.exceptions import Fail
from jobpipe.job import JobError

SITE = f"{sysconfig.get_path('stdlib')}/site-packages"
HANDLER = Frame("shop.jobs", "send", "/srv/app/shop/jobs.py")
MAIL = Frame("shop.mail", "Mailer.send", "/srv/app/shop/mail.py")
LIBRARY = Frame("httpx._client", "Client.get", f"{SITE}/httpx/_client.py")
STANDARD = Frame("socket", "create_connection", f"{sysconfig.get_path('stdlib')}/socket.py")
FROZEN = Frame("importlib._bootstrap", "_load", "<frozen importlib._bootstrap>")
TRIO = Frame("trio._core._run", "Nursery.__aexit__", f"{SITE}/trio/_core/_run.py")
JOBPIPE = Frame("jobpipe.engine.executor", "Executor.call", "/srv/jobpipe/engine/executor.py")
SHIPPED = Frame("jobpipe.handlers.demo", "demo", f"{SITE}/jobpipe/handlers/demo.py")
INSTALLED = Frame("shop.mail", "send", f"{SITE}/shop/mail.py")


# Words


@pytest.mark.parametrize(
    ("one", "other"),
    [
        ("no stock for 17", "no stock for 4,711.5"),
        ("order a1b2-c3 is late", "order ff03-9 is late"),
        (
            "user 550e8400-e29b-41d4-a716-446655440000 is gone",
            "user 017f22e2-79b0-7cc3-98c4-dc0c0c07398f is gone",
        ),
        ("object at 0x7f2a1c", "object at 0xdeadbeef"),
        ("commit deadbeefcafe", "commit abcdefabcdef"),
        ("unknown user 'bob'", "unknown user 'it is ann'"),
        ('no field "a"', 'no field "b c d"'),
        ("Expected `int`, got `str`", "Expected `bool`, got `null`"),
        ("No such file: /var/spool/a b.txt", "No such file: /srv/x b.txt"),
        ("cannot read ~/x.toml", "cannot read ../y/z.toml"),
        ("cannot read C:\\temp\\x", "cannot read \\\\host\\share"),
        ("GET https://shop.example/a?b=1&c=2 failed", "GET http://10.0.0.1:80/ failed"),
        ("mail to ann@example.org bounced", "mail to bob.x@example.com bounced"),
        ("at 2030-01-31T12:00:00Z", "at 2031-12-01 09:30:00+01:00"),
        ("ids [1, 2, 3]", "ids ['a', 'b']"),
        ("bad row {'a': 1, 'b': [2, 3]}", "bad row {}"),
        ("one 1\nand more", "one 2"),
        ("cut in 'the midd", "cut in 'another"),
    ],
)
def test_messages_that_differ_in_their_values_are_worded_alike(one: str, other: str) -> None:
    assert wording(one) == wording(other)


@pytest.mark.parametrize(
    ("one", "other"),
    [
        ("no stock for 17", "no price for 17"),
        ("can't open it", "can't close it"),
        ("the list is empty", "the list is full"),
        ("I/O error", "CRC error"),
        ("unknown user 'bob'", "unknown group 'bob'"),
        ("", "x"),
    ],
)
def test_messages_that_say_something_else_are_not(one: str, other: str) -> None:
    assert wording(one) != wording(other)


@given(st.text(max_size=200))
def test_any_message_has_a_bounded_wording(message: str) -> None:
    said = wording(message)

    assert len(said) <= WORDS
    assert "\n" not in said
    assert of_kind("k", JobError("E", message)).startswith(f"{VERSION}-")


@pytest.mark.parametrize(
    "part", ["'", "a", "[", "{[", "<>", "/", "1", "\\", "a@", "a.", "x:", "://", "'a", "[]"]
)
def test_no_message_takes_long(part: str) -> None:
    """However it goes on and on."""
    begun = time.thread_time()
    wording(part * (outcomes.MESSAGE // len(part)))

    assert time.thread_time() - begun < 0.1


# Frames


@pytest.mark.parametrize(
    ("frames", "names"),
    [
        ([JOBPIPE, HANDLER], ["shop.jobs.send"]),
        ([JOBPIPE, HANDLER, MAIL, LIBRARY, STANDARD], ["shop.mail.Mailer.send", "shop.jobs.send"]),
        ([JOBPIPE, TRIO, HANDLER, TRIO, FROZEN], ["shop.jobs.send"]),
        ([JOBPIPE, HANDLER, MAIL, HANDLER, MAIL, HANDLER], ["shop.jobs.send", "shop.mail.Mailer.send"]),
        ([JOBPIPE, SHIPPED], ["jobpipe.handlers.demo.demo"]),
        ([JOBPIPE, INSTALLED, LIBRARY], ["shop.mail.send"]),
        ([JOBPIPE, HANDLER, INSTALLED, LIBRARY], ["shop.mail.send", "shop.jobs.send"]),
        ([JOBPIPE, TRIO, STANDARD], []),
        ([], []),
    ],
)
def test_frames_of_own_code_are_told_from_others(frames: Sequence[Frame], names: Sequence[str]) -> None:
    """The innermost first, each function once; the handler's package is its own wherever it is installed."""
    assert [one.name for one in own(frames, frames)] == names


def test_of_many_frames_the_innermost_count() -> None:
    frames = [HANDLER._replace(function=f"f{number}") for number in range(9)]

    assert [one.function for one in own(frames, frames)] == [f"f{number}" for number in (8, 7, 6)][:FRAMES]


def test_the_error_of_a_child_task_is_in_the_code_of_its_handler() -> None:
    """Its own frames begin in the task; those of the group in the handler."""
    assert [one.name for one in own([INSTALLED, LIBRARY], [JOBPIPE, INSTALLED, TRIO])] == ["shop.mail.send"]


def test_fingerprints_stay_what_they_are() -> None:
    """Whoever changes these changes the version."""
    assert of_frames(["ConnectError"], [MAIL, HANDLER], "no route to 'a'") == "1-12af81626257d0e7"
    assert of_kind("echo", JobError("Timeout", "took 5 s")) == "1-3f1d066a090e8ac4"


# Errors as handlers raise them


def caught(play: Callable[[], object]) -> JobError:
    try:
        play()
    except BaseException as error:  # noqa: BLE001, ASYNC103 - whatever it raises
        described = outcomes.raised(error).error
        assert described is not None
        return described  # noqa: ASYNC104 - nothing is awaited here
    raise AssertionError("nothing was raised")


def fail(message: str = "no stock for 1") -> None:
    raise ValueError(message)


def deep(levels: int) -> None:
    if levels:
        deep(levels - 1)
    fail()


def fingerprint(play: Callable[[], object]) -> str:
    told = caught(play).fingerprint
    assert isinstance(told, str)
    return told


def test_an_error_says_where_it_was_raised() -> None:
    error = caught(fail)

    assert error.where == f"{__name__}.fail"
    assert (
        caught(lambda: int("x")).where
        == f"{__name__}.test_an_error_says_where_it_was_raised.<locals>.<lambda>"
    )


def test_one_error_is_one_whatever_line_it_is_raised_in_and_whatever_its_values_are() -> None:
    def play(number: int) -> None:
        if number > 1:
            raise ValueError(f"no stock for {number}")
        raise ValueError(f"no stock for {number}")

    assert fingerprint(lambda: play(1)) == fingerprint(lambda: play(2))


def test_it_does_not_matter_how_deep_a_function_has_called_itself() -> None:
    assert fingerprint(lambda: deep(4)) == fingerprint(lambda: deep(40))


def test_another_type_message_or_function_is_another_error() -> None:
    def other() -> None:
        raise ValueError("no stock for 1")

    def typed() -> None:
        raise KeyError("no stock for 1")

    namesake = type("ValueError", (ValueError,), {"__module__": "shop"})

    def named() -> None:
        raise namesake("no stock for 1")

    told = {fingerprint(one) for one in (fail, lambda: fail("no price"), other, typed, named)}
    assert len(told) == 5


def test_what_an_error_was_raised_from_counts_by_its_type() -> None:
    def wrapped(error: Exception) -> None:
        raise RuntimeError("could not send") from error

    first = fingerprint(lambda: wrapped(OSError("host a")))

    assert first == fingerprint(lambda: wrapped(OSError("host b")))
    assert first != fingerprint(lambda: wrapped(TimeoutError("host a")))


def test_a_group_counts_by_the_types_in_it_and_a_single_error_as_itself() -> None:
    def several(*errors: Exception) -> None:
        raise ExceptionGroup("some failed", errors)

    two = fingerprint(lambda: several(OSError("a"), KeyError("b")))

    assert two == fingerprint(lambda: several(KeyError("c"), OSError("d"), KeyError("e")))
    assert two != fingerprint(lambda: several(KeyError("c"), TypeError("d")))


def test_a_word_that_handlers_raise_counts_as_any_error() -> None:
    def play(number: int) -> None:
        raise Fail(f"order {number} is unknown")

    assert fingerprint(lambda: play(1)) == fingerprint(lambda: play(2))


def loaded(source: str, path: str = "/srv/shop/mail.py") -> Callable[[], object]:
    """The function `send` of a module with this source."""
    module = types.ModuleType("shop.mail")
    exec(compile(source, path, "exec"), module.__dict__)
    sends: Callable[[], object] = module.__dict__["send"]
    return sends


def test_modules_are_named_not_files() -> None:
    """So the same code is the same wherever it is deployed, and after other code of the file has changed."""
    source = "def send():\n    raise ValueError('x')"
    moved = f"import sys\n\n\n{source}"

    assert fingerprint(loaded(source, "/a/mail.py")) == fingerprint(loaded(moved, "/b/c/mail.py"))


def test_comprehensions_are_no_functions() -> None:
    """In some versions of Python they are frames of their own."""
    source = "def fail():\n    raise ValueError('x')\ndef send():\n    return {}"

    assert fingerprint(loaded(source.format("fail()"))) == fingerprint(
        loaded(source.format("[fail() for _ in 'a']"))
    )


class OddError(Exception):
    """An error that nothing can be asked of."""

    @property
    def __traceback__(self) -> Any:  # type: ignore[override]
        raise RuntimeError

    @property
    def __cause__(self) -> Any:  # type: ignore[override]
        raise RuntimeError


def test_an_error_has_no_word_in_it() -> None:
    def play() -> None:
        raise OddError("x")

    assert caught(play).where == f"{__name__}.test_an_error_has_no_word_in_it.<locals>.play"


# Errors that no handler raised


def test_others_are_marked_by_kind_and_none_twice() -> None:
    timeout = JobError("Timeout", "the attempt ran longer than its timeout of 5 s")
    longer = JobError("Timeout", "the attempt ran longer than its timeout of 60 s")
    once = marked(timeout, "mail")

    assert once.fingerprint == marked(longer, "mail").fingerprint == of_kind("mail", timeout)
    assert once.fingerprint != marked(timeout, "news").fingerprint
    assert marked(once, "news") == once
    assert not marked(JobError("DamagedRow", "its payload is no JSON"), "mail").fingerprint
