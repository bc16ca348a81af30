"""Answers of a stream that its client has not read yet: in memory, then in a file, and then the stream waits."""

import tempfile
from collections.abc import Awaitable, Callable, Mapping
from typing import Any

import trio

Send = Callable[[Mapping[str, Any]], Awaitable[None]]

SPOOL = 1 << 20
"""Bytes of a stream's answers that are kept in memory; what is more goes to a file."""

LONGEST = 1 << 26
"""Bytes of a stream's answers that are kept at most; beyond them the stream is read no further until some are sent."""

FILES = 16
"""How many streams may have a file at once; of the others, `SPOOL` bytes are kept."""

PART = 1 << 16
"""Bytes that are sent at once."""


class Files:
    """How many streams have a file, so that clients that do not read leave file descriptors to others."""

    def __init__(self, most: int = FILES) -> None:
        self._free = most

    def take(self) -> bool:
        """Whether one more may have a file; it is to `give` it back."""
        if not self._free:
            return False
        self._free -= 1
        return True

    def give(self) -> None:
        """One has closed its file."""
        self._free += 1


class Spool:
    """What was answered and is not sent yet: in memory while it is little, else in a temporary file."""

    def __init__(self, files: Files, longest: int = LONGEST) -> None:
        self._files, self._longest = files, longest
        self._file = tempfile.SpooledTemporaryFile()  # noqa: SIM115 - closed by `close`
        self._on_disk = False
        self._written = self._sent = 0
        self._ended = False
        self._more = self._less = trio.Event()

    @property
    def size(self) -> int:
        """Bytes kept, in memory or in the file."""
        return self._written

    async def write(self, answers: bytes) -> None:
        """Append; waits for the client only where all the room there is for what it has not read is taken."""
        while not self._fits(len(answers)):
            self._less = trio.Event()
            await self._less.wait()
        self._file.seek(self._written)
        self._file.write(answers)
        self._written += len(answers)
        self._more.set()
        await trio.lowlevel.checkpoint()

    def end(self) -> None:
        """Nothing more will come."""
        self._ended = True
        self._more.set()

    async def pour(self, send: Send) -> None:
        """Send what is there as the client takes it, until the end."""
        while not (self._ended and self._sent == self._written):
            await self._more.wait()
            self._more = trio.Event()
            while self._sent < self._written:
                await send({"type": "http.response.body", "body": self._next(), "more_body": True})
            self._empty()
        await send({"type": "http.response.body", "body": b""})

    def close(self) -> None:
        """Forget what is kept, and give the file back."""
        self._file.close()
        if self._on_disk:
            self._on_disk = False
            self._files.give()

    def _fits(self, size: int) -> bool:
        if not self._written or self._written + size <= SPOOL:
            return True
        return self._written + size <= self._longest and self._to_disk()

    def _to_disk(self) -> bool:
        """Whether there is a file, by now. Where none can be opened, the client has to read first."""
        if self._on_disk:
            return True
        if not self._files.take():
            return False
        try:
            self._file.rollover()
        except OSError:
            self._files.give()
            return False
        self._on_disk = True
        return True

    def _next(self) -> bytes:
        self._file.seek(self._sent)
        part = self._file.read(min(PART, self._written - self._sent))
        self._sent += len(part)
        return part

    def _empty(self) -> None:
        """Begin anew, since all is sent: who reads along costs little, however long the stream."""
        self._file.seek(0)
        self._file.truncate()
        self._written = self._sent = 0
        self._less.set()
