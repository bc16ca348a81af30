"""One SQL for two databases: what a shared statement may say, and what each database reads.

`:name` is a value. In braces stands what the databases write differently: `{lock}` locks the rows, `{share lock}` as a
foreign key does, beside other locks of this kind and updates; `{skip locked}` leaves out those that somebody else has
locked, and locks the others, `{skip updated}` as an update does, beside `{share lock}`; `{total COLUMN}` is the sum of
a column as a whole number, whatever damage is in it; `{each NAME}` are the texts of a value that is a JSON array,
`{among NAME}` says that a number is in one, `{rows NAME: COLUMN TYPE, ...}` are its objects as a table of that name;
`{shown}` has every job with its status, `{ended}` has those that have ended, and may have others; `{node of NAME}` is
the name of the node that claimed a job of `{shown}` last; `{failed}` has the jobs that are in an error group, with its
`where`, to be read by `fingerprint, finished_at, seq`; `{gathered COLUMN}` are the values of a column as a JSON array;
`{array COLUMN}` is an array of texts as a JSON array; `{held by NAME}` is how many jobs a node of `nodes` holds.
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
_LOCK = {"sqlite": "", "postgres": "for update"}
_SHARE_LOCK = {"sqlite": "", "postgres": "for key share"}
_SKIP_UPDATED = {"sqlite": "", "postgres": "for no key update skip locked"}
_EACH = {
    "sqlite": r"(select value from json_each(:\1))",
    "postgres": r"(select value from jsonb_array_elements_text(:\1::jsonb))",
}
_AMONG = {
    "sqlite": r"in (select value from json_each(:\1))",
    "postgres": r"= any (array(select value::bigint from jsonb_array_elements_text(:\1::jsonb)))",
}
_ROWS = {
    "sqlite": "(select {taken} from json_each(:{name})) as {name}",
    "postgres": "jsonb_to_recordset(:{name}::jsonb) as {name} ({columns})",
}
_SHOWN = {"sqlite": "jobs", "postgres": "shown"}
_ENDED = {"sqlite": "jobs", "postgres": "ended_jobs"}
_FAILED = {
    "sqlite": "jobs indexed by jobs_failed where fingerprint is not null",
    "postgres": "ended where fingerprint is not null",
}
_GATHERED = {"sqlite": r"json_group_array(\1)", "postgres": r"json_agg(\1)::text"}
_NODE_OF = {"sqlite": r"(select n.name from nodes n where n.node = \1.node)", "postgres": r"\1.node"}
_ARRAY = {"sqlite": r"\1", "postgres": r"array_to_json(\1)::text"}
_HELD_BY = {
    "sqlite": r"(select count(*) from jobs where jobs.held = 1 and jobs.node = \1.node)",
    "postgres": r"(select count(*) from live where live.node = \1.node)",
}
_VALUE = {"sqlite": r":\1", "postgres": r"%(\1)s"}


@functools.cache
def translated(sql: str, database: Database) -> str:
    """A shared statement as one of the databases reads it."""
    sql = re.sub(r"\{rows (\w+): ([^}]+)\}", lambda found: _rows(found[1], found[2], database), sql)
    sql = re.sub(r"\{each (\w+)\}", _EACH[database], sql)
    sql = re.sub(r"\{among (\w+)\}", _AMONG[database], sql)
    sql = re.sub(r"\{gathered ([^}]+)\}", _GATHERED[database], sql)
    sql = re.sub(r"\{array ([^}]+)\}", _ARRAY[database], sql)
    sql = re.sub(r"\{held by (\w+)\}", _HELD_BY[database], sql)
    sql = re.sub(r"(?<!:):(\w+)", _VALUE[database], sql)
    sql = re.sub(r"\{total (\w+)\}", _TOTAL[database], sql)
    sql = re.sub(r"\{node of (\w+)\}", _NODE_OF[database], sql)
    sql = sql.replace("{shown}", _SHOWN[database]).replace("{ended}", _ENDED[database])
    sql = sql.replace("{failed}", _FAILED[database])
    sql = sql.replace("{lock}", _LOCK[database]).replace("{share lock}", _SHARE_LOCK[database])
    sql = sql.replace("{skip updated}", _SKIP_UPDATED[database])
    return sql.replace("{skip locked}", _SKIP_LOCKED[database])


def _rows(name: str, columns: str, database: Database) -> str:
    taken = ", ".join(
        f"value ->> '{column.split()[0]}' as {column.split()[0]}" for column in columns.split(", ")
    )
    return _ROWS[database].format(name=name, columns=columns, taken=taken)
