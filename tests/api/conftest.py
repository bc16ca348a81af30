"""The real application around a running node, called in this process; and served on a socket where bytes matter."""

import pytest
import trio

from jobpipe.store.sqlite import open_sqlite
from tests.api.client import open_door


@pytest.fixture
async def door():
    """A door with the memory store behind it."""
    async with open_door() as opened:
        yield opened


# Both are SQLite: over a file the tests are slow ones.
@pytest.fixture(params=["memory", pytest.param("sqlite", marks=pytest.mark.slow)])
async def either_door(request, tmp_path):
    """A door, once with each store behind it."""
    if request.param == "memory":
        async with open_door() as opened:
            yield opened
    else:
        async with open_sqlite(tmp_path / "jobs.db", sync="normal") as store, open_door(store) as opened:
            yield opened


@pytest.fixture
def parts():
    """Makes a `receive` that hands out a body in parts; one that is not `whole` ends with the client gone."""

    def made(*chunks, whole=True):
        messages = [{"type": "http.request", "body": chunk, "more_body": True} for chunk in chunks]
        messages.append({"type": "http.request"} if whole else {"type": "http.disconnect"})
        left = iter(messages)

        async def receive():
            await trio.lowlevel.checkpoint()
            return next(left, None) or await trio.sleep_forever()

        return receive

    return made
