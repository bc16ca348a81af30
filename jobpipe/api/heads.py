"""The head of a request: its line and its headers, and what RFC 9112 and this service refuse of them."""

import re
from urllib.parse import unquote_to_bytes

import h11

from jobpipe.api.hosts import read_host
from jobpipe.api.problems import bad_request, not_implemented, other_version, too_long_head

METHODS = frozenset({b"GET", b"HEAD", b"POST", b"PUT", b"PATCH", b"DELETE", b"OPTIONS"})
"""Methods that are known; whether a route takes one of them is the route's business. They are case-sensitive."""

HEAD = 1 << 14
"""Bytes of a request's head at most: its request line and its headers."""

Fields = list[tuple[bytes, bytes]]
"""Headers, their names in lower case."""


def read_head(request: h11.Request) -> tuple[bytes, Fields]:
    """The target of a request in origin form, and its headers; raises `Problem` for what is refused."""
    if not request.http_version.startswith(b"1."):
        raise other_version(request.http_version.decode())
    if request.method not in METHODS:
        raise not_implemented(f"the method {request.method.decode()!r} is not known; methods are in capitals")
    headers = list(request.headers)
    _check_framing(request, headers)
    target, authority = read_target(request.method, request.target)
    if authority is not None:  # which counts instead of Host (RFC 9112, section 3.2.2)
        headers = [(b"host", authority), *((name, value) for name, value in headers if name != b"host")]
    for name, value in headers:
        if name == b"host" and read_host(value) is None:
            raise bad_request(f"{value[:100].decode('latin-1')!r} is not a host and a port")
    return target, headers


def _check_framing(request: h11.Request, headers: Fields) -> None:
    size = len(request.method) + len(request.target) + len(b"  HTTP/1.1\r\n\r\n")
    names = set()
    for name, value in headers:
        size += len(name) + len(value) + len(b": \r\n")
        names.add(name)
    if size > HEAD:
        raise too_long_head(HEAD)
    if b"transfer-encoding" in names and (b"content-length" in names or request.http_version == b"1.0"):
        raise bad_request("the length of the body is given twice: send Content-Length or Transfer-Encoding")
    if b"host" not in names and request.http_version != b"1.0":
        raise bad_request("there is no Host header: HTTP/1.1 needs one")


def read_target(method: bytes, target: bytes) -> tuple[bytes, bytes | None]:
    """Path and query of a request target, and the authority where it has one (RFC 9112, section 3.2).

    Raises `Problem` where it is none of its forms, or stands for characters that no address here has.
    """
    authority = None
    if match := re.match(rb"https?://([^/?]*)", target, re.IGNORECASE):
        authority, target = match[1], target[match.end() :]
        if not target.startswith(b"/"):
            target = (b"*" if method == b"OPTIONS" else b"/") + target
    if not (target.startswith(b"/") or (target == b"*" and method == b"OPTIONS")):
        raise bad_request("the target of the request is neither a path nor a URL that begins with http://")
    if b"#" in target:
        raise bad_request("a fragment (#) is not sent to a server: leave it out, or write it as %23")
    if b"%" in target:
        _check_characters(target)
    return target, authority


def _check_characters(target: bytes) -> None:
    try:
        decoded = unquote_to_bytes(target.partition(b"?")[0]).decode()
    except UnicodeDecodeError:
        raise bad_request("the path is not UTF-8: percent-encode its UTF-8 bytes") from None
    if "\0" in decoded or b"%00" in target:
        raise bad_request("the address has a NUL character (%00), which no name contains")
