"""The sockets that the service listens on."""

import contextlib
import socket

import pytest

from jobpipe.api import listeners
from jobpipe.api.listeners import PROBE_AFTER, listen, urls
from jobpipe.errors import SettingsError


@pytest.fixture
def listening():
    """Listens as the service does; all of it is closed in the end."""
    with contextlib.ExitStack() as stack:

        def opened(*hosts, port=0):
            return [stack.enter_context(each) for each in listen(hosts, port)]

        yield opened


def addresses(sockets):
    return [each.getsockname()[0] for each in sockets]


@pytest.mark.parametrize(
    ("hosts", "expected"),
    [
        (("127.0.0.1",), ["127.0.0.1"]),
        (("0.0.0.0",), ["0.0.0.0"]),
        (("::1",), ["::1"]),
        (("localhost",), ["127.0.0.1", "::1"]),
        (("LOCALHOST",), ["127.0.0.1", "::1"]),
        (("::",), ["::", "0.0.0.0"]),
        (("127.0.0.1", "::1"), ["127.0.0.1", "::1"]),
        (("127.0.0.1", "127.0.0.2"), ["127.0.0.1", "127.0.0.2"]),
        (("::1", "localhost", "127.0.0.1"), ["::1", "127.0.0.1"]),
    ],
)
def test_it_listens_on_every_address_of_every_host_and_on_one_port(listening, hosts, expected):
    sockets = listening(*hosts)

    assert addresses(sockets) == expected
    assert len({each.getsockname()[1] for each in sockets}) == 1
    for each in sockets:
        host, port = each.getsockname()[:2]
        here = {"0.0.0.0": "127.0.0.1", "::": "::1"}.get(host, host)
        socket.create_connection((here, port), timeout=5).close()


def test_the_urls_are_those_of_the_sockets(listening):
    sockets = listening("localhost")
    port = sockets[0].getsockname()[1]

    assert urls(sockets) == [f"http://127.0.0.1:{port}", f"http://[::1]:{port}"]


def test_a_port_that_is_taken_on_one_of_the_addresses_is_refused_and_nothing_stays_open(listening):
    (taken,) = listening("127.0.0.1")
    port = taken.getsockname()[1]

    with pytest.raises(
        SettingsError, match=rf"^cannot listen on localhost:{port} \(Address already in use.*\): set HOST"
    ):
        listen(("::1", "localhost"), port)
    assert len(listening("::1", port=port)) == 1


@pytest.mark.parametrize("host", ["no.such.host.invalid", "192.0.2.1"])
def test_an_address_that_this_machine_does_not_have_is_refused(host):
    with pytest.raises(SettingsError, match=rf"^cannot listen on {host}:8080 \("):
        listen((host,), 8080)


def test_where_ipv6_is_off_localhost_is_ipv4(listening, monkeypatch):
    monkeypatch.setattr(listeners, "BOTH", {"localhost": ("127.0.0.1", "2001:db8::1")})

    assert addresses(listening("localhost")) == ["127.0.0.1"]


def test_a_port_that_is_free_on_one_address_only_is_not_taken(listening, monkeypatch):
    """Any port will do, so another one is tried."""
    real, refusals = listeners._open, iter([True, True, False])

    def opened(address, port):
        if address[1] == "::1" and next(refusals, False):
            raise OSError(98, "Address already in use")
        return real(address, port)

    monkeypatch.setattr(listeners, "_open", opened)

    assert addresses(listening("localhost")) == ["127.0.0.1", "::1"]


def test_connections_inherit_that_the_system_looks_whether_the_client_is_still_there(listening):
    (listener,) = listening("127.0.0.1")
    with socket.create_connection(listener.getsockname()), listener.accept()[0] as accepted:
        assert accepted.getsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE) == 1
        assert accepted.getsockopt(socket.IPPROTO_TCP, socket.TCP_KEEPIDLE) == PROBE_AFTER
