"""Statements that take many rows in one step.

A step gives the interpreter lock up and takes it back; one step for a batch leaves the lock to the event loop
meanwhile, where a step a row would fight for it. It is also the quicker way: SQLite runs the statement once.
"""

import functools
import itertools
from collections.abc import Iterator, Sequence

import apsw

from jobpipe.store.rows import Row


class Mismatch(Exception):  # noqa: N818 - no error: it is caught where it is raised for
    """A statement for many rows did not change each of them: some are stale, or there already."""


LARGEST = 512
"""The most rows of one statement: of 12 values each its text stays below the 16 KB that APSW keeps prepared."""


def execute_values(db: apsw.Connection, sql: str, rows: Sequence[Row]) -> int:
    """Run a statement with `{values}` in it for all rows; returns how many rows it changed."""
    before = db.total_changes()
    for part in _parts(rows):
        db.execute(_filled(sql, len(part), len(part[0])), tuple(itertools.chain.from_iterable(part)))
    return db.total_changes() - before


def _parts(rows: Sequence[Row]) -> Iterator[Sequence[Row]]:
    """Cut rows into parts whose sizes are powers of two, so that few different statements have to be prepared."""
    start = 0
    while left := len(rows) - start:
        size = min(LARGEST, 1 << left.bit_length() - 1)
        yield rows[start : start + size]
        start += size


@functools.cache
def _filled(sql: str, rows: int, width: int) -> str:
    row = f"({','.join('?' * width)})"
    return sql.replace("{values}", f"values{','.join([row] * rows)}")
