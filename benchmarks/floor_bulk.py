"""The floor of a bulk enqueue: decode the same lines, insert them 1,000 a transaction.

`python -m benchmarks.floor_bulk FILE PREFIX COUNT` prints the seconds that it took.
"""

import json
import sys
import time
from pathlib import Path

import msgspec

from benchmarks.plain import INSERT, table
from benchmarks.work import lines


class Line(msgspec.Struct):
    """One job of the stream."""

    id: str
    payload: msgspec.Raw
    max_retries: int
    kind: str = "echo"


def main(path: Path, prefix: str, count: int) -> float:
    """Insert so many jobs; returns the seconds from the first line to the last commit."""
    body, decode = lines(prefix, count), msgspec.json.Decoder(Line).decode
    connection = table(path, "full")
    began = time.perf_counter()
    todo = body.splitlines()
    for start in range(0, len(todo), 1000):
        now = time.time()
        with connection:
            connection.executemany(
                INSERT,
                [
                    (line.id, line.kind, bytes(line.payload), line.max_retries, now, now)
                    for line in map(decode, todo[start : start + 1000])
                ],
            )
    return time.perf_counter() - began


if __name__ == "__main__":
    took = main(Path(sys.argv[1]), sys.argv[2], int(sys.argv[3]))
    print(json.dumps({"seconds": took, "stored": int(sys.argv[3])}))
