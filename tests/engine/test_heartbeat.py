"""The renewal of a lease from a thread while the event loop is blocked, and the end of a process that stays blocked.

In real time, where a loop is blocked: nothing else can be seen here.
"""

import math
import threading
import time
from collections.abc import Callable, Sequence
from typing import Any

import pytest
import trio
import trio.testing
from structlog.testing import capture_logs

from jobpipe.engine import watchdog
from jobpipe.engine.heartbeat import RETRY, Heartbeat
from jobpipe.engine.lease import SAFE
from jobpipe.engine.watchdog import BLOCKED, Watchdog
from jobpipe.errors import StoreUnavailable
from jobpipe.store.memory import MemoryStore
from tests.engine.conftest import FaultyStore, running
from tests.engine.test_listener import Shared

LEASE = 0.3
PATIENCE = 30


class Leased(Shared):
    """A shared store whose renewals from a thread are noted; `does` is what comes of each."""

    def __init__(self, does: Callable[[], bool] = lambda: True) -> None:
        super().__init__()
        self.does = does
        self.renewals: list[tuple[str, float]] = []
        self.more = threading.Semaphore(0)

    def renew_from_thread(self, node: str, now: float, lease_until: float) -> bool:
        self.renewals.append((node, lease_until - now))
        try:
            return self.does()
        finally:
            self.more.release()

    def renewed(self) -> None:
        """Return when one more was tried."""
        assert self.more.acquire(timeout=PATIENCE)


class FixedClock:
    """For a thread, which has no Trio."""

    def now(self) -> float:
        """Always the same."""
        return 1000.0

    def nap(self, until: float) -> float:
        """Never asked for."""
        raise NotImplementedError


def heart(store: Any, seconds: float = LEASE) -> Heartbeat:
    made = Heartbeat(store, FixedClock(), "n1", seconds)
    made.armed = True
    return made


def looked(heartbeat: Heartbeat, silent: float) -> None:
    """Look, and wait until what that began is over."""
    heartbeat.look(silent)
    for thread in threading.enumerate():
        if thread.name == "jobpipe-heartbeat":
            thread.join(PATIENCE)


# --- when it acts -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("silent", "renewals"), [(0.0, 0), (4.99, 0), (5.0, 1), (1000.0, 1)])
def test_it_acts_when_the_loop_was_silent_for_a_third_of_the_lease(silent, renewals) -> None:
    store = Leased()

    with capture_logs():
        looked(heart(store, 15.0), silent)

    assert store.renewals == [("n1", 15.0)] * renewals


def test_it_renews_once_in_a_third_of_the_lease() -> None:
    store = Leased()
    heartbeat = heart(store, 3600)

    with capture_logs() as lines:
        for _ in range(10):
            looked(heartbeat, 1200)

    assert len(store.renewals) == 1
    assert [line["event"] for line in lines] == [
        "the event loop is blocked: a thread renews the lease of this node"
    ]
    assert heartbeat.age() < PATIENCE


def test_it_begins_anew_with_the_next_block() -> None:
    store = Leased()
    heartbeat = heart(store, 3600)

    with capture_logs() as lines:
        for silent in (1200, 0, 1200):
            looked(heartbeat, silent)

    assert len(store.renewals) == 2
    assert len(lines) == 2


def test_look_does_not_wait_for_a_store_that_hangs_and_asks_it_no_second_time() -> None:
    go_on = threading.Event()
    store = Leased(lambda: go_on.wait(PATIENCE))
    heartbeat = heart(store)

    with capture_logs():
        for _ in range(5):
            heartbeat.look(LEASE)
        renewals = len(store.renewals)
        go_on.set()
        store.renewed()

    assert renewals <= 1


def test_a_node_that_has_not_joined_or_has_left_is_left_alone() -> None:
    store = Leased()
    heartbeat = heart(store)
    heartbeat.armed = False

    looked(heartbeat, 1000)

    assert store.renewals == []


def test_a_store_of_one_process_needs_no_heartbeat() -> None:
    looked(heart(MemoryStore()), 1000)

    assert heart(MemoryStore()).age() == math.inf


# --- what may come of it ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("error", [StoreUnavailable("away"), ZeroDivisionError()])
def test_a_renewal_that_fails_is_told_and_tried_again(monkeypatch, error) -> None:
    """Whatever the store raised; it counts for nothing."""

    def fail() -> bool:
        raise error

    store = Leased(fail)
    heartbeat = heart(store)
    monkeypatch.setattr("jobpipe.engine.heartbeat.RETRY", 0.0)

    with capture_logs() as lines:
        looked(heartbeat, LEASE)
        looked(heartbeat, LEASE)

    assert len(store.renewals) == 2
    assert heartbeat.age() == math.inf
    assert {line["event"].partition(" be renewed")[2] for line in lines} == {
        " while the event loop is blocked"
    }


def test_tries_that_fail_have_a_pause_between_them() -> None:
    def fail() -> bool:
        raise StoreUnavailable("away")

    store = Leased(fail)
    heartbeat = heart(store)

    with capture_logs():
        began = time.monotonic()
        while len(store.renewals) < 3 and time.monotonic() < began + PATIENCE:
            looked(heartbeat, LEASE)

    assert time.monotonic() - began >= 2 * RETRY


def test_a_lease_that_another_node_took_is_given_up() -> None:
    """It is told, and not asked for again: the event loop will learn of it when it goes on."""
    store = Leased(lambda: False)
    heartbeat = heart(store)

    with capture_logs() as lines:
        for silent in (LEASE, 0, LEASE):
            looked(heartbeat, silent)

    assert len(store.renewals) == 1
    assert not heartbeat.armed
    assert [line["event"] for line in lines] == ["this node lost its lease while the event loop was blocked"]


@pytest.mark.parametrize(("age", "lost_after"), [(0.0, 5 + 15 * SAFE), (math.inf, 15 * SAFE)])
async def test_a_lease_that_a_thread_has_kept_has_its_whole_time_again(
    autojump_clock, age, lost_after
) -> None:
    """When the store is away just after a block, the node has as long as after a renewal of its own."""
    store = FaultyStore()
    async with running(
        store, lease=15.0, expected=["the store cannot write", "this node lost its lease"]
    ) as rig:
        rig.node.lease.heartbeat.age = lambda: age  # type: ignore[method-assign]  # as if a thread had renewed it
        await trio.sleep(1)
        store.broken = True
        await trio.sleep(lost_after - 1.1)
        before = rig.node.lease.losses
        await trio.sleep(0.2)
        after = rig.node.lease.losses
        store.broken = False

    assert (before, after) == (0, 1)


@pytest.mark.parametrize("blocked", [3 * 15.0, 1000.0])
async def test_a_block_that_begins_during_a_renewal_costs_no_lease(autojump_clock, blocked) -> None:
    """When the loop goes on the time for it is long over, but nobody has taken the lease."""
    store = FaultyStore()
    async with running(store, lease=15.0) as rig:
        store.before = trio.Event()
        await trio.sleep(5.1)
        autojump_clock.jump(blocked)
        store.before.set()
        await trio.sleep(1)

        assert rig.node.lease.losses == 0


async def test_a_node_arms_it_as_long_as_it_has_a_lease(autojump_clock) -> None:
    async with running(Leased()) as rig:
        heartbeat = rig.node.lease.heartbeat
        armed = heartbeat.armed

    assert (armed, heartbeat.armed) == (True, False)


# --- with a loop that is blocked --------------------------------------------------------------------------------------


@pytest.fixture
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    """Notice a block after 50 ms."""
    monkeypatch.setattr(watchdog, "BEAT", 0.01)
    monkeypatch.setattr(watchdog, "PATIENCE", 0.05)


async def test_the_lease_is_renewed_again_and_again_as_long_as_the_loop_is_blocked(quick) -> None:
    store = Leased()
    with capture_logs():
        async with trio.open_nursery() as nursery:
            nursery.start_soon(Watchdog(heart(store)).run)
            await trio.testing.wait_all_tasks_blocked()
            for _ in range(3):
                store.renewed()  # blocks the loop
            nursery.cancel_scope.cancel()

    assert [node for node, _ in store.renewals[:3]] == ["n1"] * 3
    assert [seconds for _, seconds in store.renewals[:3]] == pytest.approx([LEASE] * 3)


async def test_a_process_that_stays_blocked_ends_and_names_the_handler(quick, monkeypatch) -> None:
    """With its exit code, and the stack of the handler in the log."""
    ended, codes = threading.Event(), list[int]()

    def end(code: int) -> None:
        codes.append(code)
        ended.set()

    monkeypatch.setattr("os._exit", end)
    with capture_logs() as lines:
        async with trio.open_nursery() as nursery:
            nursery.start_soon(Watchdog(max_blocked=0.2).run)
            await trio.testing.wait_all_tasks_blocked()
            assert ended.wait(PATIENCE)
            nursery.cancel_scope.cancel()

    (line,) = [line for line in lines if line["log_level"] == "critical"][:1]
    assert codes[0] == BLOCKED == 75
    assert "MAX_BLOCKED" in line["event"]
    assert "ended.wait(PATIENCE)" in line["stack"]


def test_a_log_that_nobody_reads_does_not_keep_a_blocked_process_alive(monkeypatch) -> None:
    """A full pipe may be the very thing that blocks the loop; the lease is renewed meanwhile, and the end comes."""
    never, codes, store = threading.Event(), list[int](), Leased()
    looks = Looks([0, 0.5, 1.0, 1.5, 2.0])

    class Full:
        """Every line waits."""

        def __getattr__(self, level: str) -> Callable[..., object]:
            return lambda *_, **__: never.wait(PATIENCE)

    dog = Watchdog(heart(store), max_blocked=2.0)
    monkeypatch.setattr(watchdog, "time", looks)
    monkeypatch.setattr(watchdog, "log", Full())
    monkeypatch.setattr(watchdog, "LAST_WORDS", 0.01)
    monkeypatch.setattr("os._exit", codes.append)
    dog._over, dog._beat = looks, 0.0  # type: ignore[assignment]  # what it waits for, as told by the test

    with capture_logs():
        dog._watch()
        store.renewed()
    never.set()

    assert codes == [BLOCKED]


class Looks:
    """The times at which the watchdog looks, one after the other, and a module `time` that goes by them."""

    def __init__(self, times: Sequence[float]) -> None:
        self._times = iter(times)
        self.now = next(self._times)

    def wait(self, _: float) -> bool:
        """Whether it is over."""
        return (now := next(self._times, None)) is None or self._becomes(now)

    def _becomes(self, now: float) -> bool:
        self.now = now
        return False

    def monotonic(self) -> float:
        """The time of this look."""
        return self.now

    def process_time(self) -> float:
        """As good as no work is done."""
        return 0.0


@pytest.mark.parametrize(
    ("times", "ends"),
    [
        ([0, 0.5, 1.0, 1001.0, 1001.5, 1002.0], 0),
        ([0, 0.5, 1.0, 1.5, 2.0, 2.5], 0),
        ([0, 0.5, 1.0, 1.5, 2.0, 2.5, 3.0], 1),
    ],
    ids=["stood still", "not long enough", "long enough"],
)
def test_time_in_which_the_process_stood_still_is_no_block(monkeypatch, times, ends) -> None:
    """However long SIGSTOP or a suspended machine lasted, the loop has its turn before anything is done."""
    codes: list[int] = []
    looks, store = Looks(times), Leased()
    dog = Watchdog(heart(store, 30), max_blocked=3.0)
    monkeypatch.setattr(watchdog, "time", looks)
    monkeypatch.setattr("os._exit", codes.append)
    dog._over, dog._beat = looks, 0.0  # type: ignore[assignment]  # what it waits for, as told by the test

    with capture_logs():
        dog._watch()

    assert len(codes) == ends
    assert store.renewals == []


def test_a_watchdog_that_fails_goes_on(monkeypatch) -> None:
    """It is what keeps the lease: nothing unforeseen may end it."""
    looks, looked_at = Looks([0, 0.5, 1.0, 1.5]), list[float]()
    heartbeat = heart(Leased())

    def fail(silent: float) -> None:
        looked_at.append(silent)
        raise ZeroDivisionError

    dog = Watchdog(heartbeat)
    monkeypatch.setattr(heartbeat, "look", fail)
    monkeypatch.setattr(watchdog, "time", looks)
    dog._over, dog._beat = looks, 0.0  # type: ignore[assignment]  # see above

    with capture_logs() as lines:
        dog._watch()

    assert looked_at == [0.5, 1.0, 1.5]
    assert [line["event"] for line in lines if line.get("exc_info")] == [
        "the watchdog failed, and continues"
    ] * 3
