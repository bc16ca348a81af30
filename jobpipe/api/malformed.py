"""What is wrong with a body that is not JSON, in words that say what to send instead."""

import re

from jobpipe.api.problems import Problem, not_json

BOM = b"\xef\xbb\xbf"
"""The byte order mark that some editors put before UTF-8. It means nothing, and is passed over."""

_AT = re.compile(r"\(byte (\d+)\)")
_ESCAPE = re.compile(rb"\\(?:u([0-9a-fA-F]{4})|.)", re.DOTALL)
_FORM = re.compile(rb"[\w.%+-]+=")
_HIGH, _LOW = range(0xD800, 0xDC00), range(0xDC00, 0xE000)


def malformed(body: bytes, error: Exception) -> Problem:
    """The problem of a body that could not be read as JSON; `error` is the decoder's."""
    return not_json(_what(body, str(error)))


def _what(body: bytes, error: str) -> str:
    return _by_its_beginning(body) or _by_its_characters(body) or _by_the_place(body, error)


def _by_its_beginning(body: bytes) -> str | None:
    if not body.strip():
        return "the body is empty: send a JSON value"
    if body.startswith(b"\x1f\x8b"):
        return "the body is compressed with gzip: send it uncompressed"
    if body.startswith((b"\xff\xfe", b"\xfe\xff")) or b"\0" in body[:4]:
        return "the body is UTF-16 or UTF-32: send UTF-8"
    if _FORM.match(body):
        return "the body is a form (name=value): send a JSON object"
    return None


def _by_its_characters(body: bytes) -> str | None:
    try:
        body.decode()
    except UnicodeDecodeError as error:
        return f"the byte 0x{body[error.start]:02x} at position {error.start} is not UTF-8: send UTF-8"
    if (escape := _lone_surrogate(body)) is not None:
        return (
            f"{escape} is half a character: send both halves of a surrogate pair, or the character as UTF-8"
        )
    return None


def _lone_surrogate(body: bytes) -> str | None:
    """The first escape that is one half of a surrogate pair without the other."""
    high: re.Match[bytes] | None = None
    for escape in _ESCAPE.finditer(body):
        unit = int(escape[1] or b"0", 16)
        paired = high is not None and high.end() == escape.start() and unit in _LOW
        if high is not None and not paired:
            break
        if unit in _LOW and not paired:
            return escape[0].decode()
        high = escape if unit in _HIGH else None
    return None if high is None else high[0].decode()


def _by_the_place(body: bytes, error: str) -> str:
    place = _AT.search(error)
    rest = body[int(place[1]) :] if place else b""
    if rest.startswith((b"NaN", b"Infinity", b"-Infinity")):
        return f"NaN and Infinity are not JSON (byte {len(body) - len(rest)}): send null or a string"
    if rest.startswith(b"'"):
        return f"JSON strings take double quotes, not single ones (byte {len(body) - len(rest)})"
    if "trailing characters" in error:
        return (
            f"something follows the JSON value ({error}): send one value, or stream many jobs to "
            "/enqueue/bulk with Content-Type: application/x-ndjson"
        )
    if "truncated" in error:
        return "the body ends in the middle of a JSON value: send all of it"
    return f"{error}: send JSON in UTF-8"
