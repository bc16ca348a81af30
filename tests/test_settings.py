"""Settings: how values are written, where they come from, and what is said when they are wrong."""

import math
import re
from pathlib import Path

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from jobpipe.errors import SettingsError
from jobpipe.settings import (
    SETTINGS,
    Settings,
    load,
    mask,
    read_duration,
    read_size,
    service_url,
    show_duration,
    show_size,
)
from jobpipe.settings.definition import connections_for, open_files

NOWHERE = Path("no such folder") / ".env"
ALLOWED_LEASE = "seconds, or a number with ms, s, m, h or d, from 1s to 1h"
DOCS = Path(__file__).parents[1] / "docs" / "settings.md"


def loaded(flags=None, environ=None, dotenv=NOWHERE):
    return load(flags or {}, environ or {}, dotenv)


def faults(flags=None, environ=None, dotenv=NOWHERE):
    with pytest.raises(SettingsError) as caught:
        loaded(flags, environ, dotenv)
    return str(caught.value).split("\n  ")[1:]


@pytest.fixture
def dotenv(tmp_path):
    def write(text, encoding="utf-8"):
        path = tmp_path / ".env"
        path.write_text(text, encoding)
        return path

    return write


# --- how values are written -------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("text", "seconds"),
    [
        ("90", 90),
        ("0.5", 0.5),
        ("0", 0),
        ("0.1", 0.1),
        ("500ms", 0.5),
        ("30s", 30),
        ("30 s", 30),
        ("1.5m", 90),
        ("2h", 7200),
        ("7d", 604_800),
        ("1h30m", 5400),
        ("1.5d12h0m1s500ms", 172_801.5),
    ],
)
def test_durations_are_seconds_or_have_a_suffix(text, seconds):
    assert read_duration(text) == seconds


@pytest.mark.parametrize(
    "text",
    [
        "",
        "s",
        "1w",
        "5M",
        "-1",
        "1e3",
        "1m30",
        "1m 30s",
        "1h1w",
        "1s1s1s1s1s1s",
        "inf",
        "nan",
        "1_000",
        "1.",
        "３",  # noqa: RUF001 - is the point
    ],
)
def test_other_durations_are_refused(text):
    with pytest.raises(ValueError):
        read_duration(text)


@pytest.mark.parametrize(
    ("text", "size"),
    [("0", 0), ("1000", 1000), ("64KB", 64_000), ("1MiB", 2**20), ("1.5 KiB", 1536), ("2GB", 2 * 10**9)],
)
def test_sizes_are_bytes_or_have_a_suffix(text, size):
    assert read_size(text) == size


@pytest.mark.parametrize("text", ["", "MB", "1M", "1mb", "-1", "1e3", "0x10", "1B"])
def test_other_sizes_are_refused(text):
    with pytest.raises(ValueError):
        read_size(text)


@given(st.integers(0, 10**13).map(lambda milliseconds: milliseconds / 1000))
@example(1e-9)
@example(30)
def test_a_shown_duration_reads_as_the_same(seconds):
    assert read_duration(show_duration(seconds)) == seconds


@given(st.integers(0, 2**50))
def test_a_shown_size_reads_as_the_same(size):
    assert read_size(show_size(size)) == size


@pytest.mark.parametrize(
    ("seconds", "text"), [(0.0, "0s"), (0.25, "250ms"), (30.0, "30s"), (90, "90s"), (604_800.0, "7d")]
)
def test_durations_are_shown_in_the_largest_unit_that_fits(seconds, text):
    assert show_duration(seconds) == text


@given(st.sampled_from(SETTINGS), st.text())
@example(SETTINGS[0], "9" * 5000)
@example(SETTINGS[0], "٣")
def test_any_text_is_read_or_refused(setting, text):
    try:
        value = setting.read(text)
    except ValueError:
        return

    assert not isinstance(value, float) or math.isfinite(value)


# --- the definition ---------------------------------------------------------------------------------------------------


def test_the_defaults_are_those_of_the_origin():
    settings = Settings()

    assert (settings.workers, settings.queue_size, settings.host, settings.port) == (
        4,
        64,
        ("127.0.0.1",),
        8080,
    )
    assert settings.store == "sqlite:jobpipe.db"


@pytest.mark.parametrize("setting", SETTINGS, ids=lambda setting: setting.name)
def test_each_setting_says_what_it_does_and_allows_its_own_default(setting):
    default = getattr(Settings(), setting.name)

    assert setting.help.endswith(".")
    assert setting.read(setting.form.show(default)) == default


@pytest.mark.parametrize("setting", SETTINGS, ids=lambda setting: setting.name)
def test_the_page_on_settings_names_each_with_flag_and_default(setting):
    section = DOCS.read_text("utf-8").split(f"### `{setting.variable}`")[1].split("\n#")[0]

    assert f"`{setting.flag}`" in section
    assert f"`{setting.default}`" in section or setting.name in {
        "max_backlog",
        "max_connections",
        "handlers",
        "allowed_hosts",
        "queues",
        "reserve",
        "dashboard",
    }


@pytest.mark.parametrize(
    ("store", "queue_size", "expected"),
    [("memory:", 8, 8), ("memory:", 0, 1), ("sqlite:jobs.db", 8, 1_000_000)],
)
def test_the_default_backlog_depends_on_the_store(store, queue_size, expected):
    assert Settings(store=store, queue_size=queue_size).max_backlog == expected
    assert loaded({"store": store, "queue_size": str(queue_size)}).settings.max_backlog == expected


def test_a_backlog_that_was_asked_for_stays():
    assert loaded({"store": "memory:", "max_backlog": "3"}).settings.max_backlog == 3


@pytest.mark.parametrize(
    ("files", "connections"),
    [(60, 15), (256, 64), (340, 85), (344, 88), (1024, 768), (10_256, 10_000), (2**63 - 1, 10_000), (1, 1)],
)
def test_the_default_of_connections_leaves_files_to_others(files, connections):
    assert connections_for(files) == connections


def test_the_default_of_connections_follows_from_the_limit_of_the_process():
    assert Settings().max_connections == connections_for(open_files())
    assert loaded({"max_connections": "7"}).settings.max_connections == 7


@pytest.mark.parametrize(
    ("text", "names"),
    [
        ("*", ("*",)),
        ("jobs.internal, *.example.com", ("jobs.internal", "*.example.com")),
        ("10.1.2.3,fd00::1", ("10.1.2.3", "fd00::1")),
        ("", ()),
    ],
)
def test_names_that_clients_may_use_are_read(text, names):
    assert loaded({"allowed_hosts": text}).settings.allowed_hosts == names


# --- where values come from -------------------------------------------------------------------------------------------


def test_flags_win_over_the_environment_and_that_over_dotenv(dotenv):
    flags, environ = {"workers": "1"}, {"JOBPIPE_WORKERS": "2", "WORKERS": "3"}
    path = dotenv("JOBPIPE_WORKERS=5\nWORKERS=6\n")

    in_force = []
    for gone in (flags, environ, environ, None):
        found = loaded(flags, environ, path)
        in_force.append((found.settings.workers, found.origins["workers"]))
        if gone:
            gone.pop(next(iter(gone)))

    assert in_force == [
        (1, "flag --workers"),
        (2, "environment JOBPIPE_WORKERS"),
        (3, "environment WORKERS"),
        (5, ".env JOBPIPE_WORKERS"),
    ]


def test_what_is_set_nowhere_is_the_default():
    found = loaded(
        environ={"WORKERS": "", "JOBPIPE_WORKERS": "  ", "JOBPIPE_NONSENSE": ""}, flags={"workers": None}
    )

    assert found.settings == Settings()
    assert set(found.origins.values()) == {"default"}


def test_each_kind_of_value_is_read():
    environ = {
        "HANDLERS": "shop.mail, shop.images,",
        "GRACE": "1.5m",
        "MAX_BODY": "2MiB",
        "LOG_LEVEL": "WARNING",
        "STORE": "sqlite:some where/jobs.db",
        "HOST": "::1, 10.0.0.1",
    }

    settings = loaded(environ=environ).settings

    assert settings.handlers == ("shop.mail", "shop.images")
    assert (settings.grace, settings.max_body, settings.log_level) == (90.0, 2**21, "warning")
    assert (settings.store, settings.host) == ("sqlite:some where/jobs.db", ("::1", "10.0.0.1"))


@pytest.mark.parametrize(
    ("text", "weights"),
    [
        ("", ()),
        ("a", (("a", 1),)),
        (" critical:3, default ,", (("critical", 3), ("default", 1))),
        ("a.b-c_1:1000,*:7", (("a.b-c_1", 1000), ("*", 7))),
        ("*", (("*", 1),)),
    ],
)
def test_queues_have_weights(text, weights):
    settings = loaded({"queues": text}).settings

    assert settings.queues == weights
    assert loaded({"queues": form_of("queues").show(weights)}).settings.queues == weights


def form_of(name):
    return next(setting.form for setting in SETTINGS if setting.name == name)


def test_workers_may_be_reserved_for_queues_that_are_served():
    some = loaded({"queues": "mail,sms", "reserve": "mail:2,sms", "workers": "4"}).settings
    others = loaded({"queues": "mail,*", "reserve": "sms"}).settings

    assert (some.reserve, others.reserve) == ((("mail", 2), ("sms", 1)), (("sms", 1),))
    assert loaded({"reserve": "sms"}).settings.reserve == (("sms", 1),)


@pytest.mark.parametrize("reserve", ["mail:4", "mail:2,sms:2", "mail:1000"])
def test_a_worker_must_be_left_that_is_not_reserved(reserve):
    (fault,) = faults({"reserve": reserve, "workers": "4"})

    assert re.match(r"RESERVE: \d+ of 4 workers would be reserved; allowed: fewer than WORKERS", fault)


def test_a_queue_that_is_not_served_has_no_workers():
    (fault,) = faults({"queues": "mail,sms", "reserve": "sms,reports"})

    assert fault == "RESERVE: 'reports' is not in QUEUES, so this node would never take a job from it"


def test_an_empty_flag_takes_handlers_away():
    assert loaded({"handlers": ""}, {"HANDLERS": "shop.mail"}).settings.handlers == ()


def test_dotenv_is_read_with_quotes_comments_and_a_byte_order_mark(dotenv):
    path = dotenv(
        "# ours\nexport PORT = '9000' # not 8080\n\nSTORE=\"sqlite:a b.db\"\nGRACE=\nOTHER=${HOME}\n",
        "utf-8-sig",
    )

    found = loaded(dotenv=path)

    assert (found.settings.port, found.settings.store) == (9000, "sqlite:a b.db")
    assert found.origins["port"] == ".env PORT"


def test_a_folder_called_dotenv_is_no_fault(tmp_path):
    (tmp_path / ".env").mkdir()

    assert loaded(dotenv=tmp_path / ".env").settings == Settings()


def service_variables(prefix, address="10.0.0.7", shown="10.0.0.7"):
    """What Kubernetes sets beside a Service."""
    url = f"tcp://{shown}:8080"
    return {
        f"{prefix}_SERVICE_HOST": address,
        f"{prefix}_SERVICE_PORT": "8080",
        f"{prefix}_SERVICE_PORT_HTTP": "8080",
        f"{prefix}_SERVICE_PORT_HTTP_2": "8081",
        f"{prefix}_PORT": url,
        f"{prefix}_PORT_8080_TCP": url,
        f"{prefix}_PORT_8080_TCP_PROTO": "tcp",
        f"{prefix}_PORT_8080_TCP_PORT": "8080",
        f"{prefix}_PORT_8080_TCP_ADDR": address,
        f"{prefix}_PORT_53_UDP": f"udp://{shown}:53",
        f"{prefix}_PORT_53_UDP_PROTO": "udp",
    }


@pytest.mark.parametrize(
    "prefix", ["JOBPIPE", "JOBPIPE_API", "JOBPIPE_2", "JOBPIPE_WORKERS", "JOBPIPE_A_B_C"]
)
@pytest.mark.parametrize(("address", "shown"), [("10.0.0.7", "10.0.0.7"), ("fd00::7", "[fd00::7]")])
def test_what_kubernetes_adds_for_a_service_is_no_setting(prefix, address, shown):
    assert loaded(environ=service_variables(prefix, address, shown)).settings == Settings()


@pytest.mark.parametrize("prefix", ["JOBPIPE", "JOBPIPE_API"])
def test_a_setting_beside_them_counts(prefix):
    environ = service_variables(prefix) | {"PORT": "9000"}

    assert loaded(environ=environ).settings.port == 9000
    assert service_url(environ=environ, dotenv=NOWHERE) == "http://127.0.0.1:9000"


@pytest.mark.parametrize(
    ("name", "text"),
    [
        ("JOBPIPE_API_PORT", "8080"),
        ("JOBPIPE_API_HOST", "10.0.0.7"),
        ("JOBPIPE_API_SERVICE_HOST", "not an address"),
        ("JOBPIPE_SERVICE_PORT", "http"),
        ("JOBPIPE_PORT_8080_TCP", "8080"),
        ("JOBPIPE_PORT_X_TCP", "tcp://10.0.0.7:8080"),
        ("JOBPIPE_PROT", "tcp://10.0.0.7:8080"),
        ("JOBPIPEX_WORKERS_JOBPIPE", "4"),
        ("JOBPIPE_API_PORT_8080_TCP_PROTO", "http"),
    ],
)
def test_what_only_looks_like_it_is_told(name, text):
    if not name.startswith("JOBPIPE_"):
        assert loaded(environ={name: text}).settings == Settings()
        return
    (fault,) = faults(environ={name: text})

    assert fault.startswith(f"{name}: there is no such setting")


def test_a_port_that_is_no_number_is_told_all_the_same():
    (fault,) = faults(environ={"JOBPIPE_PORT": "http://10.0.0.7:80"})

    assert fault.startswith("PORT: 'http://10.0.0.7:80'")


# --- what is wrong ----------------------------------------------------------------------------------------------------


def test_all_faults_are_told_at_once_each_with_value_origin_and_what_is_allowed(dotenv):
    flags, environ = {"workers": "many", "port": "70000"}, {"JOBPIPE_SYNC": "maybe"}

    assert faults(flags, environ, dotenv("LEASE=0.5")) == [
        "WORKERS: 'many' (from flag --workers) is not allowed; allowed: a whole number, from 1 to 1000",
        "SYNC: 'maybe' (from environment JOBPIPE_SYNC) is not allowed; allowed: full or normal",
        "PORT: '70000' (from flag --port) is not allowed; allowed: a whole number, from 0 to 65535",
        f"LEASE: '0.5' (from .env LEASE) is not allowed; allowed: {ALLOWED_LEASE}",
    ]


@pytest.mark.parametrize(
    ("name", "text"),
    [("workers", each) for each in ("0", "1001", "4.0", "1_0", "")]
    + [
        ("queue_size", "-1"),
        ("max_backlog", "0"),
        ("grace", "31d"),
        ("max_body", "2GiB"),
        ("log_format", "xml"),
    ]
    + [
        ("store", each)
        for each in ("jobs.db", "sqlite:", "sqlite:///jobs.db", "sqlite::memory:", "memory:x", "redis:")
    ]
    + [("host", each) for each in ("http://here", "localhost:8080", "127.0.0.1:80", "[::1]", "a b", "", ",")]
    + [("allowed_hosts", each) for each in ("http://here", "here:80", "a*", "*.*", "**", "[::1]", "a b")]
    + [("max_connections", each) for each in ("0", "1000001", "many")]
    + [
        ("queues", each)
        for each in ("a:0", "a:1001", "a:-1", "a:b", "a:1.5", "a,a:2", "a b", "-a", ":3", "a:2:3")
    ]
    + [("reserve", each) for each in ("*:1", "a:0", "a,a", "a:x")]
    + [("handlers", each) for each in ("shop/mail.py", "mail.py", "shop mail", "2fast", "shop..mail")],
)
def test_values_that_are_not_allowed_are_refused(name, text):
    (fault,) = faults({name: text})

    assert fault.startswith(f"{name.upper()}: '{text}'")


@pytest.mark.parametrize(("many", "refused"), [(100, 0), (101, 1)])
@pytest.mark.parametrize("name", ["host", "allowed_hosts"])
def test_so_many_addresses_may_be_named(name, many, refused):
    environ = {name.upper(): ",".join(["10.0.0.1"] * many)}

    if refused:
        with pytest.raises(SettingsError):
            loaded(environ=environ)
    else:
        assert len(getattr(loaded(environ=environ).settings, name)) == many


@pytest.mark.parametrize(
    "url",
    [
        "postgresql://joe:secret@db/jobs",
        "postgres://db",
        "postgresql:///?service=jobs",
        "postgresql://a,b/jobs?target_session_attrs=read-write&schema=mine",
    ],
)
def test_postgresql_is_a_store(url):
    assert loaded(environ={"STORE": url}).settings.store == url


def test_the_password_of_a_store_is_not_shown():
    (fault,) = faults(environ={"STORE": "postgresql://joe:s3/cr@t@db/jobs ?sslpassword=se cret"})

    assert "'postgresql://joe:***@db/jobs ?sslpassword=***'" in fault
    assert "postgresql://USER@HOST/DATABASE" in fault


def test_an_unknown_variable_of_ours_is_a_fault_with_a_suggestion(dotenv):
    environ = {
        "JOBPIPE_WORKER": "4",
        "JOBPIPE_XYZ": "1",
        "JOBPIPE_URL": "http://a",
        "JOBPIPE_TEST_X": "1",
        "WORKER": "4",
    }

    assert faults(environ=environ, dotenv=dotenv("JOBPIPE_STOR=memory:")) == [
        "JOBPIPE_WORKER: there is no such setting (from environment); did you mean JOBPIPE_WORKERS?",
        "JOBPIPE_XYZ: there is no such setting (from environment)",
        "JOBPIPE_STOR: there is no such setting (from .env); did you mean JOBPIPE_STORE?",
    ]


def test_a_broken_dotenv_is_a_fault_that_names_the_lines_and_shows_no_secret(dotenv):
    fault, other = faults(
        dotenv=dotenv("PORT=1\n\n\nset -e secret\nJOBPIPE_WORKERS='open\n"), environ={"SYNC": "x"}
    )

    assert fault.endswith(".env: line 4, 5 cannot be read; allowed: lines such as WORKERS=4, in UTF-8")
    assert other.startswith("SYNC:")


@pytest.mark.parametrize(
    "line",
    [
        "GRACE",
        "export GRACE",
        "WORKERS: 4",
        "workers 4",
        "=4",
        "\ufeffWORKERS=4",
        "WORK\u00adERS=4",
        "{",
        "'x'",
    ],
)
def test_a_line_that_means_nothing_is_told_with_file_and_line(dotenv, line):
    """It would be skipped, and the default count."""
    (fault,) = faults(dotenv=dotenv(f"# a\n\nSYNC=full\n{line}\nPORT=1\n"))

    assert fault.endswith(".env: line 4 cannot be read; allowed: lines such as WORKERS=4, in UTF-8")


@pytest.mark.parametrize(
    "text", ["", "\n\n", "# only\n", "A=", "A=''", "x.y-z=1", "A=b\r\nPORT=9\r\n", "  A = b # c"]
)
def test_other_lines_of_a_dotenv_are_no_fault(dotenv, text):
    loaded(dotenv=dotenv(text))


@pytest.mark.parametrize("encoding", ["utf-16", "utf-16-le", "utf-16-be", "utf-32"])
def test_a_dotenv_in_utf_16_is_told_so(tmp_path, encoding):
    (tmp_path / ".env").write_bytes("WORKERS=4\n".encode(encoding))

    (fault,) = faults(dotenv=tmp_path / ".env")

    assert ".env: line 1 is not UTF-8 text, but looks like UTF-16: save the file as UTF-8" in fault


@pytest.mark.parametrize(("content", "line"), [(b"PORT=\xff", 1), (b"A=1\nB=2\nname=J\xf6rg\n", 3)])
def test_a_dotenv_with_bytes_that_are_no_text_is_told_with_the_line(tmp_path, content, line):
    (tmp_path / ".env").write_bytes(content)

    (fault,) = faults(dotenv=tmp_path / ".env")

    assert f".env: line {line} is not UTF-8 text (byte 0x" in fault


def test_a_dotenv_that_the_system_refuses_is_a_fault(tmp_path):
    # A name that is too long, because root, whom no permission stops, may run this.
    (fault,) = faults(dotenv=tmp_path / ("x" * 300))

    assert "cannot be read: File name too long" in fault


def test_a_long_value_is_cut():
    (fault,) = faults({"workers": "x" * 10_000})

    assert len(fault) < 250


@pytest.mark.parametrize(
    ("text", "masked"),
    [
        ("sqlite:jobpipe.db", "sqlite:jobpipe.db"),
        ("postgresql://db/jobs", "postgresql://db/jobs"),
        ("postgresql://joe@db/jobs", "postgresql://joe@db/jobs"),
        ("postgresql://joe:pw@db/jobs", "postgresql://joe:***@db/jobs"),
        (
            "postgresql://db/jobs?user=joe&password=pw&sslmode=on",
            "postgresql://db/jobs?user=joe&password=***&sslmode=on",
        ),
    ],
)
def test_passwords_are_masked(text, masked):
    assert mask(text) == masked


# --- where the service is ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("given_url", "environ", "url"),
    [
        ("http://a:1/", {"JOBPIPE_URL": "http://b"}, "http://a:1"),
        (None, {"JOBPIPE_URL": "https://b/jobs/", "PORT": "9"}, "https://b/jobs"),
        (None, {"PORT": "9000", "WORKERS": "wrong, but not asked"}, "http://127.0.0.1:9000"),
        (None, {"HOST": "0.0.0.0"}, "http://127.0.0.1:8080"),
        (None, {"HOST": "::"}, "http://127.0.0.1:8080"),
        (None, {"HOST": "::1, 10.0.0.1"}, "http://[::1]:8080"),
        (None, {"HOST": "fe80::1%eth0"}, "http://[fe80::1%eth0]:8080"),
    ],
)
def test_the_service_is_found_by_flag_variable_or_settings(given_url, environ, url):
    assert service_url(given_url, environ, NOWHERE) == url


@pytest.mark.parametrize(
    ("given_url", "environ"),
    [
        ("file:///etc/passwd", {}),
        ("here:8080", {}),
        ("", {}),
        (None, {"JOBPIPE_URL": "http://joe:pw@x"}),
        (None, {"PORT": "0"}),
        (None, {"PORT": "x"}),
    ],
)
def test_a_url_that_cannot_be_asked_is_refused(given_url, environ):
    with pytest.raises(SettingsError) as caught:
        service_url(given_url, environ, NOWHERE)

    assert "allowed" in str(caught.value)
    assert "pw" not in str(caught.value)
