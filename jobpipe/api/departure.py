"""What a client that hangs up means by it: from the application to the connection that notices."""

from collections.abc import Mapping
from typing import Any

import msgspec

DEPARTURE = "jobpipe.departure"
"""Where the `state` of a request's scope has its `Departure`."""


class Departure(msgspec.Struct):
    """What is to happen when the client of a request hangs up before it is answered."""

    job_id: str | None = None
    """the job to cancel"""
    probe: bytes | None = None
    """for an answer of any length, which it has begun to get: what it is sent, to find out whether it is still there"""


def departure_of(scope: Mapping[str, Any]) -> Departure:
    """The `Departure` of a request; where the front does not stand before the application, one that means nothing."""
    departure: Departure = scope.get("state", {}).get(DEPARTURE, Departure())
    return departure
