"""jobpipe: a background-job service on Trio. These are the names for those who write handlers.

Each is imported when it is asked for, so that the command line, which needs none of them, starts quickly.
"""

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from jobpipe.errors import EnqueueError
    from jobpipe.handlers.context import Context
    from jobpipe.handlers.exceptions import Fail, Retry, Snooze
    from jobpipe.handlers.registry import handler
    from jobpipe.job import Backoff

__all__ = ["Backoff", "Context", "EnqueueError", "Fail", "Retry", "Snooze", "handler"]

_ROOMS = {
    "Backoff": "jobpipe.job",
    "Context": "jobpipe.handlers.context",
    "EnqueueError": "jobpipe.errors",
    "Fail": "jobpipe.handlers.exceptions",
    "Retry": "jobpipe.handlers.exceptions",
    "Snooze": "jobpipe.handlers.exceptions",
    "handler": "jobpipe.handlers.registry",
}


def __getattr__(name: str) -> Any:  # noqa: ANN401 - PEP 562: a name may be anything
    """Import a public name on first use."""
    if name not in _ROOMS:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(importlib.import_module(_ROOMS[name]), name)
