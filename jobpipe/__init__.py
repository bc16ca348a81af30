"""jobpipe: a background-job service on Trio. These are the names for those who write handlers."""

from jobpipe.handlers.context import Context
from jobpipe.handlers.registry import handler
from jobpipe.handlers.verdicts import Fail, Retry, Snooze
from jobpipe.job import Backoff

__all__ = ["Backoff", "Context", "Fail", "Retry", "Snooze", "handler"]
