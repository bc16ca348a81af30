"""What is kept of a change."""

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from jobpipe.acts import LONGEST_VALUE, MOST_BYTES, cut, differences
from jobpipe.job import Backoff, Status

VALUES = st.none() | st.booleans() | st.integers(-9, 9) | st.text(max_size=900) | st.binary(max_size=20)


def test_what_has_changed_is_kept_with_what_it_was() -> None:
    """Field by field; of bytes their number, also where that is the same."""
    before = {"priority": 0, "tags": ("a",), "payload_bytes": b"12", "backoff": None, "timeout": 5.0}
    after = {
        "priority": 5,
        "tags": ("a",),
        "payload_bytes": b"34",
        "backoff": Backoff(),
        "status": Status.DONE,
    }
    found = dict(differences(before, after))

    assert found.pop("backoff")[0] is None
    assert found == {
        "priority": (0, 5),
        "payload_bytes": (2, 2),
        "timeout": (5.0, None),
        "status": (None, "done"),
    }
    assert differences(before, before) == {}


@pytest.mark.parametrize(
    ("value", "kept"),
    [
        ("x" * (LONGEST_VALUE - 2), "x" * (LONGEST_VALUE - 2)),
        ("x" * (LONGEST_VALUE - 1), '"' + "x" * (LONGEST_VALUE - 1) + "..."),
        (("y" * 400, "z" * 400), '["' + "y" * 400 + '","' + "z" * (LONGEST_VALUE - 405) + "..."),
    ],
    ids=["longest", "longer", "list"],
)
def test_of_a_long_value_the_beginning_is_kept(value: object, kept: object) -> None:
    assert differences({}, {"a": value}) == {"a": (None, kept)}


@given(st.dictionaries(st.text(max_size=12), VALUES, max_size=40))
def test_no_row_takes_more_than_a_few_kib(facts: dict[str, object]) -> None:
    """However many fields there are, and whatever is in them; quotes and control characters take more within a text."""
    for found in (differences({}, facts), differences(facts, {})):
        assert len(msgspec.json.encode(found)) <= 3 * MOST_BYTES + 40 * 100


def test_texts_are_cut_and_have_no_characters_that_no_database_takes() -> None:
    assert cut("a\0b\ud800" + "x" * 999, 9) == "ab?xxxxxx"
    assert cut(None) is None
