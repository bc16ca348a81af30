"""Tasks that run as long as a context is open, in the sight of nobody."""

from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager

import trio


@asynccontextmanager
async def beside(*tasks: Callable[[], Awaitable[object]]) -> AsyncIterator[None]:
    """Run tasks beside the body; they are cancelled when it is over.

    What the body raises comes out as itself, not in a group of one as from a nursery: whoever opens a store does not
    know that it has tasks of its own. Where a task fails too, there is a group.
    """
    raised: BaseException | None = None
    alone = False
    try:
        async with trio.open_nursery() as nursery:
            for task in tasks:
                nursery.start_soon(task)
            try:
                yield
            except BaseException as error:
                raised = error
                raise
            finally:
                nursery.cancel_scope.cancel()
    except BaseExceptionGroup as group:
        alone = list(group.exceptions) == [raised]
        if not alone:
            raise
    if alone and raised is not None:
        raise raised  # out here, so that the group does not become its context
