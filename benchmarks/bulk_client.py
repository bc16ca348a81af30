"""Sends NDJSON and reads the answers along: `python -m benchmarks.bulk_client PORT PREFIX COUNT`."""

import json
import socket
import sys
import threading
import time

from benchmarks.work import lines

HEAD = (
    b"POST /enqueue/bulk HTTP/1.1\r\nHost: 127.0.0.1\r\n"
    b"Content-Type: application/x-ndjson\r\nContent-Length: %d\r\n\r\n"
)


def send(port: int, body: bytes) -> tuple[float, bytes]:
    """Seconds from the first byte sent to the last one answered, and what was answered."""
    parts: list[bytes] = []
    with socket.create_connection(("127.0.0.1", port), timeout=60) as connection:
        sender = threading.Thread(target=connection.sendall, args=[HEAD % len(body) + body], daemon=True)
        began = time.perf_counter()
        sender.start()
        tail = b""
        while not tail.endswith(b"\r\n0\r\n\r\n"):
            part = connection.recv(1 << 18)
            assert part, "the service hung up"
            parts.append(part)
            tail = (tail + part)[-7:]
        took = time.perf_counter() - began
        sender.join()
    return took, b"".join(parts)


if __name__ == "__main__":
    port, prefix, count = int(sys.argv[1]), sys.argv[2], int(sys.argv[3])
    took, answered = send(port, lines(prefix, count))
    assert answered.startswith(b"HTTP/1.1 200 "), answered[:200]
    print(json.dumps({"seconds": took, "stored": answered.count(b'"id":')}))
