"""Which `Host` a request may name, and whether a request comes from a page of another site."""

import functools
import ipaddress
import re
from collections.abc import Collection, Iterable, Mapping
from typing import NamedTuple

from jobpipe.api.problems import Problem, cross_site, wrong_host
from jobpipe.settings.forms import is_loopback

SAFE_METHODS = frozenset({"GET", "HEAD", "OPTIONS"})
"""Methods that change nothing (RFC 9110, section 9.2.1); a page of another site may send them."""

DEFAULT_PORTS: Mapping[bytes, int] = {b"http": 80, b"https": 443}

LONGEST = 300
"""Bytes of a `Host`: DNS names have at most 253."""

_HOST = re.compile(rb"(\[[0-9A-Fa-f:.]+\]|[\w.~!$&'()*+,;=%-]*)(?::([0-9]{0,5}))?")
_ORIGIN = re.compile(rb"([a-z][a-z0-9+.-]*)://([^/?#@]+)", re.IGNORECASE)

Headers = Mapping[bytes, bytes]


class Host(NamedTuple):
    """A host as `Host` and `Origin` name it: a name in lower case or an IP address, and a port if one is given."""

    name: str
    port: int | None


@functools.lru_cache(maxsize=256)
def read_host(text: bytes) -> Host | None:
    """The host and port of an authority without user (RFC 9112, section 3.2); None when it is not valid."""
    match = _HOST.fullmatch(text) if len(text) <= LONGEST else None
    if match is None:
        return None
    return Host(plain(match[1].decode("ascii", "replace")), int(match[2]) if match[2] else None)


def plain(name: str) -> str:
    """A name or an IP address in the one spelling that is compared: lower case, no final dot, no brackets."""
    name = name.strip("[]").lower().removesuffix(".")
    try:
        address = ipaddress.ip_address(name)
    except ValueError:
        return name
    mapped = address.ipv4_mapped if isinstance(address, ipaddress.IPv6Address) else None
    return str(mapped or address)


class Guard:
    """Refuses requests that a browser sends on behalf of a page that is not this service's own.

    A page of another site can point a name of its own at this machine (DNS rebinding); its requests then look like
    this service's own, except that `Host` still has that name.
    """

    def __init__(self, bound: Iterable[str], allowed: Collection[str]) -> None:
        """Guard a service that listens on `bound` (`HOST`); `allowed` is `ALLOWED_HOSTS`."""
        names = {plain(name) for name in bound}
        # Who listens for the network is reached by names that nobody can foresee: of a Service, a balancer, a pod.
        self._any = "*" in allowed or not (allowed or all(map(is_loopback, names)))
        self._names = names | {plain(name) for name in allowed if not name.startswith("*")}
        self._suffixes = tuple(name.lower()[1:] for name in allowed if name.startswith("*."))

    def refusal(self, method: str, headers: Headers, address: str) -> Problem | None:
        """Why a request that reached this service at an IP address is refused; None when it is not."""
        if not self._any and b"host" in headers and not self._allows(headers[b"host"], address):
            return wrong_host(headers[b"host"].decode("latin-1"))
        if method not in SAFE_METHODS and _crosses(headers):
            return cross_site()
        return None

    def _allows(self, text: bytes, address: str) -> bool:
        host = read_host(text)
        return host is not None and bool(host.name) and self._knows(host.name, address)

    def _knows(self, name: str, address: str) -> bool:
        return (
            is_loopback(name)
            or name in self._names
            or name == plain(address)
            or name.endswith(self._suffixes)
        )


def _crosses(headers: Headers) -> bool:
    """Whether a page of another site sent this. Browsers say so themselves, but not to plain http off this machine."""
    site = headers.get(b"sec-fetch-site")
    if site is not None:
        return site not in (b"none", b"same-origin")
    origin = headers.get(b"origin")
    return origin is not None and not _same(origin, headers.get(b"host", b""))


def _same(origin: bytes, host: bytes) -> bool:
    """Whether an `Origin` is the host that was asked; `null`, as sandboxed pages and redirects send it, never is."""
    match = _ORIGIN.fullmatch(origin)
    ours, theirs = read_host(host), read_host(match[2]) if match else None
    if match is None or ours is None or theirs is None:
        return False
    default = DEFAULT_PORTS.get(match[1].lower())
    return (ours.name, ours.port or default) == (theirs.name, theirs.port or default)
