"""What every test has."""

from collections.abc import Iterator

import apsw
import pytest
from hypothesis import HealthCheck, settings

from jobpipe.store import memory

# No test goes by how fast the machine is: not in what it asserts, nor in how long its examples take.
settings.register_profile("jobpipe", deadline=None, suppress_health_check=[HealthCheck.too_slow])
settings.load_profile("jobpipe")


@pytest.fixture(autouse=True, scope="session")
def tables_by_copy() -> Iterator[None]:
    """A store without a file has its tables from a copy: to make them takes half the time of a short test."""
    template = apsw.Connection(":memory:")
    memory.make_tables(template)

    def copied(db: apsw.Connection) -> None:
        with db.backup("main", template, "main") as backup:
            backup.step(-1)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(memory, "make_tables", copied)
        yield
    template.close()
