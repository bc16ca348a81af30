"""Numbers that Python would change in silence."""

import re

ZEROS = b"0" * 200
"""A number this close to zero has at least so many zeros in a row, or an exponent of three digits."""

SHOWN = 40
"""The most characters of a number that an answer repeats."""

_SMALL_EXPONENT = re.compile(rb"[eE]-0*[1-9][0-9]{2}")
_TOKEN = re.compile(rb'"(?:[^"\\]|\\.)*"|-?[0-9][0-9.eE+-]*', re.DOTALL)
_NOT_ZERO = re.compile(rb"-?[0.]*[1-9]")


def may_vanish(sent: bytes) -> bool:
    """Whether a JSON text may hold a number that `vanishing` looks for: a quick look that spares most texts."""
    small = (b"e-" in sent or b"E-" in sent) and _SMALL_EXPONENT.search(sent) is not None
    return small or (len(sent) > len(ZEROS) and ZEROS in sent)


def vanishing(sent: bytes) -> str | None:
    """The first number of a JSON text that is not zero, but so small that a 64-bit float makes it 0."""
    for token in _TOKEN.finditer(sent):
        number = token[0]
        if not number.startswith(b'"') and float(number) == 0 and _NOT_ZERO.match(number):
            shown = number.decode()
            return shown if len(shown) <= SHOWN else f"{shown[: SHOWN // 2]}...{shown[-SHOWN // 2 :]}"
    return None
