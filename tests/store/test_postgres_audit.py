"""The cost of the audit on PostgreSQL: of a hundred thousand acts it reads those that it shows."""

from collections.abc import Iterator
from typing import Any

import pytest

from jobpipe.store.base import STEP, AuditFilter
from jobpipe.store.verbs import audit
from tests.store.test_contract import NOW
from tests.store.test_postgres_plans import Counting, Verbs, filled

pytestmark = pytest.mark.slow

# Of a few people; ten are on one job.
FILL = (
    (
        "insert into {0}.audit (at, who, node, act, what, name, changes) "
        f"select {NOW} + n, 'w' || n % 3, 'n', case when n % 1000 = 0 then 'edit' else 'cancel' end, 'job', "
        "'j' || n % 10000, '{{}}' from generate_series(1, 100000) n"
    ),
    "vacuum (analyze) {0}.audit",
)


@pytest.fixture(scope="module")
def connection() -> Iterator[Counting]:
    """A connection to a database with a hundred thousand acts."""
    with filled(FILL) as opened:
        yield opened


@pytest.fixture
def verbs(connection: Counting) -> Verbs:
    return Verbs(connection)


@pytest.mark.parametrize(
    ("where", "acts", "most"),
    [
        ({}, 50, 60),
        ({"who": "w1"}, 50, 60),
        ({"act": "edit"}, 50, 60),
        ({"what": "job"}, 50, 60),
        ({"what": "job", "name": "j7"}, 10, 20),
        ({"what": "key", "act": "edit"}, 0, audit.LOOKED + 20),
        ({"before": NOW + 50_000.0, "after": NOW + 49_990.0}, 10, 20),
    ],
    ids=str,
)
async def test_the_audit_reads_what_it_shows(
    connection: Counting, verbs: Verbs, where: dict[str, Any], acts: int, most: int
) -> None:
    """Of a hundred thousand acts; with several filters at the most so many as it looks at."""
    page = await verbs.audit(AuditFilter(**where), 50)

    assert len(page.acts) == acts
    assert (connection.whole, connection.by_index <= most) == (0, True)


async def test_what_the_audit_deletes_is_a_step(connection: Counting, verbs: Verbs) -> None:
    deleted = await verbs.forget_audit(NOW + 5000)

    assert deleted == STEP
    assert (connection.whole, connection.by_index <= 3 * STEP) == (0, True)
