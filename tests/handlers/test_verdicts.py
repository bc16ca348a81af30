"""What a handler may raise to say how its attempt ended."""

import pickle

import pytest

import jobpipe
from jobpipe.errors import HandlerError
from jobpipe.handlers.exceptions import Fail, Retry, Snooze


def test_they_are_among_the_public_names() -> None:
    """So that a module of handlers imports `jobpipe` alone."""
    assert (jobpipe.Retry, jobpipe.Snooze, jobpipe.Fail) == (Retry, Snooze, Fail)


def test_each_says_something_when_nothing_was_said() -> None:
    """Its text is what people read as the error of the attempt."""
    assert str(Retry()) == "the handler asked for a retry"
    assert str(Snooze(5)) == "the handler asked to wait"
    assert str(Fail("no such address")) == "no such address"


def test_each_carries_its_wait() -> None:
    """In seconds; none is named: by the backoff."""
    assert Retry().after is None
    assert Retry("later", after=5).after == 5
    assert Snooze(7, "not before noon").seconds == 7


@pytest.mark.parametrize("word", [Retry, Snooze, Fail])
def test_an_except_clause_for_errors_catches_them(word) -> None:
    """They are plain exceptions: a handler that catches everything catches these too."""
    assert issubclass(word, Exception)
    assert not issubclass(word, HandlerError)


@pytest.mark.parametrize("word", [Retry("later", after=5), Fail("no")])
def test_they_can_be_sent_between_processes(word) -> None:
    """As from a pool of processes that does the work of a handler."""
    sent = pickle.loads(pickle.dumps(word))

    assert (type(sent), str(sent), vars(sent)) == (type(word), str(word), vars(word))
