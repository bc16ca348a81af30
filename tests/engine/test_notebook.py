"""What one attempt has written: of many lines the first and the last, in bounded memory."""

from hypothesis import given
from hypothesis import strategies as st

from jobpipe.engine.notebook import OVERHEAD, Notebook
from jobpipe.job import Progress
from jobpipe.store.base import LOG_BYTES, LOG_LINES

HALF = LOG_LINES // 2


def filled(*texts: str) -> Notebook:
    book = Notebook()
    for text in texts:
        book.log(1.0, "info", text, None)
    return book


def numbers(book: Notebook) -> list[int]:
    return [line.number for line in book.lines]


def test_lines_wait_in_their_order() -> None:
    book = filled("a", "b", "c")

    assert [(line.number, line.text) for line in book.lines] == [(1, "a"), (2, "b"), (3, "c")]
    assert book.has_lines
    assert book.size == 3 + 3 * OVERHEAD


def test_of_many_lines_the_first_and_the_last_wait() -> None:
    book = filled(*map(str, range(3 * LOG_LINES)))

    assert numbers(book) == [*range(1, HALF + 1), *range(3 * LOG_LINES - HALF + 1, 3 * LOG_LINES + 1)]


def test_of_long_lines_no_more_bytes_wait_than_are_kept() -> None:
    book = filled(*["x" * 4000] * 200)

    assert numbers(book) == [*range(1, 33), *range(169, 201)]
    assert book.size <= LOG_BYTES + len(book.lines) * OVERHEAD


def test_what_is_written_waits_no_more() -> None:
    """Whatever has come meanwhile does."""
    book = filled("a", "b")
    taken = book.lines
    book.log(1.0, "info", "c", None)
    book.written(taken, None, 7.0)

    assert [(line.number, line.text) for line in book.lines] == [(3, "c")]
    book.written(book.lines, None, 7.0)
    assert (book.has_lines, book.size, book.told_at) == (False, 0, None)


def test_a_progress_that_came_meanwhile_waits() -> None:
    book = Notebook()
    first, second = Progress(0.1, "", 1.0), Progress(0.1, "", 1.0)
    book.progress = first
    book.progress = second
    book.written((), first, 7.0)
    between = book.progress
    book.written((), second, 8.0)

    assert between is second
    assert (book.progress is None, book.told_at) == (True, 8.0)


def test_room_is_made_in_the_middle() -> None:
    """The last line stays, and of the first ones as many as can."""
    book = filled(*map(str, range(HALF + 2)))
    left = []
    while book.make_room():
        left.append(numbers(book)[-2:])

    assert left[:3] == [[HALF, HALF + 2], [HALF - 1, HALF + 2], [HALF - 2, HALF + 2]]
    assert numbers(book) == [HALF + 2]
    assert numbers(filled("a")) == [1]
    assert not Notebook().make_room()


def test_room_is_made_among_the_first_lines() -> None:
    book = filled("a", "b", "c")

    assert [book.make_room(), numbers(book), book.make_room(), numbers(book), book.make_room()] == [
        *(True, [1, 3], True, [3], False)
    ]


STEPS = st.lists(
    st.one_of(
        st.integers(0, 4096).map(lambda size: ("log", size)), st.sampled_from([("room", 0), ("write", 0)])
    ),
    max_size=60,
)


@given(steps=STEPS, repeated=st.integers(1, 40))
def test_whatever_happens_the_last_line_is_there_and_the_size_is_true(steps, repeated) -> None:
    book, last = Notebook(), 0
    for what, size in steps * repeated:
        if what == "log":
            book.log(1.0, "info", "x" * size, b"{}" if size % 2 else None)
            last += 1
        elif what == "room":
            book.make_room()
        else:
            book.written(book.lines, None, 1.0)
            assert not book.has_lines
    lines = book.lines
    assert book.size == sum(line.size + OVERHEAD for line in lines)
    assert sum(line.size for line in lines) <= LOG_BYTES
    assert len(lines) <= LOG_LINES
    assert numbers(book) == sorted(set(numbers(book)))
    assert not lines or lines[-1].number == last
