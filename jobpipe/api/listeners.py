"""The sockets that the service listens on: every address of every host in HOST, all with one port."""

import errno
import socket
from collections.abc import Sequence
from contextlib import ExitStack, suppress
from typing import Any

from jobpipe.errors import SettingsError

BACKLOG = 1024
"""Clients that may wait to be let in; the system may allow fewer."""

TRIES = 10
"""How many ports are tried where any will do, until one is free on every address."""

PROBE_AFTER, PROBE_EVERY, PROBES = 15, 5, 3
"""Seconds of silence after which the system asks whether a client is still there; how often, and how many times."""

BOTH = {"localhost": ("127.0.0.1", "::1"), "::": ("::", "0.0.0.0")}  # noqa: S104 - when HOST says so
"""What stands for both families, whatever the system makes of it."""

MISSING = frozenset({errno.EADDRNOTAVAIL, errno.EAFNOSUPPORT, errno.EPROTONOSUPPORT})
"""What is said of an address that this machine does not have, such as `::1` where IPv6 is off."""

Address = tuple[socket.AddressFamily, str, int]
"""Family, IP address, and for IPv6 the number of the interface."""


def listen(hosts: Sequence[str], port: int) -> Sequence[socket.socket]:
    """Listen on every address of the hosts; port 0 is any that is free on all of them.

    Of a host with several addresses, those that this machine does not have are left out. Raises `SettingsError` when
    it has none of them, or when the port is taken.
    """
    if port == 0:
        for _ in range(TRIES - 1):
            with suppress(SettingsError):  # free on one address and taken on another
                return _listen(hosts, port)
    return _listen(hosts, port)


def urls(listeners: Sequence[socket.socket]) -> Sequence[str]:
    """Where clients find the service: a URL for each socket."""
    addresses = (listener.getsockname()[:2] for listener in listeners)
    return [f"http://[{host}]:{port}" if ":" in host else f"http://{host}:{port}" for host, port in addresses]


def _listen(hosts: Sequence[str], port: int) -> Sequence[socket.socket]:
    opened: dict[Address, socket.socket] = {}
    with ExitStack() as stack:
        for host in hosts:
            try:
                _open_host(host, port, opened, stack)
            except OSError as error:
                raise SettingsError(
                    f"cannot listen on {host}:{port} ({error.strerror}): set HOST and PORT to a free address"
                ) from error
        stack.pop_all()
    return list(opened.values())


def _open_host(host: str, port: int, opened: dict[Address, socket.socket], stack: ExitStack) -> None:
    missing, found = None, False
    for address in _addresses(host):
        for listener in list(opened.values())[:1]:
            port = listener.getsockname()[1]
        try:
            if address not in opened:
                opened[address] = stack.enter_context(_open(address, port))
            found = True
        except OSError as error:
            if error.errno not in MISSING:
                raise
            missing = error
    if missing and not found:
        raise missing


def _addresses(host: str) -> Sequence[Address]:
    found = [
        (family, address)
        for name in BOTH.get(host.lower(), (host,))
        for family, _, _, _, address in socket.getaddrinfo(
            name, None, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE
        )
    ]
    return [(family, str(address[0]), int((*address, 0, 0)[3])) for family, address in found]


def _open(address: Address, port: int) -> socket.socket:
    family, host, interface = address
    where: tuple[Any, ...] = (host, port, 0, interface) if family == socket.AF_INET6 else (host, port)
    listener = socket.create_server(where, family=family, backlog=BACKLOG)
    # Connections inherit this. A client whose machine has gone, or that has gone after it ended its side, is noticed.
    listener.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
    for name, value in (("IDLE", PROBE_AFTER), ("INTVL", PROBE_EVERY), ("CNT", PROBES)):
        if hasattr(socket, f"TCP_KEEP{name}"):  # not everywhere
            listener.setsockopt(socket.IPPROTO_TCP, getattr(socket, f"TCP_KEEP{name}"), value)
    return listener
