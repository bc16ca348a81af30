"""The one box: its words are those of the API."""

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from jobpipe.dashboard.search import WORDS, Word, meaning, read, written
from jobpipe.job import Status


def test_words_mean_what_the_parameters_of_the_api_mean():
    found = read(
        'status:failed status:expired queue:mail kind:webhook.* error:TimeoutError text:"a \\"b\\" c"', 0.0
    )

    assert found.wrong == ()
    assert found.filter is not None
    assert found.filter.status == [Status.FAILED, Status.EXPIRED]
    assert (found.filter.queue, found.filter.kind) == (["mail"], ["webhook.*"])
    assert (found.filter.error_type, found.filter.text) == (["TimeoutError"], 'a "b" c')


def test_since_counts_from_now():
    found = read("since:2h ended:90s", 10_000.0)

    assert found.filter is not None
    after, ended = found.filter.created_after, found.filter.ended_after
    assert [one and one.timestamp() for one in (after, ended)] == [2800.0, 9910.0]


def test_words_without_a_name_are_one_text_and_a_single_one_may_be_an_id():
    several = read("no such mailbox", 0.0)

    assert several.filter is not None
    assert (several.filter.text, several.only_word) == ("no such mailbox", "no such mailbox")
    assert read("t1 queue:mail", 0.0).only_word is None
    assert read("t1", 0.0).only_word == "t1"


@pytest.mark.parametrize(
    ("text", "word", "why"),
    [
        ("state:failed", "state:failed", "known are"),
        ("status:fialed", "status:fialed", "fialed"),
        ("queue:mail since:soon", "since:soon", "no duration"),
        ('queue:mail text:"open', 'text:"open', "without another"),
        ("tag:" + "x" * 200, "tag:" + "x" * 200, "1 to 100"),
        ("created_after:yesterday", "created_after:yesterday", "yesterday"),
        ("x" * 9000, "x" * 20, "too long"),
    ],
)
def test_a_fault_is_told_at_its_word(text, word, why):
    (wrong,) = read(text, 0.0).wrong

    assert wrong.word == word
    assert why in wrong.detail


@settings(deadline=None)
@given(
    st.lists(
        st.tuples(st.sampled_from(sorted(WORDS)), st.text(min_size=1).filter(lambda one: "\r" not in one))
    )
)
def test_what_is_written_is_read_as_the_same_words(pairs):
    words = list(dict.fromkeys(Word(name, value) for name, value in pairs))

    assert list(read(written(words), 0.0).words) == words or len(written(words)) > 8000


@settings(deadline=None)
@given(st.text())
def test_whatever_is_typed_is_answered(text):
    found = read(text, 1e9)

    assert (found.filter is None) == bool(found.wrong)
    assert meaning(found.words, 1e9).words == found.words
