"""Hosts: which names a request may be sent to, and whether a page of another site sent it."""

import pytest

from jobpipe.api.hosts import Guard, Host, plain, read_host
from jobpipe.settings.forms import is_loopback
from tests.api.client import open_door

ADDRESS = "127.0.0.1"


def refused(guard, host, *, address=ADDRESS, method="GET", **headers):
    fields = {name.replace("_", "-").encode(): value for name, value in headers.items()}
    if host is not None:
        fields[b"host"] = host
    refusal = guard.refusal(method, fields, address)
    return None if refusal is None else refusal.details.code.value


# Reading


@pytest.mark.parametrize(
    ("text", "host"),
    [
        (b"localhost", Host("localhost", None)),
        (b"LOCALHOST.:80", Host("localhost", 80)),
        (b"jobs.example:8080", Host("jobs.example", 8080)),
        (b"jobs.example:", Host("jobs.example", None)),
        (b"127.0.0.1:1", Host("127.0.0.1", 1)),
        (b"[::1]:8080", Host("::1", 8080)),
        (b"[0:0:0:0:0:0:0:1]", Host("::1", None)),
        (b"[::ffff:127.0.0.1]", Host("127.0.0.1", None)),
        (b"", Host("", None)),
        (b"under_score", Host("under_score", None)),
        (b"a" * 300, Host("a" * 300, None)),
        (b"a" * 301, None),
        (b"::1", None),
        (b"[::1", None),
        (b"a b", None),
        (b"a/b", None),
        (b"joe@a", None),
        (b"a:b", None),
        (b"a:123456", None),
        (b"a,b", Host("a,b", None)),
        (b"\xff", None),
    ],
)
def test_a_host_is_read_or_refused(text, host):
    assert read_host(text) == host


@pytest.mark.parametrize(
    ("name", "here"),
    [
        ("localhost", True),
        ("jobs.localhost", True),
        ("127.0.0.1", True),
        ("127.9.9.9", True),
        ("::1", True),
        ("localhost.example", False),
        ("notlocalhost", False),
        ("128.0.0.1", False),
        ("0.0.0.0", False),
        ("::", False),
        ("127.0.0.1.example", False),
        ("127.1", False),
        ("", False),
    ],
)
def test_loopback_is_told_by_name_or_address(name, here):
    assert is_loopback(plain(name)) is here


# The name that a request is sent to


@pytest.mark.parametrize(
    "host", [b"localhost", b"localhost:8080", b"127.0.0.1:8080", b"[::1]:8080", b"app.localhost", None]
)
@pytest.mark.parametrize("bound", [("127.0.0.1",), ("localhost",), ("::1", "127.0.0.1")])
def test_loopback_is_always_known_by_its_own_names(bound, host):
    """A client of HTTP/1.0 may send none; no browser does that."""
    assert refused(Guard(bound, ()), host) is None


@pytest.mark.parametrize(
    "host",
    [
        b"evil.example",
        b"evil.example:8080",
        b"10.0.0.1",
        b"localhost.evil.example",
        b"0.0.0.0",
        b"",
        b"127.0.0.1.nip.io",
    ],
)
@pytest.mark.parametrize("method", ["GET", "POST", "DELETE", "OPTIONS"])
def test_a_service_for_this_machine_answers_to_no_other_name(host, method):
    """Not even to a browser that says that the page is the service's own: the page thinks so, too."""
    guard = Guard(("127.0.0.1",), ())

    assert refused(guard, host, method=method) == "wrong_host"
    assert refused(guard, host, method=method, sec_fetch_site=b"same-origin") == "wrong_host"


@pytest.mark.parametrize("bound", ["0.0.0.0", "::", "10.1.2.3", "jobs.example"])
def test_a_service_for_the_network_answers_to_any_name_unless_told(bound):
    assert refused(Guard((bound,), ()), b"whatever.example") is None
    assert refused(Guard((bound,), ("jobs.internal",)), b"whatever.example") == "wrong_host"


@pytest.mark.parametrize(
    ("allowed", "host", "known"),
    [
        (("jobs.internal",), b"jobs.internal:8080", True),
        (("JOBS.internal.",), b"Jobs.Internal", True),
        (("jobs.internal",), b"more.jobs.internal", False),
        (("*.internal",), b"jobs.internal", True),
        (("*.internal",), b"more.jobs.internal", True),
        (("*.internal",), b"internal", False),
        (("*.internal",), b"jobsinternal", False),
        (("*",), b"whatever.example", True),
        (("10.1.2.3",), b"10.1.2.3:80", True),
        (("fd00::1",), b"[fd00:0::1]:80", True),
        (("jobs.internal",), b"localhost", True),
        (("jobs.internal",), b"10.9.9.9:8080", True),
        (("jobs.internal",), b"10.9.9.8:8080", False),
    ],
)
def test_names_that_are_allowed_and_the_address_that_was_reached(allowed, host, known):
    """A probe of Kubernetes names the pod by its address."""
    guard = Guard(("0.0.0.0",), allowed)

    assert refused(guard, host, address="10.9.9.9") == (None if known else "wrong_host")


def test_the_name_that_is_listened_on_is_known():
    guard = Guard(("localhost", "jobs.internal"), ("other.internal",))

    assert refused(guard, b"jobs.internal:80") is None


# The page that a request comes from


@pytest.mark.parametrize(
    ("host", "origin", "same"),
    [
        (b"jobs.lan", b"http://jobs.lan", True),
        (b"jobs.lan:80", b"http://jobs.lan", True),
        (b"jobs.lan", b"http://jobs.lan:80", True),
        (b"jobs.lan", b"https://jobs.lan", True),
        (b"jobs.lan:443", b"https://jobs.lan", True),
        (b"jobs.lan:8080", b"http://jobs.lan:8080", True),
        (b"JOBS.lan:8080", b"http://jobs.LAN.:8080", True),
        (b"[fd00::1]:8080", b"http://[fd00:0::1]:8080", True),
        (b"jobs.lan:8080", b"http://jobs.lan", False),
        (b"jobs.lan", b"http://jobs.lan:8080", False),
        (b"jobs.lan", b"http://evil.example", False),
        (b"jobs.lan", b"http://jobs.lan.evil.example", False),
        (b"jobs.lan", b"http://evil.example/jobs.lan", False),
        (b"jobs.lan", b"http://jobs.lan@evil.example", False),
        (b"jobs.lan", b"null", False),
        (b"jobs.lan", b"", False),
        (b"jobs.lan", b"file://", False),
        (b"jobs.lan", b"jobs.lan", False),
        (b"jobs.lan", b"http://jobs.lan http://evil.example", False),
        (None, b"http://jobs.lan", False),
    ],
)
def test_where_a_browser_does_not_say_the_origin_decides(host, origin, same):
    guard = Guard(("0.0.0.0",), ())

    for method in ("POST", "PUT", "DELETE", "PATCH"):
        assert refused(guard, host, method=method, origin=origin) == (None if same else "cross_site")
    assert refused(guard, host, method="GET", origin=origin) is None


@pytest.mark.parametrize("site", [b"cross-site", b"same-site", b"", b"SAME-ORIGIN", b"none, none"])
def test_what_a_browser_says_comes_first(site):
    guard = Guard(("0.0.0.0",), ())

    assert (
        refused(guard, b"jobs.lan", method="POST", sec_fetch_site=site, origin=b"http://jobs.lan")
        == "cross_site"
    )
    assert (
        refused(
            guard, b"jobs.lan", method="POST", sec_fetch_site=b"same-origin", origin=b"http://proxied.example"
        )
        is None
    )


def test_a_program_sends_neither():
    assert refused(Guard(("0.0.0.0",), ()), b"jobs.lan", method="POST") is None


# All of it over the application


@pytest.mark.parametrize(
    ("method", "path"),
    [
        ("GET", "/health"),
        ("GET", "/docs"),
        ("POST", "/enqueue"),
        ("POST", "/enqueue/bulk"),
        ("DELETE", "/jobs/a"),
    ],
)
async def test_a_wrong_host_is_told_with_421_on_every_route(method, path):
    async with open_door(allowed_hosts=()) as door:
        answer = await door.request(
            method, path, headers={"Host": "evil.example", "Sec-Fetch-Site": "same-origin"}
        )

        assert (answer.status_code, answer.json()["code"]) == (421, "wrong_host")
        assert "ALLOWED_HOSTS" in answer.json()["detail"]
        assert await door.stored() == 0


async def test_a_page_that_plain_http_lets_through_may_change_nothing():
    async with open_door(host=("0.0.0.0",), allowed_hosts=()) as door:
        headers = {"Host": "jobs.lan:8080", "Origin": "http://evil.example", "Content-Type": "text/plain"}
        stored = await door.post("/enqueue", content=b"{}", headers=headers)
        paused = await door.post("/queues/default/pause", headers={**headers, "Origin": "null"})
        own = await door.post(
            "/enqueue", content=b"{}", headers={"Host": "jobs.lan:8080", "Origin": "http://jobs.lan:8080"}
        )

        assert [one.status_code for one in (stored, paused, own)] == [403, 403, 202]
        assert await door.stored() == 1
