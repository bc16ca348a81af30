"""The cancel scope that a worker's handlers run under, one after another."""

from types import TracebackType
from typing import Self

import trio


class ReusableScope:
    """Enter it for each attempt; close it, in the task that made it, after the last one.

    To open a scope costs more than everything else in a short attempt. So attempts share one until it has been
    cancelled or given a deadline; the attempt after that has a new one.
    """

    def __init__(self) -> None:
        self._task = trio.lowlevel.current_task()
        self._scope, self._is_open = trio.CancelScope(), False
        self._status: object = None
        self._spent = False

    def _open(self) -> None:
        self._scope = trio.CancelScope()
        self._scope.__enter__()
        self._status, self._spent, self._is_open = self._innermost(), False, True

    def _innermost(self) -> object:
        """What stands for the innermost scope that is open in the task."""
        return self._task._cancel_status  # noqa: SLF001 - the only way to see that a handler left a scope open

    def close(self) -> None:
        """Close the scope, between two attempts."""
        if self._is_open:
            self._scope.__exit__(None, None, None)

    def limit(self, deadline: float) -> None:
        """Cancel the attempt that runs at a time of Trio's clock."""
        self._scope.deadline, self._spent = deadline, True

    def cancel(self) -> None:
        """Cancel the attempt that runs."""
        self._spent = True
        self._scope.cancel()

    def __enter__(self) -> Self:
        """Begin an attempt."""
        if not self._is_open:
            self._open()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> bool:
        """End an attempt. Catches the `Cancelled` of its own scope.

        Raises `RuntimeError` when the handler left a scope of its own open: that must not reach the next attempt.
        """
        if not self._spent and self._task._cancel_status is self._status:  # noqa: SLF001 - see `_innermost`
            return False
        self._is_open = False
        return self._scope.__exit__(kind, error, trace)
