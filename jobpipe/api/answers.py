"""An answer as plain data, so that the same functions serve the thin front and Quart."""

from collections.abc import Mapping
from typing import Any

import msgspec

from jobpipe.api.problems import Code, Problem

encode = msgspec.json.Encoder().encode

Headers = Mapping[str, str]


class Answer(msgspec.Struct, frozen=True):
    """A response: status, headers, body."""

    status: int
    body: bytes
    content_type: str = "application/json"
    headers: Headers = {}
    code: Code | None = None
    """of the problem, where it is one"""


def answer(body: Any, status: int = 200, headers: Headers | None = None) -> Answer:  # noqa: ANN401 - any struct
    """An answer in JSON."""
    return Answer(status, encode(body) + b"\n", headers=headers or {})


def problem_answer(problem: Problem) -> Answer:
    """A problem as an answer."""
    return Answer(
        problem.details.status,
        encode(problem.details) + b"\n",
        "application/problem+json",
        problem.headers,
        problem.details.code,
    )
