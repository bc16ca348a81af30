"""The kind `echo`, the default: the result is the payload."""

from typing import Any

from jobpipe.handlers.registry import handler


@handler("echo")
async def echo(payload: Any) -> Any:  # noqa: ANN401 - any JSON
    """Return the payload."""
    return payload
