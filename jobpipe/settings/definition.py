"""Every setting, once: flags, environment, `.env`, checks, `jobpipe config` and its docs derive from `Settings`."""

import dataclasses
import resource
import sys
import typing
from collections.abc import Iterator
from typing import Annotated, Any, Literal

import msgspec
from msgspec import Meta

from jobpipe.settings.forms import (
    DAY,
    EVERY_OTHER,
    AllowedHosts,
    BasePath,
    Duration,
    Form,
    Hosts,
    Instance,
    Modules,
    Reserved,
    Size,
    Store,
    Weights,
    Whole,
    is_loopback,
)

PREFIX = "JOBPIPE_"


def about(text: str, least: float | None = None, most: float | None = None) -> Meta:
    """What a setting does and, for a number, the least and the most that is allowed."""
    return Meta(description=text, ge=least, le=most)


@dataclasses.dataclass(frozen=True, kw_only=True)
class Settings:
    """What a node does and where. `load` checks the limits; who makes one by hand answers for the values.

    Durations are seconds, sizes are bytes. `max_backlog` and `max_connections` are never 0 afterwards, and `dashboard`
    is never empty: their defaults are filled in.
    """

    workers: Annotated[Whole, about("How many jobs run at the same time.", 1, 1000)] = 4
    queue_size: Annotated[
        Whole,
        about("How many claimed jobs wait in memory for a worker; 0 keeps priorities strict.", 0, 100_000),
    ] = 64
    store: Annotated[Store, about("Where jobs are stored.")] = "sqlite:jobpipe.db"
    wait_for_store: Annotated[
        Duration, about("How long to keep trying at the start while the store cannot be reached.", 0, DAY)
    ] = dataclasses.field(default=0.0, metadata={"flag": "--wait"})
    sync: Annotated[
        Literal["full", "normal"],
        about(
            "What acknowledged jobs survive: a power failure (full), or only the death of the process (normal)."
        ),
    ] = "full"
    host: Annotated[
        Hosts, about("The addresses to listen on; 0.0.0.0 means every IPv4 address, :: every address.")
    ] = ("127.0.0.1",)
    port: Annotated[Whole, about("The port to listen on; 0 takes any free one.", 0, 65_535)] = 8080
    allowed_hosts: Annotated[
        AllowedHosts, about("Names by which clients may address the service, besides localhost; * is any.")
    ] = ()
    base_path: Annotated[
        BasePath, about("The path under which a proxy publishes the service, if it isn't /.")
    ] = ""
    dashboard: Annotated[
        Literal["on", "read", "off"],
        about("Whether the dashboard is there: with buttons (on), read-only (read), or not at all (off)."),
    ] = dataclasses.field(
        default=typing.cast("Literal['on', 'read', 'off']", ""),
        metadata={"default": "on where HOST names this machine only, else read"},
    )
    show_payloads: Annotated[
        Literal["yes", "no"], about("Whether the dashboard shows payloads, results and logs of jobs.")
    ] = "yes"
    instance: Annotated[Instance, about("The name of this installation, for the dashboard's top bar.")] = ""
    max_connections: Annotated[Whole, about("How many connections may be open at once.", 1, 1_000_000)] = (
        dataclasses.field(
            default=0, metadata={"default": "what `ulimit -n` allows with room for handlers, at most 10000"}
        )
    )
    queues: Annotated[Weights, about("The queues from which jobs are taken, and with what weights.")] = (
        dataclasses.field(default=(), metadata={"default": "all of them, by priority"})
    )
    reserve: Annotated[Reserved, about("How many of the workers run jobs of one queue only.")] = ()
    handlers: Annotated[Modules, about("The Python modules that define your handlers.")] = ()
    shipped_kinds: Annotated[
        Literal["on", "off"],
        about("Whether the built-in kinds echo and demo exist; with off, every request must name its kind."),
    ] = "on"
    grace: Annotated[
        Duration, about("How long running jobs may go on after the first signal to stop.", 0, 30 * DAY)
    ] = 30.0
    lease: Annotated[
        Duration,
        about(
            "How long after its last heartbeat a node keeps its jobs; then other nodes take them over.",
            1,
            3600,
        ),
    ] = 15.0
    max_blocked: Annotated[
        Duration,
        about("How long a handler may block the event loop before the process ends.", 1, 30 * DAY),
    ] = 600.0
    max_backlog: Annotated[
        Whole, about("How many jobs may wait before new ones are rejected with 503.", 1, 10**9)
    ] = dataclasses.field(default=0, metadata={"default": "QUEUE_SIZE on memory: (at least 1), else 1000000"})
    max_body: Annotated[Size, about("The largest request body.", 1, 2**30)] = 2**20
    keep_done: Annotated[Duration, about("How long done jobs are kept.", 0, 3650 * DAY)] = 7.0 * DAY
    keep_failed: Annotated[
        Duration, about("How long failed, cancelled and expired jobs are kept.", 0, 3650 * DAY)
    ] = 30.0 * DAY
    keep_jobs: Annotated[
        Whole, about("How many ended jobs are kept; the oldest are deleted first.", 0, 10**9)
    ] = 1_000_000
    keep_bytes: Annotated[
        Size, about("How many bytes of payloads and results of ended jobs are kept.", 0, 2**40)
    ] = 2**30
    keep_audit: Annotated[
        Duration,
        about("How long the audit keeps what people did by hand; with 0 it is not written.", 0, 3650 * DAY),
    ] = 90.0 * DAY
    log_level: Annotated[
        Literal["debug", "info", "warning", "error"], about("The lowest level of log lines to write.")
    ] = "info"
    log_format: Annotated[
        Literal["console", "json"], about("Log lines for people (console) or for programs (json).")
    ] = "console"

    def __post_init__(self) -> None:
        if self.max_backlog == 0:
            default = max(self.queue_size, 1) if self.store == "memory:" else 1_000_000
            object.__setattr__(self, "max_backlog", default)
        if not self.dashboard:
            mode = "on" if all(map(is_loopback, self.host)) else "read"
            object.__setattr__(self, "dashboard", mode)
        if self.max_connections == 0:
            object.__setattr__(self, "max_connections", connections_for(open_files()))


def conflicts(settings: Settings) -> Iterator[str]:
    """What is wrong with settings that are each allowed but do not fit together, in words."""
    reserved = sum(workers for _, workers in settings.reserve)
    if reserved >= settings.workers:
        yield (
            f"RESERVE: {reserved} of {settings.workers} workers would be reserved; allowed: fewer than WORKERS, so "
            "that some are left for other jobs"
        )
    served = {queue for queue, _ in settings.queues}
    if served and EVERY_OTHER not in served:
        for queue, _ in settings.reserve:
            if queue not in served:
                yield f"RESERVE: {queue!r} is not in QUEUES, so this node would never take a job from it"


def open_files() -> int:
    """How many files this process may have open, sockets included (`ulimit -n`)."""
    soft, _ = resource.getrlimit(resource.RLIMIT_NOFILE)
    return sys.maxsize if soft == resource.RLIM_INFINITY else soft


def connections_for(files: int) -> int:
    """How many connections leave enough of so many files to the store and to handlers: 256, or three quarters."""
    return min(10_000, max(files - 256, files // 4, 1))


@dataclasses.dataclass(frozen=True)
class Setting:
    """One field of `Settings` as flags, environment, messages and docs see it."""

    name: str
    hint: Any
    form: Form
    limits: str
    help: str
    default: str
    flag: str
    """Its name on the command line."""

    @property
    def variable(self) -> str:
        """Its name in the environment; with `PREFIX` in front of it another one, which wins."""
        return self.name.upper()

    @property
    def allowed(self) -> str:
        """Which values are allowed, in words."""
        return self.form.words + self.limits

    def read(self, text: str) -> object:
        """The value that `text` stands for; ValueError when it is not allowed."""
        try:
            return msgspec.convert(self.form.read(text), self.hint)
        except msgspec.ValidationError as error:
            raise ValueError(text) from error


def _setting(field: dataclasses.Field[Any], hint: Any) -> Setting:  # noqa: ANN401 - a type form has no type yet
    metas = [part for part in hint.__metadata__ if isinstance(part, Meta)]
    form = next((part for part in hint.__metadata__ if isinstance(part, Form)), None) or _choice(hint)
    last = metas[-1]
    limits = "" if last.ge is None else f", from {form.show(last.ge)} to {form.show(last.le)}"
    default = field.metadata.get("default") or form.show(field.default) or "none"
    flag = field.metadata.get("flag") or "--" + field.name.replace("_", "-")
    return Setting(field.name, hint, form, limits, last.description or "", default, flag)


def _choice(hint: Any) -> Form:  # noqa: ANN401 - a type form has no type yet
    *rest, last = typing.get_args(hint.__origin__)
    return Form(f"{', '.join(rest)} or {last}", str.lower)


_HINTS = typing.get_type_hints(Settings, include_extras=True)
SETTINGS = tuple(_setting(field, _HINTS[field.name]) for field in dataclasses.fields(Settings))
