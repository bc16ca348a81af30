"""What a handler may raise to say how its attempt ended; what it returns is the result."""


class Retry(Exception):  # noqa: N818 - not an error: a handler's word
    """Try again after `after` seconds (None: by the job's backoff). Counts as an attempt."""

    def __init__(self, message: str = "the handler asked for a retry", *, after: float | None = None) -> None:
        super().__init__(message)
        self.after = after


class Snooze(Exception):  # noqa: N818 - not an error: a handler's word
    """Not now: run again in `seconds`. Does not count as an attempt."""

    def __init__(self, seconds: float, message: str = "the handler asked to wait") -> None:
        super().__init__(message)
        self.seconds = seconds


class Fail(Exception):  # noqa: N818 - not an error: a handler's word
    """It will never work: the job has failed, whatever retries are left."""
