"""What the setting STORE says of a PostgreSQL database."""

import re
from typing import Literal
from urllib.parse import parse_qsl, urlencode, urlsplit, urlunsplit

import msgspec

from jobpipe.errors import StoreError

Leases = Literal["database", "caller"]

SCHEMA = "jobpipe"


class Address(msgspec.Struct, frozen=True):
    """Where the tables are and how they are reached. `conninfo` may hold a password: only `shown` is for people."""

    conninfo: str
    shown: str
    schema: str = SCHEMA
    prepare: bool = True
    """whether statements are prepared; a pooler that can't follow them needs it off"""
    listen: bool = True
    """whether to listen for notifications; through a pooler that swaps connections none arrive"""
    chosen: frozenset[str] = frozenset()
    """which of these two the setting names; where it does not, a pooler decides (`behind_a_pooler`)"""
    pooled: bool = False
    """whether a pooler is in front of the database"""

    @property
    def channel(self) -> str:
        """On which nodes are told of changes; as the SQL function `channel` has it."""
        return f"jobpipe {self.schema}"

    def behind_a_pooler(self) -> "Address":
        """The same where there is a pooler, which may swap connections: what it might lose is off unless asked for."""
        return msgspec.structs.replace(
            self,
            prepare=self.prepare and "prepare" in self.chosen,
            listen=self.listen and "listen" in self.chosen,
            pooled=True,
        )


def read_address(url: str) -> Address:
    """Read `postgresql://...`: what libpq knows, and `schema=`, `prepare=on|off`, `listen=on|off` of our own.

    Raises `StoreError` when a part of our own is wrong.
    """
    parts = urlsplit(url)
    query = parse_qsl(parts.query, keep_blank_values=True)
    ours = {name: value for name, value in query if name in {"schema", "prepare", "listen"}}
    schema = ours.get("schema", SCHEMA)
    if not re.fullmatch(r"[A-Za-z_][A-Za-z0-9_]{0,49}", schema):
        raise StoreError(
            f"STORE: schema={schema!r} is not a schema name: use letters, digits and _, at most 50"
        )
    rest = [(name, value) for name, value in query if name not in ours]
    conninfo = urlunsplit(parts._replace(scheme="postgresql", query=urlencode(rest)))
    return Address(
        # urlunsplit leaves out the slashes before an empty host, which libpq wants to see.
        conninfo=re.sub(r"^postgresql:(?=/(?!/)|$|\?)", "postgresql://", conninfo),
        shown=_shown(url),
        schema=schema,
        prepare=_switch("prepare", ours),
        listen=_switch("listen", ours),
        chosen=frozenset(ours) & {"prepare", "listen"},
    )


def _switch(name: str, given: dict[str, str]) -> bool:
    value = given.get(name, "on")
    if value not in {"on", "off"}:
        raise StoreError(f"STORE: {name}={value!r} is not allowed: use on or off")
    return value == "on"


def _shown(url: str) -> str:
    """The address without what may be secret: user, host, database and schema are left."""
    parts = urlsplit(url)
    user, _, place = parts.netloc.rpartition("@")
    name = user.split(":")[0]
    open_ones = {"schema", "service", "host", "port", "dbname", "user", "prepare", "listen", "sslmode"}
    query = [(key, value) for key, value in parse_qsl(parts.query) if key in open_ones]
    shown = urlunsplit(
        ("postgresql", f"{name}@{place}" if name else place, parts.path, urlencode(query, safe="/"), "")
    )
    return re.sub(r"^postgresql:(?=/(?!/)|$|\?)", "postgresql://", shown)
