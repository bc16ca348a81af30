"""Cursors: where a page of a list ended, as a text that clients pass on without looking into it."""

import base64
import binascii
from typing import TypeVar

import msgspec

from jobpipe.api.problems import Fault, invalid

P = TypeVar("P")


def cursor_of(place: object) -> str:
    """The cursor for a place in a list."""
    return base64.urlsafe_b64encode(msgspec.json.encode(place)).decode().rstrip("=")


def place_of(cursor: str | None, kind: type[P]) -> P | None:
    """The reverse of `cursor_of`; None when there is no cursor. Raises a `Problem` for a text that is none."""
    if cursor is None:
        return None
    try:
        padded = cursor + "=" * (-len(cursor) % 4)
        return msgspec.json.decode(base64.b64decode(padded, altchars=b"-_", validate=True), type=kind)
    except (binascii.Error, msgspec.MsgspecError, ValueError):
        fault = Fault(
            "?cursor", "is not a cursor: send the next_cursor of the previous page, or leave it out"
        )
        raise invalid([fault]) from None
