"""The service: HTTP in front, the node behind it, and the signals that end them in order."""

import gc
import os
import signal
import socket
import time
from collections.abc import AsyncIterator, Callable, Iterator, Sequence
from contextlib import AsyncExitStack, ExitStack, contextmanager

import structlog
import trio

from jobpipe.api.app import create_app
from jobpipe.api.limits import Limits
from jobpipe.api.listeners import listen, urls
from jobpipe.api.server import serve
from jobpipe.clock import Clock, WallClock
from jobpipe.engine.attempt import Attempt
from jobpipe.engine.node import CLEANUP, Node
from jobpipe.errors import StoreUnavailable
from jobpipe.handlers.registry import load, without_handlers
from jobpipe.settings import Settings, show_duration, show_numbered, show_weights
from jobpipe.settings.definition import open_files
from jobpipe.store import factory
from jobpipe.store.base import Rescued, SharedStore, Store
from jobpipe.store.factory import open_store
from jobpipe.version import VERSION

HTTP_GRACE = 3.0
"""Seconds that requests under way have to be answered, once every job has ended."""

GARBAGE = 10_000
"""New objects after which Python looks for garbage in circles; its usual 700 are two or three requests."""

SIGNALS = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)

TRY_AGAIN = 2.0
"""Seconds between two tries to open a store that cannot be reached yet."""

ECHO = 0.3
"""Seconds within which a signal is taken for the one before: `timeout`, `just` and terminals may deliver one twice."""

STUCK = 70
"""Exit code when handlers would not end and were abandoned (EX_SOFTWARE of sysexits.h)."""

log = structlog.get_logger("jobpipe")


async def run_service(settings: Settings) -> int:
    """Serve until a signal, then end in order: intake, jobs, outcomes, HTTP, store. Returns the exit code.

    The first SIGINT, SIGTERM or SIGHUP drains; after `GRACE` seconds, or at the second signal, active jobs are
    cancelled and handed back. Raises `JobpipeError` when the service cannot start.
    """
    with _heard() as signals, ExitStack() as sockets:
        # First of all, so that a taken port is reported before any job is touched.
        listeners = [sockets.enter_context(each) for each in listen(settings.host, settings.port)]
        registry = load(settings.handlers, shipped=settings.shipped_kinds == "on")
        for module in registry.without:
            log.warning(f"HANDLERS: {without_handlers(module)}")
        async with AsyncExitStack() as opened:
            store = await _open(opened, settings, signals)
            if store is None:
                return 0
            node, drained = Node(settings, store, registry, _clock(store)), trio.Event()
            async with trio.open_nursery() as front:
                rescued: Sequence[Rescued] = await front.start(_run_node, node, signals, drained)
                found_at = urls(listeners)
                front.start_soon(_serve, node, listeners, drained, front.cancel_scope)
                _announce(node, found_at, rescued)
                spare_the_collector()
                await drained.wait()
                await _another(signals)
                os._exit(0)  # only clients are left: nothing is lost
    return 0


async def _open(stack: AsyncExitStack, settings: Settings, signals: AsyncIterator[int]) -> Store | None:
    """The store, as soon as it can be opened, on the stack; None when a signal came while it could not.

    Raises `StoreError`; for trouble that may pass by itself only after `WAIT_FOR_STORE` seconds.
    """
    over = trio.current_time() + settings.wait_for_store
    while True:
        try:
            return await stack.enter_async_context(open_store(settings.store, settings.sync, settings.lease))
        except StoreUnavailable as error:
            if (left := over - trio.current_time()) <= 0:
                raise
            log.warning("waiting for the store", error=str(error), seconds_left=round(left))
        number = None
        with trio.move_on_after(min(TRY_AGAIN, left)):
            number = await anext(signals)
        if number is not None:
            log.info(f"{signal.Signals(number).name}: no longer waiting for the store")
            return None


def _clock(store: Store) -> Clock:
    """The clock that jobs go by: of a store that nodes share its own, so that all nodes have the same time."""
    if isinstance(store, SharedStore):
        shared = store
        return WallClock(lambda: shared.clock_offset)
    return WallClock()


def migrate_store(settings: Settings, tell: Callable[[str], object]) -> str:
    """Bring the tables of the store up to date; returns what was done, in words.

    Raises `StoreError`; of what will pass by itself only after `WAIT_FOR_STORE` seconds, and `tell` is called before
    each new try.
    """
    over = time.monotonic() + settings.wait_for_store
    while True:
        try:
            return factory.migrate(settings.store)
        except StoreUnavailable as error:
            if (left := over - time.monotonic()) <= 0:
                raise
            tell(f"waiting for the store, {left:.0f} seconds left: {error}")
        time.sleep(min(TRY_AGAIN, left))


@contextmanager
def _heard() -> Iterator[AsyncIterator[int]]:
    """The signals that end the service, as they come. After this they are ignored: an orderly end is reported as one.

    A SIGHUP that is ignored at the start stays so: that is what `nohup` asks for.
    """
    numbers = [
        number
        for number in SIGNALS
        if number is not signal.SIGHUP or signal.getsignal(number) is not signal.SIG_IGN
    ]
    # Trio puts back what was there before, and hands it what nobody has heard: by default the process dies of that.
    # Blocked meanwhile, so that none is lost in between.
    signal.pthread_sigmask(signal.SIG_BLOCK, numbers)
    for number in numbers:
        signal.signal(number, lambda _number, _frame: None)
    with trio.open_signal_receiver(*numbers) as signals:
        signal.pthread_sigmask(signal.SIG_UNBLOCK, numbers)
        yield signals
    for number in numbers:
        signal.signal(number, signal.SIG_IGN)  # unlike a function, it holds until the process has ended


async def _run_node(
    node: Node,
    signals: AsyncIterator[int],
    drained: trio.Event,
    *,
    task_status: trio.TaskStatus[Sequence[Rescued]],
) -> None:
    async with trio.open_nursery() as keepers:
        keepers.start_soon(_obey, signals, node)
        keepers.start_soon(node.watchdog.run)
        await node.run(task_status=task_status)
        keepers.cancel_scope.cancel()
    log.info("drained", **node.account())
    drained.set()


async def _serve(
    node: Node, listeners: Sequence[socket.socket], drained: trio.Event, front: trio.CancelScope
) -> None:
    """Serve until the node has drained and the requests under way are answered; that is the end of the service."""
    limits = Limits(connections=node.settings.max_connections, grace=HTTP_GRACE)
    await serve(create_app(node), listeners, limits, until=drained.wait)
    front.cancel()


def spare_the_collector() -> None:
    """Have what was made at the start, which stays, left out of each search for garbage, and search less often."""
    gc.freeze()
    gc.set_threshold(GARBAGE)


async def _obey(signals: AsyncIterator[int], node: Node) -> None:
    """Drain at the first signal, stop at the second or after the grace, give up at the third or after the cleanup."""
    name = signal.Signals(await anext(signals)).name
    again = "press Ctrl+C again" if name == "SIGINT" else f"send {name} again"
    log.info(
        f"{name}: draining ({again} to stop now)",
        running=node.held.busy,
        grace=show_duration(node.settings.grace),
    )
    node.drain(name)
    with trio.move_on_after(node.settings.grace):
        await _another(signals)
    log.warning("stopping: active jobs are cancelled and queued again", running=node.held.busy)
    node.stop()
    with trio.move_on_after(CLEANUP):
        await _another(signals)
    if node.held.running:
        await _abandon(node)


async def _another(signals: AsyncIterator[int]) -> None:
    """Wait for one more signal: within `ECHO` seconds it is the same one, sent to the process and to its group."""
    begun = trio.current_time()
    async for _ in signals:
        if trio.current_time() - begun > ECHO:
            return


async def _abandon(node: Node) -> None:
    """Some handlers do not end although they were cancelled: name them, hand their jobs back, and leave."""
    abandoned: Sequence[Attempt] = node.abandon()
    # Shielded: a handler that ends after all would end the node, and with it this.
    with trio.CancelScope(shield=True):
        await node.settle_up()
    log.error("abandoned: these handlers ignored their cancel", **node.account(abandoned))
    os._exit(STUCK)


def _announce(node: Node, found_at: Sequence[str], rescued: Sequence[Rescued]) -> None:
    begun = sum(job.begun for job in rescued)
    log.info(f"jobpipe {VERSION} listens on {', '.join(found_at)}", node=node.name)
    log.info(f"store: {node.store.name}", durable=node.store.durable, sync=node.settings.sync)
    if rescued:
        log.info(f"recovered {len(rescued)} jobs of a process that crashed ({begun} had started)")
    if node.registry.kinds:
        log.info(f"kinds: {', '.join(node.registry.kinds)}")
    else:
        log.warning("kinds: none, so this node can run no job: name modules with handlers in HANDLERS")
    log.info(f"workers: {node.settings.workers}", queue_size=node.settings.queue_size)
    if node.settings.queues:
        log.info(f"queues: {show_weights(node.settings.queues)}")
    if node.settings.reserve:
        log.info(f"reserved workers: {show_numbered(node.settings.reserve)}")
    if node.settings.max_connections >= open_files():
        log.warning(
            f"MAX_CONNECTIONS is {node.settings.max_connections}, but this process may open {open_files()} files only: "
            "raise `ulimit -n`, or lower MAX_CONNECTIONS"
        )
