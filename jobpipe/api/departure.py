"""What a client that hangs up means by it: from the application to the connection that notices."""

import msgspec

DEPARTURE = "jobpipe.departure"
"""Where the `state` of a request's scope has its `Departure`."""


class Departure(msgspec.Struct):
    """What is to happen when the client of a request hangs up before it is answered."""

    job_id: str | None = None
    """the job to cancel"""
