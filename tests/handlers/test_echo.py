"""The kind `echo`, the default."""

import msgspec
import pytest

from jobpipe.handlers.echo import echo
from jobpipe.handlers.registry import load
from jobpipe.job import DEFAULT_KIND, Status
from tests.engine.conftest import running


async def test_it_returns_its_payload() -> None:
    """And stays callable as the function that it is."""
    assert await echo({"a": [1]}) == {"a": [1]}


def test_it_is_the_default_kind() -> None:
    """A job that names none is echoed."""
    assert load([]).find(DEFAULT_KIND) is not None
    assert DEFAULT_KIND == "echo"


@pytest.mark.parametrize("payload", ['"data"', "null", "0", '{"ü":[1.5,true,{}]}', '""', "[]", "1e300"])
async def test_a_jobs_result_is_its_payload(autojump_clock, payload) -> None:
    """As JSON says it."""
    found = load([]).find("echo")
    assert found is not None
    async with running(handlers=[found]) as rig:
        await rig.enqueue("a", kind="echo", payload=payload.encode())
        job = await rig.ended("a")

    assert job.status is Status.DONE
    assert msgspec.json.decode(job.state.result or b"") == msgspec.json.decode(payload)
