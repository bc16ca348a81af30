"""Payloads, results, tracebacks and logs as text that is made here, so that a browser parses none of it."""

import re
from collections.abc import Iterator, Sequence
from typing import Literal

import msgspec

from jobpipe.dashboard.words import size

SHOWN = 16 << 10
"""The most characters of a payload or a result that a page shows."""

TRACEBACK = 64 << 10
"""The most characters of a traceback that a page shows: its end, where the error is."""

LIBRARY = re.compile(
    r'File "[^"]*(?:site-packages|/lib/python3|[\\/]jobpipe[\\/](?:engine|handlers|store)[\\/]|<frozen )'
)
"""Frames that are not the user's own."""

_TOKEN = re.compile(
    r'(?P<key>"(?:[^"\\]|\\.)*")(?=\s*:)|(?P<string>"(?:[^"\\]|\\.)*"?)|(?P<number>-?\d[\d.eE+-]*)|'
    r'(?P<word>true|false|null)|(?P<rest>[^"\d\-tfn]+|.)',
    re.DOTALL,
)

Look = Literal["", "k", "str", "n"]
_LOOKS: dict[str | None, Look] = {"key": "k", "string": "str", "number": "n", "word": "n"}


class Token(msgspec.Struct, frozen=True):
    """A part of a JSON text, and how it looks."""

    text: str
    look: Look


class Text(msgspec.Struct, frozen=True):
    """JSON as it is shown, and what is left out of it."""

    tokens: Sequence[Token]
    plain: str
    """the same as one text, to be copied or edited; empty where it is cut"""
    rest: str
    """how much there is in all, where it is cut"""


class Frames(msgspec.Struct, frozen=True):
    """Lines of a traceback; those of libraries are folded away."""

    text: str
    folded: int
    """how many frames; 0: these are shown"""


def json_text(stored: bytes) -> Text:
    """JSON made readable, numbers with the digits that were sent. What is no JSON is shown as it is."""
    try:
        written = msgspec.json.format(stored, indent=2).decode()
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError):
        written = stored.decode("utf-8", "replace")
    cut = len(written) > SHOWN
    shown = written[:SHOWN]
    return Text(_tokens(shown), "" if cut else shown, size(len(stored)) if cut else "")


def _tokens(text: str) -> Sequence[Token]:
    """A JSON text in parts; neighbours that look the same are one."""
    found = list[Token]()
    for match in _TOKEN.finditer(text):
        look = _LOOKS.get(match.lastgroup, "")
        if found and found[-1].look == look:
            found[-1] = Token(found[-1].text + match[0], look)
        else:
            found.append(Token(match[0], look))
    return found


def frames(traceback: str | None) -> Sequence[Frames]:
    """A traceback with the frames of libraries folded; the tree of an exception group stays as it is."""
    if not traceback:
        return ()
    text = traceback if len(traceback) <= TRACEBACK else "...\n" + traceback[-TRACEBACK:]
    if "Exception Group Traceback" in text:
        return [Frames(text, 0)]
    return list(_folded(text))


def _folded(text: str) -> Iterator[Frames]:
    own, library, count = "", "", 0
    for part in re.split(r'(?m)^(?=  File ")', text):
        # After the last line of a frame stands what was raised, which is nobody's frame.
        frame, tail = _split(part)
        if LIBRARY.match(frame.strip()):
            if own:
                yield Frames(own, 0)
            own, library, count = "", library + frame, count + 1
        else:
            if library:
                yield Frames(library, count)
            own, library, count = own + frame, "", 0
        if tail:
            if library:
                yield Frames(library, count)
            own, library, count = own + tail, "", 0
    if library:
        yield Frames(library, count)
    if own:
        yield Frames(own, 0)


def _split(part: str) -> tuple[str, str]:
    """The lines of a frame, which are indented, and what comes behind them."""
    if not part.startswith("  File "):
        return part, ""
    lines = part.splitlines(keepends=True)
    inside = next((number for number, line in enumerate(lines) if not line.startswith("  ")), len(lines))
    return "".join(lines[:inside]), "".join(lines[inside:])
