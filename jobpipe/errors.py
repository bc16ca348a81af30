"""What can be wrong. Expected results (a duplicate, a stale write, nothing to claim) are values, not errors."""


class JobpipeError(Exception):
    """The base of every error that jobpipe raises; its text is meant for the person who reads it."""


class SettingsError(JobpipeError):
    """The configuration is wrong; the text lists every fault, one a line."""


class HandlerError(JobpipeError):
    """A handler cannot be registered: its kind is taken, or its signature fits no job."""


class EnqueueError(JobpipeError):
    """A job that a handler enqueues is refused; the text says what is wrong with it. Nothing of the call was stored."""


class StoreError(JobpipeError):
    """The store cannot be used as it is: wrong file, newer version, no permission, in use elsewhere."""


class StoreUnavailable(StoreError):  # noqa: N818 - what is so, and will pass
    """The store cannot do this now (disk full, input/output error); nothing of the call was written."""


class TablesLocked(StoreUnavailable):
    """Another program has locked what every write needs. Nothing was written but the lease, where that was asked."""

    def __init__(self, message: str, *, lease_lost: bool) -> None:
        super().__init__(message)
        self.lease_lost = lease_lost


class DamagedRow(JobpipeError):  # noqa: N818 - the word that people see as the error's type
    """A row of the store holds what no jobpipe writes; the text says which part of it. Its job fails."""


class QueueFull(JobpipeError):  # noqa: N818 - what is so, and will pass
    """As many jobs wait as `MAX_BACKLOG` allows; nothing was stored."""


class Draining(JobpipeError):  # noqa: N818 - what is so, and will pass
    """The node has begun to shut down and takes no new job; nothing was stored."""
