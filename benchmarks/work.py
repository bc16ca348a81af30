"""The work that both sides are given: the same jobs, the same bytes."""

import time
from collections.abc import Iterator

from jobpipe.job import NewJob

PAYLOAD = b'"xxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxx"'
"""34 bytes of JSON."""

DAY = 86_400.0


def lines(prefix: str, count: int) -> bytes:
    """So many jobs as NDJSON."""
    return b"".join(
        b'{"id":"%s-%d","payload":%s,"max_retries":3}\n' % (prefix.encode(), number, PAYLOAD)
        for number in range(count)
    )


def jobs(prefix: str, count: int, *, kind: str = "noop", priority: int = 0, wait: float = 0) -> list[NewJob]:
    """So many jobs for the store itself, due in `wait` seconds."""
    now = round(time.time(), 3)
    return [
        NewJob(
            id=f"{prefix}-{number}",
            kind=kind,
            queue="default",
            payload=PAYLOAD,
            priority=priority,
            max_retries=3,
            created_at=now,
            run_at=now + wait,
        )
        for number in range(count)
    ]


def slices(count: int, size: int = 1000) -> Iterator[tuple[int, int]]:
    """(number, size) of the parts that a large amount is handled in."""
    for number, start in enumerate(range(0, count, size)):
        yield number, min(size, count - start)
