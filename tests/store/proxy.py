"""A way to the PostgreSQL server that can be broken: cut, silent, or cut just when a commit is under way."""

import re
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, suppress
from pathlib import Path
from typing import Literal
from urllib.parse import quote

import trio
from psycopg.conninfo import conninfo_to_dict

from tests.store.server import server_url

GREETING = re.compile(rb"(K\0\0\0\x0c)....", re.DOTALL)
"""The server's message BackendKeyData: what it is, how long, and the number of its process."""

Mode = Literal["open", "silent", "refuse", "lose the commit", "lose its answer"]


class Proxy:
    """Passes bytes on, as `mode` says; one that has become silent stays so for its connections."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.mode: Mode = "open"
        self.lost = trio.Event()
        """set when a commit or its answer was lost"""
        self.trips = 0
        """how often the server answered what it was sent before: round trips"""
        self.pooler = False
        """whether connections are greeted with a made-up number of the server's process, as poolers do"""
        self._answered = True
        self._scopes: set[trio.CancelScope] = set()

    def url(self, **more: str) -> str:
        """The address of the database through this."""
        server = conninfo_to_dict(server_url())
        password = f":{quote(str(server['password']))}" if server.get("password") else ""
        query = "&".join(f"{name}={quote(value)}" for name, value in more.items())
        return f"postgresql://{server['user']}{password}@/{server['dbname']}?host={self.folder}&{query}"

    def cut(self) -> None:
        """End every connection."""
        for scope in self._scopes:
            scope.cancel()

    async def serve(self, client: trio.SocketStream) -> None:
        """Connect one client to the server."""
        with trio.CancelScope() as scope:
            self._scopes.add(scope)
            try:
                if self.mode != "refuse":
                    async with client, await _open_server() as server, trio.open_nursery() as nursery:
                        nursery.start_soon(self._forth, client, server, scope)
                        nursery.start_soon(self._back, server, client, scope)
            finally:
                self._scopes.discard(scope)
        await client.aclose()

    async def _forth(
        self, client: trio.SocketStream, server: trio.SocketStream, scope: trio.CancelScope
    ) -> None:
        try:
            async for data in client:
                if self.mode == "silent":
                    await trio.sleep_forever()
                if self.mode == "lose the commit" and b"COMMIT\0" in data:
                    self._lose(scope)
                    return
                self._answered = False
                with suppress(trio.BrokenResourceError):  # the server has gone
                    await server.send_all(data)
        except trio.BrokenResourceError:  # the client has gone, without a word
            pass
        scope.cancel()

    async def _back(
        self, server: trio.SocketStream, client: trio.SocketStream, scope: trio.CancelScope
    ) -> None:
        try:
            async for data in server:
                if self.mode == "silent":
                    await trio.sleep_forever()
                if self.mode == "lose its answer" and b"COMMIT\0" in data:  # it is done
                    self._lose(scope)
                    return
                self.trips, self._answered = self.trips + (not self._answered), True
                await client.send_all(GREETING.sub(rb"\g<1>\0\0\0\0", data) if self.pooler else data)
        except trio.BrokenResourceError:  # the client has gone
            pass
        scope.cancel()

    def _lose(self, scope: trio.CancelScope) -> None:
        """Everything goes on as usual, but not for this connection."""
        self.mode = "open"
        self.lost.set()
        scope.cancel()


async def _open_server() -> trio.SocketStream:
    server = conninfo_to_dict(server_url())
    host, port = str(server.get("host") or "localhost"), int(str(server.get("port") or 5432))
    if host.startswith("/"):
        return await trio.open_unix_socket(f"{host}/.s.PGSQL.{port}")
    return await trio.open_tcp_stream(host, port)


@asynccontextmanager
async def open_proxy(folder: Path) -> AsyncIterator[Proxy]:
    """Listen in a folder, as libpq looks for a server there."""
    proxy = Proxy(folder)
    listening = trio.socket.socket(trio.socket.AF_UNIX)
    await listening.bind(str(folder / ".s.PGSQL.5432"))
    listening.listen(100)
    async with trio.open_nursery() as nursery:
        await nursery.start(trio.serve_listeners, proxy.serve, [trio.SocketListener(listening)])
        yield proxy
        nursery.cancel_scope.cancel()
