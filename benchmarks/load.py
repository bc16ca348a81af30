"""The load: N connections, each asks again as soon as it has its answer. Leaner than any server it measures.

`python -m benchmarks.load PORT CONNECTIONS SECONDS PREFIX QUEUE` posts to /enqueue and prints what it saw as JSON.
"""

import gc
import itertools
import json
import re
import selectors
import socket
import sys
import time
from collections import Counter
from collections.abc import Iterator
from typing import Any

LAST_ANSWERS = 20.0
"""Seconds that the last answers may take."""

_LENGTH = re.compile(rb"\r\ncontent-length: *(\d+)", re.IGNORECASE)
_CLOSE = re.compile(rb"\r\nconnection: *close", re.IGNORECASE)


def requests(prefix: str, queue: str) -> Iterator[bytes]:
    """One new job a request."""
    head = b"POST /enqueue HTTP/1.1\r\nHost: 127.0.0.1\r\nContent-Type: application/json\r\nContent-Length: %d\r\n\r\n"
    named = b"" if queue == "default" else b',"queue":"%s"' % queue.encode()
    for number in itertools.count():
        body = b'{"id":"%s-%d","payload":"data","max_retries":3%s}' % (prefix.encode(), number, named)
        yield head % len(body) + body


class Client:
    """One connection: asks, and gathers the answer. Opened again when the server closes it."""

    def __init__(self, port: int, selector: selectors.BaseSelector) -> None:
        self._port, self._selector = port, selector
        self._request = self._answer = b""
        self._open()

    def _open(self) -> None:
        self._socket = socket.create_connection(("127.0.0.1", self._port), timeout=LAST_ANSWERS)
        self._socket.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        self._selector.register(self._socket, selectors.EVENT_READ, self)

    def close(self) -> None:
        """Hang up."""
        self._selector.unregister(self._socket)
        self._socket.close()

    def ask(self, request: bytes) -> None:
        """Send a request."""
        self._request, self._answer = request, b""
        self.asked_at = time.perf_counter()
        self._socket.sendall(request)

    def read(self) -> bytes | None:
        """The status of the answer, once all of it is there."""
        try:
            part = self._socket.recv(65_536)
        except ConnectionResetError:
            part = b""
        if not part:  # closed before it answered: the id makes it safe to ask again
            self.close()
            self._open()
            self._answer = b""
            self._socket.sendall(self._request)
            return None
        self._answer += part
        end = self._answer.find(b"\r\n\r\n")
        length = _LENGTH.search(self._answer) if end >= 0 else None
        if length is None or len(self._answer) < end + 4 + int(length[1]):
            return None
        if _CLOSE.search(self._answer, 0, end + 2):
            self.close()
            self._open()
        return self._answer[9:12]


def load(port: int, connections: int, seconds: float, prefix: str, queue: str) -> dict[str, Any]:
    """Ask for `seconds`, wait for the last answers, and tell what came."""
    seen: Counter[str] = Counter()
    waits: list[float] = []
    with selectors.DefaultSelector() as selector:
        clients = [Client(port, selector) for _ in range(connections)]
        work = requests(prefix, queue)
        began = now = time.perf_counter()
        until, asking = began + seconds, len(clients)
        for client in clients:
            client.ask(next(work))
        while asking and now < until + LAST_ANSWERS:
            for key, _ in selector.select(LAST_ANSWERS):
                client = key.data
                status = client.read()
                now = time.perf_counter()
                if status is None:
                    continue
                seen[status.decode()] += 1
                waits.append(now - client.asked_at)
                if now < until:
                    client.ask(next(work))
                else:
                    asking -= 1
        for client in clients:
            client.close()
    waits.sort()
    return {
        "began": began,
        "seconds": now - began,
        "answers": seen,
        "p50": waits[len(waits) // 2],
        "p99": waits[len(waits) * 99 // 100],
    }


if __name__ == "__main__":
    gc.disable()  # bounded: it runs for seconds
    port, connections, seconds, prefix, queue = sys.argv[1:]
    print(json.dumps(load(int(port), int(connections), float(seconds), prefix, queue)))
