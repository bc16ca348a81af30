"""The command `jobpipe`. A verb is a function under `@app.command` that returns its exit code.

What only one verb needs is imported inside it: `jobpipe health` runs every few seconds in a container.
"""

import inspect
import json
import sys
from collections.abc import Callable, Sequence
from typing import Annotated, Any, TypeVar

from cyclopts import App, CycloptsError, Parameter

from jobpipe.errors import JobpipeError
from jobpipe.settings import SETTINGS, Loaded, Setting, Settings, load, service_url

OK = 0
UNHEALTHY = 1
WRONG = 2
INTERRUPTED = 130
"""As shells report the end by Ctrl+C: 128 and the signal's number."""

HEALTH_TIMEOUT = 3.0
HEALTH_LENGTH = 2**20
"""Seconds to wait for the response of /health, and bytes of it that are read: something else may listen there."""

WAIT, USUAL_WAIT = "--wait", "1m"
"""The flag that may stand without a value, and what it means then."""

Verb = TypeVar("Verb", bound=Callable[..., int])


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the verb named in `arguments` (the command line's own by default) and return the exit code.

    What is wrong with the call, the settings or the store is one message on stderr and exit code 2.
    """
    given = sys.argv[1:] if arguments is None else arguments
    try:
        return int(app(_with_waits(given), print_error=False, exit_on_error=False))
    except CycloptsError as error:
        return _complain(f"{error}\nSee: jobpipe --help")
    except (JobpipeError, KeyboardInterrupt, BaseExceptionGroup) as error:
        return _explain(error)


def _with_waits(arguments: Sequence[str]) -> list[str]:
    """The arguments, with the usual time for a `--wait` that names none: other flags always have a value."""
    following = [*arguments[1:], "--"]
    return [
        f"{WAIT}={USUAL_WAIT}" if each == WAIT and after.startswith("-") else each
        for each, after in zip(arguments, following, strict=True)
    ]


def _version() -> str:
    from jobpipe.version import VERSION  # noqa: PLC0415 - 25 ms that no other verb needs here

    return VERSION


app = App(
    name="jobpipe",
    help="A background-job service: POST jobs over HTTP, and a pool of workers runs them with retries and backoff.",
    version=_version,
    result_action="return_int_as_exit_code_else_zero",
)


def _settings_as_flags(verb: Verb) -> Verb:
    """Give `verb` a flag for each setting, which it gets as texts in its `**flags`; `load` reads them.

    Texts, because the parser of the command line would stop at the first wrong one.
    """
    own = [each for each in inspect.signature(verb).parameters.values() if each.kind is not each.VAR_KEYWORD]
    signature = inspect.Signature([*own, *map(_flag, SETTINGS)])
    verb.__signature__ = signature  # type: ignore[attr-defined]  # what inspect.signature asks first
    return verb


def _flag(setting: Setting) -> inspect.Parameter:
    parameter = Parameter(
        name=setting.flag,
        help=f"{setting.help} Allowed: {setting.allowed}.",
        show_default=lambda _: setting.default,
        allow_leading_hyphen=True,  # so that --port -1 is told what is allowed
    )
    return inspect.Parameter(
        setting.name,
        inspect.Parameter.KEYWORD_ONLY,
        default=None,
        annotation=Annotated[str | None, parameter],
    )


@app.command
@_settings_as_flags
def serve(**flags: str | None) -> int:
    """Run the service until it gets SIGINT (Ctrl+C), SIGTERM or SIGHUP.

    Each setting can also be given in the environment or in a file .env in the working directory: --queue-size as
    QUEUE_SIZE or JOBPIPE_QUEUE_SIZE. --wait is WAIT_FOR_STORE; without a value it waits one minute.
    """
    settings = load(flags).settings
    from jobpipe import logs  # noqa: PLC0415 - after the settings, so that wrong ones are told at once

    logs.configure(settings.log_level, settings.log_format)
    import trio  # noqa: PLC0415 - see above

    from jobpipe.service import run_service  # noqa: PLC0415 - see above

    return trio.run(run_service, settings)


@app.command
@_settings_as_flags
def migrate(**flags: str | None) -> int:
    """Create or update the tables of the store, then exit.

    For PostgreSQL, where the service itself may run as a user who cannot create tables. `serve` does the same when it
    starts.
    """
    settings = load(flags).settings
    from jobpipe.service import migrate_store  # noqa: PLC0415 - see above

    _say(migrate_store(settings, _complain))
    return OK


@app.command
@_settings_as_flags
def config(
    *,
    as_json: Annotated[
        bool, Parameter(name="--json", negative="", help="Print JSON: seconds, bytes, lists.")
    ] = False,
    **flags: str | None,
) -> int:
    """Print the settings in force and where each came from, then check that the handlers can be loaded."""
    loaded = load(flags)
    _say(_as_json(loaded) if as_json else _as_table(loaded))
    _check_handlers(loaded.settings)
    return OK


def _check_handlers(settings: Settings) -> None:
    """Load the handlers as `serve` does; raises `HandlerError`. A module without handlers is a warning on stderr."""
    if not settings.handlers:
        return
    from jobpipe.handlers import registry  # noqa: PLC0415 - imports what handlers need: only where there are some

    for module in registry.load(settings.handlers, shipped=settings.shipped_kinds == "on").without:
        _complain(f"warning: HANDLERS: {registry.without_handlers(module)}")


def _as_table(loaded: Loaded) -> str:
    rows = [
        (
            each.variable,
            each.form.show(getattr(loaded.settings, each.name)) or "none",
            loaded.origins[each.name],
        )
        for each in SETTINGS
    ]
    widths = [max(len(row[column]) for row in rows) for column in (0, 1)]
    return "\n".join(f"{name:{widths[0]}}  {value:{widths[1]}}  {origin}" for name, value, origin in rows)


def _as_json(loaded: Loaded) -> str:
    return json.dumps(
        {
            each.name: {
                "value": each.form.plain(getattr(loaded.settings, each.name)),
                "origin": loaded.origins[each.name],
            }
            for each in SETTINGS
        },
        indent=2,
    )


@app.command
def health(
    *, url: Annotated[str | None, Parameter(help="URL of the service; default: JOBPIPE_URL.")] = None
) -> int:
    """Check the health of a running service: exit code 0 if it is healthy, else 1.

    Without --url and JOBPIPE_URL, the service at HOST and PORT is checked.
    """
    base = service_url(url)
    well, words = _ask(base)
    _say(f"{words} ({base})")
    return OK if well else UNHEALTHY


def _ask(base: str) -> tuple[bool, str]:
    """Whether the service at `base` is healthy, and a line about it."""
    import http.client  # noqa: PLC0415 - 30 ms that no other verb needs
    import urllib.error  # noqa: PLC0415 - see above
    import urllib.request  # noqa: PLC0415 - see above

    # Without proxies: the answer must come from the service, not from a box on the way.
    opener = urllib.request.build_opener(urllib.request.ProxyHandler({}))
    try:
        with opener.open(f"{base}/health", timeout=HEALTH_TIMEOUT) as answer:
            return _judge(answer.status, answer.read(HEALTH_LENGTH))
    except urllib.error.HTTPError as error:
        with error:
            return _judge(error.code, error.read(HEALTH_LENGTH))
    except (OSError, http.client.HTTPException, ValueError) as error:
        return False, _silence(error)


def _judge(code: int, body: bytes) -> tuple[bool, str]:
    try:
        told = json.loads(body)
    except ValueError:
        told = None
    if not isinstance(told, dict):
        return False, f"this is not jobpipe: something else answered with HTTP {code}"
    counts = ", ".join(f"{told[name]} {name}" for name in ("workers", "busy", "queued") if name in told)
    status = told.get("status")
    match code, status if isinstance(status, str) else "broken":  # the status of a problem is a number
        case 200, word:
            return True, f"{word}: {counts}"
        case _, "draining":
            return False, f"draining: finishing active jobs, taking no new ones; {counts}"
        case _, word:
            return False, f"{word}: {_why(told, code)}"


def _why(told: dict[str, Any], code: int) -> str:
    """What /health found, or the detail of a problem when something else went wrong on the way to it."""
    return str(told.get("detail") or told.get("title") or f"HTTP {code}")


def _silence(error: Exception) -> str:
    """Why there was no answer. urllib wraps what happened while it connected, but not what came later."""
    reason = getattr(error, "reason", error)
    match reason:
        case ConnectionRefusedError():
            return "nothing listens there"
        case TimeoutError():
            return f"no response within {HEALTH_TIMEOUT:g} s"
        case _:
            return f"no response: {reason or type(reason).__name__}"


def _say(text: str) -> None:
    print(text)  # noqa: T201 - what a verb has to say goes to stdout


def _complain(text: str) -> int:
    print(f"jobpipe: {text}", file=sys.stderr)  # noqa: T201 - before the logs, and not for machines
    return WRONG


def _explain(error: BaseException) -> int:
    """Messages instead of tracebacks for what was to be expected; anything else is raised again.

    Nurseries wrap errors in groups, even a single one.
    """
    leaves = _leaves(error)
    if not all(isinstance(each, JobpipeError | KeyboardInterrupt) for each in leaves):
        raise error
    return max(
        INTERRUPTED if isinstance(each, KeyboardInterrupt) else _complain(str(each)) for each in leaves
    )


def _leaves(error: BaseException) -> list[BaseException]:
    if isinstance(error, BaseExceptionGroup):
        return [leaf for each in error.exceptions for leaf in _leaves(each)]
    return [error]
