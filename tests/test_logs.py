"""Log lines: what is written, how, and that nothing in them does harm."""

import contextvars
import io
import json
import logging
import re
import sys
import threading

import pytest
import structlog
from hypercorn.config import Config
from structlog.testing import capture_logs

from jobpipe import logs
from jobpipe.engine.attempt import Attempt
from tests.engine.conftest import claimed


@pytest.fixture(autouse=True)
def _restored():
    """Leave structlog and `logging` as they were."""
    root = logging.getLogger()
    level = root.level
    structlog.reset_defaults()
    yield
    structlog.reset_defaults()
    root.setLevel(level)
    for name in logs.QUIET:
        logging.getLogger(name).setLevel(logging.NOTSET)
    root.handlers = [each for each in root.handlers if not isinstance(each, logs._ToStructlog)]


@pytest.fixture
def lines(capsys):
    def read():
        return capsys.readouterr().err.splitlines()

    return read


def while_handling(error, call, *arguments, **keywords):
    """Call while `error` is what an `except` handles."""
    try:
        raise error
    except type(error):
        call(*arguments, **keywords)


def test_console_lines_say_time_level_event_and_what_it_is_about(lines):
    logs.configure("info", "console")

    structlog.get_logger("jobpipe").info("job failed", job="t1", kind="echo", attempt=2, why="it was late")

    (line,) = lines()
    assert re.match(r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d\.\d{3}Z \[info     \] job failed ", line)
    assert line.endswith("job=t1 kind=echo attempt=2 why='it was late'")


def test_colours_are_for_terminals(monkeypatch):
    class Terminal(io.StringIO):
        def isatty(self):
            return True

    terminal = Terminal()
    monkeypatch.setattr(sys, "stderr", terminal)
    logs.configure("info", "console")

    structlog.get_logger().info("hello")

    assert "\x1b[" in terminal.getvalue()


def test_json_lines_have_the_same_in_fields(lines):
    logs.configure("info", "json")

    structlog.get_logger().warning("job failed", job="t1", attempt=2)

    (line,) = lines()
    told = json.loads(line)
    assert list(told) == ["timestamp", "level", "event", "job", "attempt"]
    assert re.fullmatch(r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d\.\d{3}Z", told.pop("timestamp"))
    assert told == {"level": "warning", "event": "job failed", "job": "t1", "attempt": 2}


@pytest.mark.parametrize(
    "value", [object(), {1, 2}, {(1, 2): 3}, b"\xff", "\ud800", {"deep": {"er": {(): 0}}}]
)
def test_what_json_cannot_hold_is_written_all_the_same(lines, value):
    logs.configure("info", "json")

    structlog.get_logger().info("odd", value=value)

    (line,) = lines()
    assert json.loads(line)["event"] == "odd"


def test_a_value_that_holds_itself_is_written_all_the_same(lines):
    logs.configure("info", "json")
    loop: list[object] = []
    loop.append(loop)

    structlog.get_logger().info("odd", value=loop)

    (line,) = lines()
    assert json.loads(line)["value"] == "[[...]]"


def test_lines_below_the_level_are_not_written(lines):
    logs.configure("warning", "console")
    log = structlog.get_logger()

    log.debug("no")
    log.info("no")
    log.error("yes")

    assert ["yes" in line for line in lines()] == [True]


@pytest.mark.parametrize("log_format", ["console", "json"])
def test_an_exception_is_written_with_its_traceback_and_its_parts(lines, log_format):
    logs.configure("info", log_format)

    group = ExceptionGroup("many", [ValueError("one of them")])
    while_handling(group, structlog.get_logger().exception, "attempt failed", job="t1")

    text = "\n".join(lines())
    assert "test_logs.py" in text
    assert "ValueError: one of them" in text
    assert log_format == "console" or text.count("\n") == 0


def test_nothing_logged_forges_a_line_or_steers_the_terminal(lines):
    logs.configure("info", "console")
    evil = "a\n2030-01-01 [info] all is well\x1b[2J\r\x9b"

    structlog.get_logger().info(evil, error=evil)
    while_handling(ValueError(evil), structlog.get_logger().exception, "failed")

    written = lines()
    assert len(written[0]) > 2 * len(evil)
    assert not any(set(line) & {"\x1b", "\r", "\x9b"} for line in written)


def test_a_kept_logger_follows_later_configurations_and_where_stderr_goes(lines, monkeypatch):
    """A module's logger outlives the pytest capture, the file, the format that it was first used with."""
    logs.configure("info", "console")
    log = structlog.get_logger("jobpipe")
    monkeypatch.setattr(sys, "stderr", io.StringIO())
    log.info("first")
    sys.stderr.close()
    monkeypatch.undo()

    logs.configure("info", "json")
    log.info("second")

    (line,) = lines()
    assert json.loads(line)["event"] == "second"


def test_a_kept_logger_can_be_captured(lines):
    logs.configure("info", "console")
    log = structlog.get_logger("jobpipe")
    log.info("first")
    lines()

    with capture_logs() as captured:
        log.info("second", job="t1")
    log.info("third")

    assert captured == [{"event": "second", "job": "t1", "log_level": "info"}]
    assert len(lines()) == 1


def test_a_stderr_that_is_gone_hurts_nobody(monkeypatch):
    logs.configure("info", "console")
    monkeypatch.setattr(sys, "stderr", io.StringIO())
    sys.stderr.close()

    structlog.get_logger().info("lost")


def test_what_others_log_goes_the_same_way_once_and_at_its_own_level(lines):
    logs.configure("info", "json")
    logs.configure("info", "json")
    library = logging.getLogger("some.library")

    library.debug("not this")
    library.info("sent %d", 5)
    library.warning("%s is odd", "this")
    library.log(35, "between the levels")
    while_handling(ValueError("inside"), library.exception, "broken")

    sent, odd, between, broken = map(json.loads, lines())
    assert (sent["level"], sent["event"], sent["logger"]) == ("info", "sent 5", "some.library")
    assert (odd["level"], odd["event"], odd["logger"]) == ("warning", "this is odd", "some.library")
    assert (between["level"], between["event"]) == ("warning", "between the levels")
    assert (broken["level"], broken["event"]) == ("error", "broken")
    assert "ValueError: inside" in broken["exception"]
    assert "exception" not in odd


def test_libraries_obey_the_level(lines):
    logs.configure("error", "console")

    logging.getLogger("some.library").warning("not this")

    assert lines() == []


def test_a_wrong_log_call_of_a_library_does_not_hurt_it(lines, monkeypatch):
    with monkeypatch.context() as patch:
        patch.setattr(logging.getLogger(), "handlers", [])  # pytest's own would raise
        logs.configure("info", "console")

        logging.getLogger("some.library").warning("%d", "no number")

    assert any("--- Logging error ---" in line for line in lines())


@pytest.mark.parametrize("level", ["debug", "info", "warning", "error"])
def test_each_level_is_the_least_that_others_write(lines, level):
    logs.configure(level, "json")
    library = logging.getLogger("some.library")
    names = ["debug", "info", "warning", "error"]

    library.log(5, "below all")
    for name in names:
        library.log(getattr(logging, name.upper()), name)

    assert [json.loads(line)["event"] for line in lines()] == names[names.index(level) :]


def test_the_libraries_that_jobpipe_uses_itself_are_quiet_at_any_level(lines):
    logs.configure("debug", "console")
    for name in logs.QUIET:
        logging.getLogger(f"{name}.some.part").info("not this")

    assert lines() == []


def test_lines_of_an_attempt_say_whose_it_is(lines):
    """Those of structlog, of `logging`, of threads: all but what says so itself."""
    logs.configure("info", "json")
    before = logs.performed.set(Attempt(claimed("j1", kind="mail", attempt=1)))
    logging.getLogger("shop").info("sent")
    structlog.get_logger().info("sent", job="other")
    thread = threading.Thread(
        target=contextvars.copy_context().run, args=(logging.getLogger("shop").info, "in a thread")
    )
    thread.start()
    thread.join()
    logs.performed.reset(before)
    logging.getLogger("shop").info("later")

    own, other, threaded, later = map(json.loads, lines())
    named = {"job": "j1", "kind": "mail", "attempt": 2}
    assert own.items() >= named.items()
    assert threaded.items() >= named.items()
    assert other.items() >= (named | {"job": "other"}).items()
    assert not named.keys() & later.keys()


def test_whether_a_level_is_written_can_be_asked():
    assert not logs.writes(logging.CRITICAL)  # nobody has said where to
    logs.configure("info", "json")

    assert (logs.writes(logging.DEBUG), logs.writes(logging.INFO)) == (False, True)


class Unspeakable:
    """Cannot be shown."""

    def __repr__(self):
        raise RuntimeError("no")


class Forging:
    """Shows as more than a line."""

    def __repr__(self):
        return "x\n2030-01-01T00:00:00.000Z [info     ] drained"


FORGED = "x\n2030-01-01T00:00:00.000Z [info     ] drained"


@pytest.mark.parametrize("log_format", ["console", "json"])
@pytest.mark.parametrize(
    "fields",
    [
        {"value": FORGED},
        {FORGED: 1},
        {"value": Forging()},
        {"value": [Forging()]},
        {"value": {FORGED: FORGED}},
        {"exception": FORGED},
        {"stack": FORGED},
        {"value": ValueError(FORGED)},
        {"value": Unspeakable()},
        {"value": [Unspeakable()]},
        {"value": "\u2028\x85\x1b[2J"},
    ],
    ids=range(11),
)
def test_no_field_forges_a_line_or_hurts_who_logs_it(lines, log_format, fields):
    logs.configure("info", log_format)

    structlog.get_logger().info("told", **fields)

    first, *others = lines()
    assert "told" in first
    assert not any(re.match(r"\d{4}-", line) for line in others)
    assert "\x1b" not in first


@pytest.mark.parametrize("log_format", ["console", "json"])
@pytest.mark.parametrize(
    "call",
    [
        lambda log: log.info(FORGED),
        lambda log: log.info("told %s", FORGED),
        lambda log: while_handling(ValueError(FORGED), log.exception, "told"),
        lambda log: log.info("told", stack_info=True),
    ],
    ids=range(4),
)
def test_no_record_of_logging_forges_a_line(lines, log_format, call):
    logs.configure("info", log_format)

    call(logging.getLogger("shop"))

    _, *others = lines()
    assert not any(re.match(r"\d{4}-", line) for line in others)


async def test_hypercorn_writes_through_structlog_when_it_is_given_its_logger(lines):
    logs.configure("info", "json")
    config = Config()
    config.errorlog = logging.getLogger("hypercorn.error")

    await config.log.info("Running on ...")
    await config.log.error("it broke")

    (line,) = lines()
    assert json.loads(line)["event"] == "it broke"
