"""Damage to rows of a store, as a bad disk, a stray program or another version of jobpipe may do it."""

import random
from collections.abc import Sequence
from typing import Any, Protocol

import apsw
import psycopg

BIG = 2**63 - 1
DEEP = b"[" * 5000 + b"]" * 5000
TIMES: Sequence[Any] = (
    float("inf"),
    -float("inf"),
    1e300,
    -1e300,
    9_467_085_600_000.0,
    -1.0,
    0.0,
    -62_135_596_801.0,
)
TEXTS: Sequence[Any] = (
    "",
    "nonsense",
    "é\u202e\x07",
    "x" * 3000,
    "done",
    "queued",
    "running",
    "DROP TABLE",
    ".",
)
BYTES: Sequence[Any] = (
    b"",
    b"\xff\xfe",
    b"{",
    b"null",
    b"[]",
    b'"\xff"',
    b"1e999",
    b"NaN",
    DEEP,
    b'{"a":"\\ud800"}',
    b"0" * 50_000,
)
OPTIONS: Sequence[Any] = (
    *BYTES,
    b'{"timeout":"soon"}',
    b'{"timeout":-5}',
    b'{"backoff":{"base":1e308,"factor":100}}',
    b'{"backoff":{"newer":1}}',
    b'{"newer":{"nested":[1,2]}}',
    b'{"tags":"a"}',
    b'{"tags":[1]}',
    b'{"on_crash":"explode"}',
    b'{"delay":"x","run_at":[]}',
)
ERRORS: Sequence[Any] = (
    *BYTES,
    b'{"type":1,"message":2}',
    b'{"message":"half"}',
    b'{"type":"E","message":"\\u0000"}',
)
NUMBERS: Sequence[Any] = (-1, 0, 1, 7, 2**31 - 1, -(2**31), BIG, -BIG)

JOB = {
    "kind": TEXTS,
    "queue": TEXTS,
    "status": (*TEXTS, "cancelling", "failed", "expired", None),
    "priority": NUMBERS,
    "run_at": TIMES,
    "attempt": NUMBERS,
    "max_retries": NUMBERS,
    "claim": NUMBERS,
    "node": (None, *NUMBERS),
    "held": NUMBERS,
    "rescued": NUMBERS,
    "created_at": TIMES,
    "started_at": (None, *TIMES),
    "finished_at": (None, *TIMES),
    "expires_at": (None, *TIMES),
    "size": NUMBERS,
    "options": (None, *OPTIONS),
    "payload": BYTES,
    "result": (None, *BYTES),
    "error": (None, *ERRORS),
    "key": (None, *TEXTS),
}
ASKED = frozenset(
    ("kind", "queue", "priority", "run_at", "max_retries", "created_at", "expires_at", "options", "payload")
)
"""Of these, the columns that say what was asked: on PostgreSQL they are in `jobs`."""

ATTEMPT = {
    "claim": NUMBERS,
    "number": NUMBERS,
    "node": (None, *NUMBERS),
    "started_at": (None, *TIMES),
    "finished_at": TIMES,
    "outcome": TEXTS,
    "error": (None, *ERRORS),
}
PROGRESS = {
    "claim": NUMBERS,
    "at": TIMES,
    "fraction": (*TIMES, 0.5),
    "message": TEXTS,
}
LINE = {
    "n": NUMBERS,
    "claim": NUMBERS,
    "number": NUMBERS,
    "attempt": NUMBERS,
    "at": TIMES,
    "level": TEXTS,
    "text": TEXTS,
    "fields": (None, *TEXTS, "{", '{"a":1e999}', "[]", "0" * 50_000),
    "total": NUMBERS,
}
NODE = {"name": TEXTS, "lease_until": (None, *TIMES)}
COUNT = {"state": TEXTS, "jobs": NUMBERS, "size": (-1, 0, 7, BIG, -BIG)}
"""Of the sizes none that could be true and is beyond what is kept: nobody can tell such a one from a full store."""
QUEUE = {"name": TEXTS, "reason": (None, *TEXTS), "paused_until": (None, *TIMES), "has_settings": NUMBERS}
QUEUE |= {
    "turn": TIMES,
    "tat": (None, *TIMES),
    "gated": (0, 1, True, False),
    "lining_up": (0, 1, True, False),
}
"""Of its settings none that could be true and has jobs refused or deleted."""
LANE = {
    "queue": TEXTS,
    "key": TEXTS,
    "turn": TIMES,
    "state": (-1, 0, 1, 2, 3, 5, 77, BIG),
    "until": (None, *TIMES),
    "tat": (None, *TIMES),
    "weight": NUMBERS,
}
"""Of its states all but that it is paused."""
KEPT = {"queue": TEXTS, "finished_at": TIMES, "due": TIMES}
UNIQUE = {
    "seq": NUMBERS,
    "id": TEXTS,
    "claim": (None, *NUMBERS),
    "since": TIMES,
    "until": (None, *TIMES),
}
SWEEP = {"finished_at": TIMES, "seq": NUMBERS, "begun_at": TIMES}
OTHERS = (
    ("attempts", ATTEMPT),
    ("nodes", NODE),
    ("counts", COUNT),
    ("progress", PROGRESS),
    ("logs", LINE),
    ("queues", QUEUE),
    ("lanes", LANE),
    ("kept", KEPT),
    ("sweeps", SWEEP),
    ("uniques", UNIQUE),
)
RAW_TEXT = b"\xff\xe9 latin"
"""Text that is not UTF-8, as SQLite takes it without a word."""


class Damager(Protocol):
    """Writes damage into a store, with its checks turned off."""

    def harm_job(self, job_id: str, chance: random.Random) -> str | None:
        """Damage one column of a job; says what was done, or None where the store refused even that."""

    def harm_others(self, chance: random.Random) -> str | None:
        """Damage an attempt, a node, a count, a progress, a log line or a tag."""


class SqliteDamager:
    """Over a connection of the store's own or to its file."""

    def __init__(self, db: apsw.Connection) -> None:
        self.db = db
        self.db.execute("pragma ignore_check_constraints = on")

    def harm_job(self, job_id: str, chance: random.Random) -> str | None:
        column = chance.choice(sorted(JOB))
        value = chance.choice(JOB[column])
        if column in ("kind", "queue") and chance.random() < 0.3:
            return self._write(f"update jobs set {column} = cast(? as text) where id = ?", RAW_TEXT, job_id)
        return self._write(f"update jobs set {column} = ? where id = ?", value, job_id)

    def harm_others(self, chance: random.Random) -> str | None:
        table, columns = chance.choice(OTHERS)
        column = chance.choice(sorted(columns))
        where = "name = 'dead'" if table == "nodes" else "true"
        if table == "attempts" and chance.random() < 0.2:
            return self._write("insert into tags (tag, seq) values (cast(? as text), ?)", RAW_TEXT, 1)
        return self._write(
            f"update or ignore {table} set {column} = ? where {where} and abs(random()) % 3 = 0",
            chance.choice(columns[column]),
        )

    def _write(self, sql: str, *values: Any) -> str | None:
        try:
            self.db.execute(sql, values)
        except (apsw.Error, OverflowError):  # of the wrong type, null where the table takes none, not unique
            return None
        return f"{sql} {values!r}"[:200]


class PostgresDamager:
    """Over a connection of its own; the checks of the tables are dropped."""

    def __init__(self, url: str, schema: str) -> None:
        self.db = psycopg.connect(url, autocommit=True, options=f"-c search_path={schema}")
        checks = self.db.execute(
            "select conrelid::regclass::text, conname from pg_constraint "
            "where contype = 'c' and connamespace = current_schema()::regnamespace and conrelid <> 0"
        ).fetchall()
        domains = self.db.execute(
            "select contypid::regtype::text, conname from pg_constraint "
            "where connamespace = current_schema()::regnamespace and contypid <> 0"
        ).fetchall()
        for domain, name in domains:
            self.db.execute(f'alter domain {domain} drop constraint "{name}"'.encode())
        for table, name in checks:
            self.db.execute(f'alter table {table} drop constraint "{name}"'.encode())

    def harm_job(self, job_id: str, chance: random.Random) -> str | None:
        column = chance.choice(sorted({*JOB, "watched", "orphan", "ghost"}))
        if column == "orphan":
            return self._write("delete from jobs where id = %s", job_id)
        if column == "ghost":
            table = chance.choice(["live", "live", "ended"])
            return self._write(
                f"delete from {table} where seq = (select seq from jobs where id = %s)", job_id
            )
        if column in ("held", "watched"):
            return self._write(
                "update live set watched = true, token = -1 where seq = (select seq from jobs where id = %s)",
                job_id,
            )
        value = chance.choice([*JOB[column], float("nan")] if JOB[column] is TIMES else JOB[column])
        alive = {
            "key",
            "queue",
            "status",
            "priority",
            "run_at",
            "attempt",
            "claim",
            "node",
            "rescued",
            "started_at",
        }
        if column in {*alive, "expires_at", "error"} and chance.random() < 0.7:
            return self._write(
                f"update live set {column} = %s where seq = (select seq from jobs where id = %s)",
                value,
                job_id,
            )
        ended = {*alive, "kind", "created_at", "finished_at", "size", "result", "error"}
        if column in ended and (column not in ASKED or chance.random() < 0.5):
            return self._write(
                f"update ended set {column} = %s where seq = (select seq from jobs where id = %s)",
                value,
                job_id,
            )
        return self._write(f"update jobs set {column} = %s where id = %s", value, job_id)

    def harm_others(self, chance: random.Random) -> str | None:
        table, columns = chance.choice(OTHERS)
        column = chance.choice(sorted(columns))
        where = "name = 'dead'" if table == "nodes" else "true"
        if table == "attempts" and chance.random() < 0.2:
            return self._write("insert into tags (tag, seq) values (%s, 1) on conflict do nothing", RAW_TEXT)
        return self._write(
            f"update {table} set {column} = %s where {where} and random() < 0.3",
            chance.choice(columns[column]),
        )

    def _write(self, sql: str, *values: Any) -> str | None:
        try:
            done = self.db.execute(sql.encode(), values).rowcount
        except psycopg.Error:
            return None
        return f"{sql} {values!r}"[:200] if done else None
