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
from jobpipe.settings import SETTINGS, Loaded, Setting, load, service_url

OK = 0
UNHEALTHY = 1
WRONG = 2
INTERRUPTED = 130
"""As shells report the end by Ctrl+C: 128 and the signal's number."""

HEALTH_TIMEOUT = 3.0
HEALTH_LENGTH = 2**20
"""Seconds to wait for an answer of /health, and bytes of it that are read: something else may listen there."""

Verb = TypeVar("Verb", bound=Callable[..., int])


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the verb named in `arguments` (the command line's own by default) and return the exit code.

    What is wrong with the call, the settings or the store is one message on stderr and exit code 2.
    """
    try:
        return int(app(arguments, print_error=False, exit_on_error=False))
    except CycloptsError as error:
        return _complain(f"{error}\nSee: jobpipe --help")
    except (JobpipeError, KeyboardInterrupt, BaseExceptionGroup) as error:
        return _explain(error)


def _version() -> str:
    from jobpipe.version import VERSION  # noqa: PLC0415 - 25 ms that no other verb needs here

    return VERSION


app = App(
    name="jobpipe",
    help="A background-job service: curl a job in, curl its status out.",
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
    """Run the service until it is told to stop.

    Every setting can also stand in the environment or in a file .env here: --queue-size is QUEUE_SIZE, or
    JOBPIPE_QUEUE_SIZE.
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
    """Make the tables of the store, or bring them up to date, and end.

    For PostgreSQL, where the service itself may run as a user who must not make tables. `serve` does the same at its
    start.
    """
    settings = load(flags).settings
    from jobpipe.service import migrate_store  # noqa: PLC0415 - see above

    _say(migrate_store(settings))
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
    """Print the settings in force and where each came from."""
    loaded = load(flags)
    _say(_as_json(loaded) if as_json else _as_table(loaded))
    return OK


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
                "value": _plain(each, getattr(loaded.settings, each.name)),
                "origin": loaded.origins[each.name],
            }
            for each in SETTINGS
        },
        indent=2,
    )


def _plain(setting: Setting, value: object) -> object:
    return setting.form.show(value) if isinstance(value, str) else value


@app.command
def health(
    *, url: Annotated[str | None, Parameter(help="Where the service is; JOBPIPE_URL else.")] = None
) -> int:
    """Ask the service how it is; the exit code is 0 when it is well, else 1.

    Without --url and JOBPIPE_URL it is looked for at HOST and PORT.
    """
    base = service_url(url)
    well, words = _ask(base)
    _say(f"{words} ({base})")
    return OK if well else UNHEALTHY


def _ask(base: str) -> tuple[bool, str]:
    """Whether the service at `base` is well, and a word on it."""
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
        return False, f"no jobpipe answers there, but something else: HTTP {code}"
    counts = ", ".join(f"{told[name]} {name}" for name in ("workers", "busy", "queued") if name in told)
    status = told.get("status")
    match code, status if isinstance(status, str) else "broken":  # the status of a problem is a number
        case 200, word:
            return True, f"{word}: {counts}"
        case _, "draining":
            return False, f"draining: finishes its active jobs, takes no new ones; {counts}"
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
            return "nobody listens there"
        case TimeoutError():
            return f"no answer within {HEALTH_TIMEOUT:g} s"
        case _:
            return f"no answer: {reason or type(reason).__name__}"


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
