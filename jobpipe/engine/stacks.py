"""Looks at the tasks of one attempt: where each stands, what it waits for, and how long it has not moved.

A worker runs many jobs in one task. What is an attempt's begins at its handler's frame in that task, and goes on with
the nurseries that were opened under the attempt's scope. Nothing but places in code is taken from frames of the user's,
and no frame of the user's is kept.
"""

import gc
import inspect
import sys
import time
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from types import AsyncGeneratorType, CodeType, CoroutineType, FrameType, GeneratorType
from typing import Any, Final, NamedTuple

import msgspec
import trio

from jobpipe import fingerprints
from jobpipe.engine.awaits import FIRST_TURN, OTHER, RULES, Rule, Wait, told

MOST = 5_000
"""The most tasks that are looked at one by one; more are counted by their line."""

IN_DETAIL, IN_ALL = 0.007, 0.009
"""Seconds of the event loop for tasks one by one, and with those that are only counted."""

SLICE = 250
"""How many frames are looked at between two looks at the clock."""

DEEPEST = 2_000
"""The most frames of a task."""

CYCLES = 5
"""The most circles of tasks that wait for each other that are told."""

LONGEST_NAME = 200
"""The most characters of a task's name."""


class Code:
    """What is told of a frame by its code."""

    __slots__ = ("code", "file", "function", "is_own", "is_trio", "rule")

    def __init__(self, frame: FrameType, package: str | None) -> None:
        self.code = frame.f_code
        where = _named(frame)
        self.function, self.file = where.function, where.file
        self.is_trio = where.package == "trio"
        self.is_own = fingerprints.is_own(where, package)
        self.rule = RULES.get(self.code) if self.is_trio else None


class Seen:
    """A task as it was seen."""

    __slots__ = ("children", "codes", "name", "places", "still", "wait")

    def __init__(
        self, name: str, codes: tuple[Code, ...], places: tuple[int, ...], wait: Wait, still: float
    ) -> None:
        self.name, self.wait, self.still = name, wait, still
        self.codes, self.places = codes, places
        """of its frames, the outermost first: the code of each, and the index of its last instruction there"""
        self.children: list[Seen] = []


class Line(msgspec.Struct, frozen=True):
    """Tasks that are only counted, by the line at which the function of the task stands."""

    function: str
    file: str
    line: int
    count: int


class Sight(msgspec.Struct, frozen=True):
    """All tasks of an attempt at one time."""

    root: Seen
    tasks: int
    rest: Sequence[Line]
    """tasks that were only counted, the most first"""
    whole: bool
    """whether all tasks were counted"""
    circles: Sequence[Sequence[str]]
    """names of tasks that wait for each other"""


class Root(msgspec.Struct, frozen=True):
    """Where the tasks of an attempt begin."""

    task: trio.lowlevel.Task
    """the worker's"""
    name: str
    caller: CodeType
    """whose frame in that task is the last one that is not the handler's"""
    encloses: Callable[[trio.Nursery], bool]
    """whether a nursery of that task is the attempt's"""


Jobs = Mapping[trio.lowlevel.Task, str]
"""The id of the job that runs in a worker's task."""


class Stacks:
    """Looks at one attempt, and remembers from one look to the next which tasks stood where."""

    def __init__(self, root: Root, clock: Callable[[], float] = time.thread_time) -> None:
        self._root, self._clock = root, clock
        # The innermost frame of each task at the last look, and since when it is known. It is Trio's own, made anew
        # each time that a task gives way, so a task with the same one has not moved.
        self._known: Mapping[trio.lowlevel.Task, tuple[FrameType, float]] = {}

    def look(self, jobs: Jobs) -> Sight:
        """See all tasks at once: takes no longer than `IN_ALL`, whatever there is. `jobs`: of all attempts here."""
        look = _Look(self._root, jobs, self._known, self._clock)
        sight = look.sight()
        self._known = look.found
        return sight


class _How(NamedTuple):
    """By which of the frames of a task it is told what it waits for; without a rule by none."""

    rule: Rule | None
    place: int


def _told_by(codes: Sequence[Code]) -> _How:
    """Find the rule among the innermost frames, as far as they are Trio's."""
    best, where = None, -1
    for place in reversed(range(len(codes))):
        code = codes[place]
        if not code.is_trio:
            break
        if code.rule is not None and (best is None or code.rule.rank > best.rank):
            best, where = code.rule, place
    return _How(best, where)


class _Look:
    """One look, from which nothing of any frame is kept but its code."""

    def __init__(
        self,
        root: Root,
        jobs: Jobs,
        known: Mapping[trio.lowlevel.Task, tuple[FrameType, float]],
        clock: Callable[[], float],
    ) -> None:
        self._root, self._jobs, self._known, self._clock = root, jobs, known, clock
        self.found: dict[trio.lowlevel.Task, tuple[FrameType, float]] = {}
        self._now = trio.current_time()
        self._codes: dict[int, Code] = {}
        self._how: dict[tuple[Code, ...], _How] = {}
        self._package: str | None = None
        self._threads: Mapping[trio.lowlevel.Task, Sequence[FrameType]] | None = None
        self._seen: dict[trio.lowlevel.Task, Seen] = {}
        self._holders: dict[trio.lowlevel.Task, trio.lowlevel.Task] = {}
        self._held_by: dict[trio.lowlevel.Task, Wait] = {}

    def sight(self) -> Sight:
        begun = self._clock()
        task = self._root.task
        frames = _behind(self._root.caller, frames_of(task.coro))
        self._package = fingerprints.package_of(map(_named, [*frames, *self._in_thread(frames, task)]))
        root = self._look_at(task, frames, self._root.name)
        ahead = [(iter(one.child_tasks), root) for one in task.child_nurseries if self._root.encloses(one)]
        looked_at = 0
        while ahead and len(self._seen) < MOST:
            tasks, parent = ahead[-1]
            if (child := next(tasks, None)) is None:
                ahead.pop()
                continue
            frames = frames_of(child.coro)
            seen = self._look_at(child, frames, child.name)
            parent.children.append(seen)
            ahead += [(iter(one.child_tasks), seen) for one in child.child_nurseries]
            looked_at += len(frames)
            if looked_at > SLICE:
                looked_at = 0
                if self._clock() - begun > IN_DETAIL:
                    break
        rest, whole = self._counted([tasks for tasks, _ in ahead], begun)
        return Sight(
            root=root,
            tasks=len(self._seen) + sum(line.count for line in rest),
            rest=rest,
            whole=whole,
            circles=self._circles(),
        )

    def _look_at(self, task: trio.lowlevel.Task, frames: Sequence[FrameType], name: str) -> Seen:
        codes = self._codes_of(frames)
        how = self._how.get(codes)
        if how is None:
            how = self._how[codes] = _told_by(codes)
        if how.rule is None:
            wait, still = (FIRST_TURN if _unbegun(task) else OTHER).wait, 0.0
        else:
            wait, holder = how.rule.always or told(how.rule, frames[how.place], task)
            still = self._still(task, frames[-1])
            if holder is not None:
                self._holders[task] = holder
                wait = self._held(wait, holder)
            elif wait.what == "thread":
                frames = [*frames, *self._in_thread(frames, task)]
                codes = self._codes_of(frames)
        places = tuple([frame.f_lasti for frame in frames])
        seen = self._seen[task] = Seen(name, codes, places, wait, still)
        return seen

    def _codes_of(self, frames: Sequence[FrameType]) -> tuple[Code, ...]:
        known = self._codes  # by identity: to hash a code takes longer than all else here
        try:
            return tuple([known[id(frame.f_code)] for frame in frames])
        except KeyError:
            for frame in frames:
                known.setdefault(id(frame.f_code), Code(frame, self._package))
            return tuple([known[id(frame.f_code)] for frame in frames])

    def _still(self, task: trio.lowlevel.Task, innermost: FrameType) -> float:
        before = self._known.get(task)
        if before is None or before[0] is not innermost:
            before = innermost, self._now
        self.found[task] = before
        return self._now - before[1]

    def _in_thread(self, frames: Sequence[FrameType], task: trio.lowlevel.Task) -> Sequence[FrameType]:
        """The frames of the thread that a task waits for, if it waits for one."""
        if not any(frame.f_code is _TO_THREAD for frame in frames):
            return ()
        if self._threads is None:
            self._threads = threads()
        return self._threads.get(task, ())

    def _held(self, wait: Wait, holder: trio.lowlevel.Task) -> Wait:
        """Say who holds a lock as it is named here, and whose task that is where it is another job's."""
        if holder in self._held_by:
            return self._held_by[holder]
        root = holder
        while root not in self._jobs and root.parent_nursery is not None:
            root = root.parent_nursery.parent_task
        job = None if root is self._root.task else self._jobs.get(root)
        name = self._root.name if holder is self._root.task else holder.name
        held = msgspec.structs.replace(wait, holder=short(name), holder_job=job)
        self._held_by[holder] = held
        return held

    def _counted(
        self, ahead: list[Iterator[trio.lowlevel.Task]], begun: float
    ) -> tuple[Sequence[Line], bool]:
        """Count tasks, and all below them, by where their own function stands; and whether that is all of them."""
        counted, looked_at = Counter[tuple[int, int]](), 0
        frames: dict[tuple[int, int], FrameType] = {}
        while ahead:
            task = next(ahead[-1], None)
            if task is None:
                ahead.pop()
                continue
            if (frame := getattr(task.coro, "cr_frame", None)) is not None:
                place = id(frame.f_code), frame.f_lasti
                counted[place] += 1
                frames.setdefault(place, frame)
            ahead += [iter(nursery.child_tasks) for nursery in task.child_nurseries]
            looked_at += 1
            if looked_at > SLICE:
                looked_at = 0
                if self._clock() - begun > IN_ALL:
                    break
        lines = Counter[tuple[str, str, int]]()
        for place, count in counted.items():
            frame = frames[place]
            lines[frame.f_code.co_qualname, frame.f_code.co_filename, frame.f_lineno] += count
        return [Line(*line, count) for line, count in lines.most_common()], not ahead

    def _circles(self) -> Sequence[Sequence[str]]:
        """Tasks that wait for each other: for locks, and for child tasks that have to end first."""
        if not self._holders:
            return ()
        found = list[Sequence[str]]()
        over = set[trio.lowlevel.Task]()
        below: dict[trio.Nursery | None, list[trio.lowlevel.Task]] = {}
        for task, seen in self._seen.items():  # of all others nothing is known that they wait for
            if task in self._holders or seen.wait.what in _FOR_CHILDREN:
                below.setdefault(task.parent_nursery, []).append(task)
        for begin, holder in self._holders.items():
            if holder in over or holder not in self._seen:  # as with most of those that wait for one lock
                over.add(begin)
                continue
            path: dict[trio.lowlevel.Task, None] = {}
            ahead = [(begin, False)]
            while ahead and len(found) < CYCLES:
                task, left = ahead.pop()
                if left:
                    over.add(task)
                    del path[task]
                elif task in path:
                    circle = list(path)[list(path).index(task) :]
                    found.append([self._seen[one].name for one in circle])
                elif task not in over and task in self._seen:
                    path[task] = None
                    ahead += [(task, True), *((one, False) for one in self._waited_for(task, below))]
        return found

    def _waited_for(
        self, task: trio.lowlevel.Task, below: Mapping[trio.Nursery | None, Sequence[trio.lowlevel.Task]]
    ) -> Iterable[trio.lowlevel.Task]:
        """The tasks all of which have to go on before a task does."""
        if task in self._holders:
            return (self._holders[task],)
        if self._seen[task].wait.what in _FOR_CHILDREN:
            return [one for nursery in task.child_nurseries[-1:] for one in below.get(nursery, ())]
        return ()


_FOR_CHILDREN = frozenset({"nursery", "start"})
"""What is waited for when child tasks are."""


def frames_of(coro: Any) -> list[FrameType]:  # noqa: ANN401 - whatever somebody awaits
    """The frames of what a task runs and awaits, the outermost first.

    As `trio.lowlevel.Task.iter_await_frames` has them, but in half the time, since nobody asks for line numbers yet,
    and through what wraps a coroutine.
    """
    found: list[FrameType] = []  # not `list[...]()`, which takes as long as the walk
    for _ in range(DEEPEST):
        if type(coro) is CoroutineType:
            frame, coro = coro.cr_frame, coro.cr_await
        elif type(coro) is GeneratorType:
            frame, coro = coro.gi_frame, coro.gi_yieldfrom
        elif coro is None:
            break
        elif type(coro) is AsyncGeneratorType:
            frame, coro = coro.ag_frame, coro.ag_await
        else:
            coro = next((one for one in gc.get_referents(coro) if isinstance(one, _AWAITED)), None)
            continue
        if frame is not None:  # else it has ended
            found.append(frame)
    return found


_AWAITED = (CoroutineType, GeneratorType, AsyncGeneratorType)
"""What has frames. What stands between, such as a step of an asynchronous generator, only refers to one."""


def _behind(caller: CodeType, frames: Sequence[FrameType]) -> Sequence[FrameType]:
    """The frames behind that of the caller; none where it is not there, since then no handler runs."""
    places = [place for place, frame in enumerate(frames) if frame.f_code is caller]
    return frames[places[0] + 1 :] if places else ()


def _named(frame: FrameType) -> fingerprints.Frame:
    module = frame.f_globals.get("__name__")
    return fingerprints.Frame(
        module if isinstance(module, str) else "", frame.f_code.co_qualname, frame.f_code.co_filename
    )


def _unbegun(task: trio.lowlevel.Task) -> bool:
    coro: object = task.coro  # not all that Trio runs is of this type
    return inspect.iscoroutine(coro) and inspect.getcoroutinestate(coro) == inspect.CORO_CREATED


def short(name: str) -> str:
    """A name of a task as it is told: it may be any text."""
    if len(name) <= LONGEST_NAME and name.isprintable():
        return name
    return "".join(one if one.isprintable() else " " for one in name[:LONGEST_NAME])


_TO_THREAD: Final = trio.to_thread.run_sync.__code__
_IN_THREAD = next(
    (one for one in _TO_THREAD.co_consts if isinstance(one, CodeType) and one.co_name == "worker_fn"), None
)
"""The function that Trio runs in a thread; None: it has none of that name, and no thread is found."""


def threads() -> Mapping[trio.lowlevel.Task, Sequence[FrameType]]:
    """The frames of what runs in Trio's threads just now, outermost first, by the task that waits for it.

    Trio tells nowhere which thread works for which task; but the function that it runs in a thread has the task at
    hand, to wake it in the end. A task that was cancelled and does not wait any more is left out.
    """
    found: dict[trio.lowlevel.Task, Sequence[FrameType]] = {}
    for innermost in sys._current_frames().values():  # noqa: SLF001 - the documented way to another thread's stack
        frame: FrameType | None = innermost
        inner = list[FrameType]()
        while frame is not None and frame.f_code is not _IN_THREAD:
            inner.append(frame)
            frame = frame.f_back
        if frame is not None and (task := _waiting(frame.f_locals.get("task_register"))) is not None:
            found[task] = inner[::-1]
    return found


def _waiting(register: object) -> trio.lowlevel.Task | None:
    return register[0] if isinstance(register, list) and register else None
