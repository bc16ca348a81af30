"""Which failures are the same one: a fingerprint of an error, made of what does not differ from run to run. Pure.

This is version 1; the prefix of each fingerprint says so. It is a hash of

- the error's type with its module, the types of the errors that it was raised from, and those within a group;
- the three innermost frames in the handler's own code: module and function, without file and line. A function counts
  once, so that it does not matter how deep it has called itself;
- the first line of the message, with a mark in the place of each value: what is in quotes or brackets, paths, URLs, and
  words with a digit in them, such as numbers, ids and times.

Own code is what lies outside of the standard library, jobpipe, Trio and the folders of installed packages; and the
package of the handler, wherever it is installed. Where no frame is of own code, the job's kind stands for them: so it
is with errors that no handler raised, such as a timeout. What a damaged row says has no fingerprint.

Whoever changes what is in the hash changes the version: the failures of before keep their fingerprints, and those from
then on are groups of their own.
"""

import hashlib
import re
import sysconfig
from collections.abc import Callable, Iterable, Sequence
from types import TracebackType
from typing import NamedTuple

import msgspec

from jobpipe.job import JobError

VERSION = "1"

DIGITS = 16
"""Hexadecimal digits of a fingerprint."""

FRAMES = 3
"""How many frames of own code are in a fingerprint."""

WORDS = 120
"""The most characters of a message, without its values, that are in a fingerprint."""

NO_GROUP = frozenset({"DamagedRow"})
"""Types of errors that have no fingerprint: each is of its own row."""

_MACHINERY = frozenset({"jobpipe", "outcome", "trio"})
"""Packages whose frames lie between the worker and a handler."""

_SHIPPED = ("jobpipe.handlers.demo", "jobpipe.handlers.echo")
"""Modules of jobpipe that are handlers."""

_INLINED = frozenset({"<dictcomp>", "<listcomp>", "<setcomp>"})
"""Functions that are frames in some versions of Python only."""

_LIBRARIES = tuple(
    path.replace("\\", "/").rstrip("/") + "/"
    for path in {sysconfig.get_path("stdlib"), sysconfig.get_path("platstdlib")}
)
_INSTALLED = ("/site-packages/", "/dist-packages/")

VALUE = "<>"
"""What stands for a value in a message."""


def _unless(sign: re.Pattern[str]) -> Callable[[re.Match[str]], str]:
    """A part of a message, or the mark of a value where a sign of one is in it."""
    return lambda part: VALUE if sign.search(part[0]) else part[0]


# None of them looks at a part twice: a message may be any.
_VALUES: Sequence[tuple[re.Pattern[str], str | Callable[[re.Match[str]], str]]] = (
    # Quotes: an apostrophe within a word opens none. One that is not closed, since the message is cut, goes to its end.
    (re.compile(r"(?<!\w)([\"'`])(?:(?!\1).)*(?:\1|$)"), VALUE),
    (re.compile(r"\S+"), _unless(re.compile("://"))),
    (re.compile(r"(?<![\w/])(?:~|\.{1,2}|[A-Za-z]:)?[/\\][^\s,;:)\]}]+"), VALUE),
    (re.compile(r"[^\s,;=()\[\]{}<>]+"), _unless(re.compile(r"\d|\w@\w"))),
    (re.compile(r"\b[0-9A-Fa-f]{8,}\b"), VALUE),
    (re.compile(r"\[[^\[\]]*\]|\{[^{}]*\}"), VALUE),
    (re.compile(r"\[[^\[\]]*\]|\{[^{}]*\}"), VALUE),
    (re.compile(r"<>(?:[\s,:]*<>)+"), VALUE),
    (re.compile(r"\s+"), " "),
)
"""What of a message is a value, and what is put in its place; in this order."""


class Frame(NamedTuple):
    """A frame of a traceback."""

    module: str
    function: str
    """with the names of what it is defined in"""
    file: str

    @property
    def name(self) -> str:
        """As people name it: module and function."""
        return f"{self.module}.{self.function}"

    @property
    def package(self) -> str:
        """The first part of the module's name."""
        return self.module.partition(".")[0]


def frames(traceback: TracebackType | None) -> Sequence[Frame]:
    """The frames of a traceback, the outermost first."""
    found = list[Frame]()
    while traceback is not None:
        code = traceback.tb_frame.f_code
        module = traceback.tb_frame.f_globals.get("__name__")
        if code.co_name not in _INLINED:
            found.append(Frame(module if isinstance(module, str) else "", code.co_qualname, code.co_filename))
        traceback = traceback.tb_next
    return found


def own(inner: Sequence[Frame], whole: Sequence[Frame]) -> Sequence[Frame]:
    """The innermost frames of own code, each function once, the innermost first; `FRAMES` at the most.

    `inner`: those of the error; `whole`: those of the error as it came out of the handler, which may be a group of it
    and others.
    """
    package = package_of(whole)
    mine = (one for one in reversed(inner) if is_own(one, package))
    return list({one.name: one for one in mine}.values())[:FRAMES]


def package_of(whole: Iterable[Frame]) -> str | None:
    """The package of the handler, by the frames behind the worker's; None: it cannot be told."""
    return next((one.package for one in whole if _leads_in(one)), None)


def _leads_in(frame: Frame) -> bool:
    """Whether it may be the handler's own frame."""
    return frame.module in _SHIPPED or not (frame.package in _MACHINERY or _is_library(frame))


def is_own(frame: Frame, package: str | None) -> bool:
    """Whether a frame is of own code, where the handler is in a package."""
    if not _leads_in(frame):
        return False
    return frame.package == package or not any(
        folder in frame.file.replace("\\", "/") for folder in _INSTALLED
    )


def _is_library(frame: Frame) -> bool:
    file = frame.file.replace("\\", "/")
    installed = any(folder in file for folder in _INSTALLED)
    return file.startswith("<frozen ") or (file.startswith(_LIBRARIES) and not installed)


def of_frames(types: Iterable[str], mine: Sequence[Frame], message: str) -> str:
    """The fingerprint of an error that was raised in own code. `types`: its type, and those that belong to it."""
    return _hashed([*types, "in", *(one.name for one in mine), "says", wording(message)])


def of_kind(kind: str, error: JobError) -> str:
    """The fingerprint of an error that was not raised in own code, of a job of a kind."""
    return _hashed([error.type, "of", kind, "says", wording(error.message)])


def marked(error: JobError, kind: str) -> JobError:
    """An error with a fingerprint: its own, or that of its job's kind. One that is of no group stays without."""
    if error.fingerprint or error.type in NO_GROUP:
        return error
    return msgspec.structs.replace(error, fingerprint=of_kind(kind, error))


def wording(message: str) -> str:
    """The first line of a message without its values."""
    line = next(iter(message.strip().splitlines()), "")
    for pattern, instead in _VALUES:
        line = pattern.sub(instead, line)
    return line.strip()[:WORDS]


def _hashed(parts: Sequence[str]) -> str:
    digest = hashlib.sha256("\0".join(parts).encode(errors="replace")).hexdigest()
    return f"{VERSION}-{digest[:DIGITS]}"
