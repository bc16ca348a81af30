"""The SQL of the docs works as it stands, in its order, on a database of its own."""

import re
import secrets
import sys
from collections.abc import Iterator
from typing import NamedTuple
from urllib.parse import urlsplit, urlunsplit

import psycopg
import pytest

from tests.docs.pages import DOCS, blocks, commands, read
from tests.docs.services import shell
from tests.store.server import ask, server_url

pytestmark = pytest.mark.slow

PAGE = DOCS / "scaling.md"
ROLES = ("jobpipe_node", "shop")
"""The roles that the page makes. They belong to the whole server, so here they get other names."""


class Database(NamedTuple):
    """A database of its own: its URL, and what to append to the roles of the page."""

    url: str
    mark: str

    def run(self, sql: str, role: str | None = None) -> list[tuple[object, ...]]:
        """Run statements as the owner of the database, or as a role of the page; the rows of the last one."""
        with psycopg.connect(self.url, autocommit=True) as connection:
            if role is not None:
                connection.execute(self.own(f"set role {role}").encode())
            cursor = connection.execute(self.own(sql).encode())
            while cursor.nextset():
                pass
            return cursor.fetchall() if cursor.description else []

    def own(self, sql: str) -> str:
        """The text with the roles of this run."""
        return re.sub(rf"\b({'|'.join(ROLES)})\b", rf"\1_{self.mark}", sql)


@pytest.fixture
def database() -> Iterator[Database]:
    mark = secrets.token_hex(4)
    ((may,),) = ask(
        "select rolsuper or rolcreatedb and rolcreaterole from pg_roles where rolname = current_user"
    )
    if not may:
        pytest.skip("the user of JOBPIPE_TEST_POSTGRES_URL may not make databases and roles")
    ask(f"create database docs_{mark}")
    made = Database(urlunsplit(urlsplit(server_url())._replace(path=f"/docs_{mark}")), mark)
    try:
        yield made
    finally:
        ask(f"drop database docs_{mark} with (force)" if _newer(13) else f"drop database docs_{mark}")
        for role in ROLES:
            ask(f"drop role if exists {role}_{mark}")


def _newer(version: int) -> bool:
    ((number,),) = ask("select current_setting('server_version_num')::int")
    return int(str(number)) >= version * 10_000


def migrate(database: Database) -> None:
    """Run the page's command that makes the tables."""
    (command,) = [
        each
        for block in blocks(read(PAGE), "sh")
        for each in commands(block.text)
        if "jobpipe migrate" in each
    ]
    assignment, program = command.split(" ", 1)
    assert assignment.startswith("STORE=")
    shell(f"{program.replace('jobpipe', f'{sys.executable} -m jobpipe')} --store '{database.url}'", DOCS)


def test_sql_of_the_page_works_in_its_order(database):
    migrate(database)
    least, *maintain, prepare, enqueue = [block.text for block in blocks(read(PAGE), "sql")]

    database.run(least)
    for each in maintain:
        if _newer(17):
            database.run(each)
    database.run(prepare)
    database.run(enqueue, role="shop")

    assert database.run("select id, kind, queue from jobpipe.jobs") == [
        ("order-17-mail", "email.send", "mail")
    ]
    assert database.run("select id from shop.orders") == [(17,)]
    assert database.run("select count(*) from jobpipe.live", role="jobpipe_node") == [(1,)]


def test_application_may_do_nothing_else(database):
    migrate(database)
    for block in blocks(read(PAGE), "sql")[:-1]:
        if "maintain" not in block.text:
            database.run(block.text)

    with pytest.raises(psycopg.errors.InsufficientPrivilege):
        database.run("select * from jobpipe.jobs", role="shop")
