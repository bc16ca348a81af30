"""One SQL for two databases: what a shared statement may say, and what each database reads.

`:name` is a value. In braces stands what the databases write differently: `{skip locked}` leaves out rows that
somebody else has locked, and locks the others; `{total COLUMN}` is the sum of a column as a whole number, whatever
damage is in it.
"""

import functools
import re
from typing import Literal

Database = Literal["sqlite", "postgres"]

_TOTAL = {
    "sqlite": r"cast(total(\1) as integer)",
    "postgres": r"least(greatest(coalesce(sum(\1), 0), -1e15), 1e15)::bigint",
}
_SKIP_LOCKED = {"sqlite": "", "postgres": "for update skip locked"}
_VALUE = {"sqlite": r":\1", "postgres": r"%(\1)s"}


@functools.cache
def translated(sql: str, database: Database) -> str:
    """A shared statement as one of the databases reads it."""
    sql = re.sub(r"(?<!:):(\w+)", _VALUE[database], sql)
    sql = re.sub(r"\{total (\w+)\}", _TOTAL[database], sql)
    return sql.replace("{skip locked}", _SKIP_LOCKED[database])
