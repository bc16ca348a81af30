"""The command line: verbs, exit codes, and what is said when something is wrong."""

import http.server
import json
import os
import re
import socket
import subprocess
import sys
import threading
import types
from contextlib import contextmanager

import pytest
import trio

from jobpipe import cli, logs
from jobpipe.errors import StoreError, StoreUnavailable
from jobpipe.settings import SETTINGS, Settings


@pytest.fixture(autouse=True)
def _own_world(tmp_path, monkeypatch):
    """An empty folder and none of the developer's own variables."""
    names = {setting.variable for setting in SETTINGS}
    for name in list(os.environ):
        if name in names or name.startswith("JOBPIPE_"):
            monkeypatch.delenv(name)
    monkeypatch.setenv("COLUMNS", "200")
    monkeypatch.chdir(tmp_path)


@pytest.fixture
def service(monkeypatch):
    """Make `jobpipe serve` run what the test sets as `run`, and note how the logs were set up."""
    module = types.ModuleType("jobpipe.service")
    told = types.SimpleNamespace(settings=None, logs=None, run=None)

    async def run_service(settings):
        told.settings = settings
        return await told.run()

    module.__dict__["run_service"] = run_service
    monkeypatch.setitem(sys.modules, "jobpipe.service", module)
    monkeypatch.setattr(logs, "configure", lambda *arguments: setattr(told, "logs", arguments))
    return told


@contextmanager
def answering(code, body):
    """A server that answers every GET with `code` and `body`; its URL, and the paths that it was asked for."""
    paths = []

    class Handler(http.server.BaseHTTPRequestHandler):
        def do_GET(self):
            paths.append(self.path)
            self.send_response(code)
            self.end_headers()
            self.wfile.write(body if isinstance(body, bytes) else json.dumps(body).encode())

        def log_message(self, *_):
            pass

    with http.server.HTTPServer(("127.0.0.1", 0), Handler) as server:
        thread = threading.Thread(target=server.serve_forever, args=(0.01,))
        thread.start()
        try:
            yield f"http://127.0.0.1:{server.server_port}", paths
        finally:
            server.shutdown()
            thread.join()


# --- config -----------------------------------------------------------------------------------------------------------


def test_migrate_says_what_it_did(capsys):
    code = cli.main(["migrate", "--store", "sqlite:jobs.db"])

    assert code == cli.OK
    assert (
        capsys.readouterr().out == "sqlite:jobs.db needs no migration: its tables are created at the start\n"
    )


def test_migrate_tells_in_words_why_it_could_not(capsys, tmp_path):
    code = cli.main(["migrate", "--store", f"postgresql://joe:secret@/jobs?host={tmp_path}"])
    said = capsys.readouterr()

    assert (code, said.out) == (cli.WRONG, "")
    assert said.err.startswith("jobpipe: postgresql://joe@/jobs?host=")
    assert "secret" not in said.err


def test_config_prints_each_setting_with_its_origin_in_columns(capsys, monkeypatch):
    monkeypatch.setenv("GRACE", "1.5m")

    assert cli.main(["config", "--workers", "8", "--handlers=json,jobpipe.handlers.echo"]) == 0

    lines = capsys.readouterr().out.splitlines()
    assert [line.split()[0] for line in lines] == [setting.variable for setting in SETTINGS]
    assert [line.split() for line in lines if line.startswith(("WORKERS", "HANDLERS", "GRACE"))] == [
        ["WORKERS", "8", "flag", "--workers"],
        ["HANDLERS", "json,jobpipe.handlers.echo", "flag", "--handlers"],
        ["GRACE", "90s", "environment", "GRACE"],
    ]


def test_config_loads_the_handlers_as_serve_does(capsys, tmp_path):
    """What it prints comes first: the settings are right, and help to see what is wrong."""
    (tmp_path / "broken_one.py").write_text("\n1 / 0\n")

    for name, words in (("nope", "no module 'nope'"), ("broken_one", 'broken_one.py", line 2')):
        assert cli.main(["config", "--handlers", name]) == 2

        told = capsys.readouterr()
        assert "WORKERS" in told.out
        assert told.err.startswith(f"jobpipe: HANDLERS: cannot import '{name}': ")
        assert words in told.err


def test_config_warns_of_a_module_without_handlers(capsys):
    """On stderr, so that its JSON stays JSON."""
    assert cli.main(["config", "--json", "--handlers", "json"]) == 0

    told = capsys.readouterr()
    assert json.loads(told.out)["handlers"]["value"] == ["json"]
    assert told.err.startswith("jobpipe: warning: HANDLERS: module 'json' defines no handler")


@pytest.mark.parametrize(
    ("arguments", "seconds"),
    [
        (["--wait"], 60),
        (["--wait", "--workers", "2"], 60),
        (["--wait", "5"], 5),
        (["--wait=2m"], 120),
        (["--workers", "2", "--wait"], 60),
        (["--wait", "0"], 0),
        ([], 0),
    ],
)
def test_a_wait_may_name_its_seconds_or_not(capsys, arguments, seconds):
    """A bare flag means a minute."""
    assert cli.main(["config", "--json", *arguments]) == 0

    assert json.loads(capsys.readouterr().out)["wait_for_store"]["value"] == seconds


def test_a_wait_that_is_no_duration_is_told(capsys):
    assert cli.main(["serve", "--wait", "soon"]) == 2
    assert "WAIT_FOR_STORE: 'soon' (from flag --wait) is not allowed" in capsys.readouterr().err


def test_migrate_tries_again_while_the_database_cannot_be_reached(capsys, monkeypatch):
    """With a line each time, and then does it."""
    answers = iter([StoreUnavailable("connection refused"), StoreUnavailable("starting up"), "done"])

    def migrate(_store):
        answer = next(answers)
        if isinstance(answer, Exception):
            raise answer
        return answer

    monkeypatch.setattr("jobpipe.store.factory.migrate", migrate)
    monkeypatch.setattr("jobpipe.service.TRY_AGAIN", 0.0)

    assert cli.main(["migrate", "--wait"]) == 0

    told = capsys.readouterr()
    assert told.out == "done\n"
    assert re.fullmatch(
        r"jobpipe: waiting for the store, \d+ seconds left: connection refused\n"
        r"jobpipe: waiting for the store, \d+ seconds left: starting up\n",
        told.err,
    )


@pytest.mark.parametrize("wait", [[], ["--wait", "0.001"]])
def test_migrate_gives_up_when_its_time_is_over(capsys, monkeypatch, wait):
    """At once when there is none."""

    def migrate(_store):
        raise StoreUnavailable("connection refused")

    monkeypatch.setattr("jobpipe.store.factory.migrate", migrate)

    assert cli.main(["migrate", *wait]) == 2
    assert capsys.readouterr().err.splitlines()[-1] == "jobpipe: connection refused"


def test_config_prints_json_with_seconds_bytes_and_lists(capsys, tmp_path):
    (tmp_path / ".env").write_text("KEEP_DONE=1d\n")

    assert cli.main(["config", "--json"]) == 0

    told = json.loads(capsys.readouterr().out)
    assert told["keep_done"] == {"value": 86_400.0, "origin": ".env KEEP_DONE"}
    assert told["max_body"] == {"value": 1_048_576, "origin": "default"}
    assert told["handlers"] == {"value": [], "origin": "default"}
    assert list(told) == [setting.name for setting in SETTINGS]


def test_config_tells_all_faults_on_stderr_with_exit_code_2(capsys):
    assert cli.main(["config", "--workers", "many", "--port", "-1"]) == 2

    captured = capsys.readouterr()
    assert captured.out == ""
    assert captured.err.startswith("jobpipe: the settings are wrong:\n  WORKERS: 'many'")
    assert captured.err.count("\n") == 3


# --- help, version, usage ---------------------------------------------------------------------------------------------


def test_help_names_the_verbs(capsys):
    assert cli.main(["--help"]) == 0

    out = capsys.readouterr().out
    assert all(verb in out for verb in ("serve", "config", "health"))


def test_help_of_serve_shows_each_flag_with_its_default_and_what_is_allowed(capsys):
    assert cli.main(["serve", "--help"]) == 0

    # The table's frame and its breaks of lines are not what is promised.
    out = " ".join(capsys.readouterr().out.replace("│", " ").split())
    for setting in SETTINGS:
        assert setting.flag in out
        assert f"{setting.help} Allowed: {setting.allowed}. [default: {setting.default}]" in out


def test_version_is_that_of_the_package(capsys, monkeypatch):
    version = types.ModuleType("jobpipe.version")
    version.__dict__["VERSION"] = "1.2.3rc1"
    monkeypatch.setitem(sys.modules, "jobpipe.version", version)

    assert cli.main(["--version"]) == 0
    assert capsys.readouterr().out == "1.2.3rc1\n"


@pytest.mark.parametrize(
    "arguments", [["serve", "--worker", "3"], ["srve"], ["serve", "--port"], ["health", "x"]]
)
def test_a_wrong_call_is_one_message_with_exit_code_2(capsys, arguments):
    assert cli.main(arguments) == 2

    err = capsys.readouterr().err
    assert err.startswith("jobpipe: ")
    assert err.endswith("See: jobpipe --help\n")


# --- serve ------------------------------------------------------------------------------------------------------------


def test_serve_runs_the_service_with_the_settings_and_returns_its_exit_code(service):
    async def run():
        await trio.lowlevel.checkpoint()
        return 7

    service.run = run

    assert cli.main(["serve", "--store", "memory:", "--log-format", "json"]) == 7
    assert service.settings == Settings(store="memory:", log_format="json")
    assert service.logs == ("info", "json")


def test_serve_starts_nothing_with_wrong_settings(service, capsys):
    assert cli.main(["serve", "--sync", "maybe"]) == 2
    assert service.settings is None
    assert "SYNC: 'maybe'" in capsys.readouterr().err


def test_an_expected_error_is_one_message_even_out_of_nested_nurseries(service, capsys):
    async def run():
        async with trio.open_nursery(), trio.open_nursery():
            raise StoreError("jobs.db is no database")

    service.run = run

    assert cli.main(["serve"]) == 2
    assert capsys.readouterr().err == "jobpipe: jobs.db is no database\n"


def test_ctrl_c_before_the_service_owns_the_signals_is_quiet(service, capsys):
    async def run():
        async with trio.open_nursery():
            raise KeyboardInterrupt

    service.run = run

    assert cli.main(["serve"]) == 130
    assert capsys.readouterr().err == ""


def test_an_unexpected_error_keeps_its_traceback(service):
    async def run():
        async with trio.open_nursery() as nursery:
            nursery.start_soon(fail, StoreError("expected"))
            nursery.start_soon(fail, ZeroDivisionError())

    async def fail(error):
        raise error

    service.run = run

    with pytest.raises(ExceptionGroup) as caught:
        cli.main(["serve"])
    assert caught.group_contains(ZeroDivisionError)


# --- health -----------------------------------------------------------------------------------------------------------


def test_health_of_a_service_that_is_well(capsys):
    with answering(200, {"status": "ok", "workers": 4, "busy": 1, "queued": 9}) as (url, paths):
        assert cli.main(["health", "--url", url + "/"]) == 0

    assert capsys.readouterr().out == f"ok: 4 workers, 1 busy, 9 queued ({url})\n"
    assert paths == ["/health"]


def test_health_finds_the_service_by_jobpipe_url_past_any_proxy(capsys, monkeypatch):
    monkeypatch.setenv("http_proxy", "http://127.0.0.1:1")
    with answering(200, {"status": "ok"}) as (url, _):
        monkeypatch.setenv("JOBPIPE_URL", url)

        assert cli.main(["health"]) == 0

    assert url in capsys.readouterr().out


@pytest.mark.parametrize(
    ("code", "body", "words"),
    [
        (
            503,
            {"status": "draining", "busy": 2},
            "draining: finishing active jobs, taking no new ones; 2 busy",
        ),
        (503, {"status": "broken", "detail": "the store is silent"}, "broken: the store is silent"),
        (503, {"status": "starting", "detail": None}, "starting: HTTP 503"),
        (500, {"title": "Internal Server Error", "status": 500}, "broken: Internal Server Error"),
        (500, {}, "broken: HTTP 500"),
        (404, b"<html>", "this is not jobpipe: something else answered with HTTP 404"),
        (200, b"hello", "this is not jobpipe: something else answered with HTTP 200"),
    ],
)
def test_health_says_what_is_not_well(capsys, code, body, words):
    with answering(code, body) as (url, _):
        assert cli.main(["health", "--url", url]) == 1

    assert capsys.readouterr().out == f"{words} ({url})\n"


def test_health_says_when_nobody_listens(capsys):
    with socket.socket() as taken:  # bound, but not listening: the port is nobody else's meanwhile
        taken.bind(("127.0.0.1", 0))
        url = f"http://127.0.0.1:{taken.getsockname()[1]}"

        assert cli.main(["health", "--url", url]) == 1

    assert capsys.readouterr().out == f"nothing listens there ({url})\n"


def test_health_does_not_wait_for_ever(capsys, monkeypatch):
    monkeypatch.setattr(cli, "HEALTH_TIMEOUT", 0.01)
    with socket.socket() as silent:
        silent.bind(("127.0.0.1", 0))
        silent.listen()
        url = f"http://127.0.0.1:{silent.getsockname()[1]}"

        assert cli.main(["health", "--url", url]) == 1

    assert capsys.readouterr().out == f"no response within 0.01 s ({url})\n"


def test_health_without_a_url_to_ask_is_a_fault(capsys, monkeypatch):
    monkeypatch.setenv("PORT", "0")

    assert cli.main(["health"]) == 2
    assert "PORT: 0 is any free port" in capsys.readouterr().err


# --- the real process -------------------------------------------------------------------------------------------------


def test_python_m_jobpipe_is_the_command(tmp_path):
    """The one real process: `python -m jobpipe`, its environment, its `.env` and its exit code."""
    (tmp_path / ".env").write_text("WORKERS=8\n")
    root = os.path.dirname(os.path.dirname(cli.__file__))  # noqa: PTH120 - for an environment, which holds texts
    command = [sys.executable, "-m", "jobpipe", "config", "--json"]

    def run(**variables):
        environ = os.environ | {"PYTHONPATH": root} | variables
        return subprocess.run(command, env=environ, capture_output=True, text=True, check=False)

    good, bad = run(PORT="9000"), run(JOBPIPE_PRT="9000")

    assert good.returncode == 0, good.stderr
    assert json.loads(good.stdout)["workers"] == {"value": 8, "origin": ".env WORKERS"}
    assert json.loads(good.stdout)["port"] == {"value": 9000, "origin": "environment PORT"}
    assert (bad.returncode, bad.stdout) == (2, "")
    assert "did you mean JOBPIPE_PORT?" in bad.stderr
