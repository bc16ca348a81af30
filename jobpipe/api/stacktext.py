"""The tasks of a running job as text for people."""

from collections.abc import Iterator, Mapping
from pathlib import PurePath

from jobpipe.api.schemas import rfc3339
from jobpipe.engine.awaits import Wait
from jobpipe.engine.looks import Look
from jobpipe.engine.tasktree import Node

WIDEST = 60
"""The most characters that a column is widened to, but for the last one."""

_WORDS: Mapping[str, str] = {
    "semaphore": "semaphore",
    "event": "event",
    "condition": "condition",
    "thread": "thread",
    "nursery": "its child tasks",
    "start": "a task that starts",
    "turn": "its turn",
    "first_turn": "its first turn",
    "other": "something that is not Trio's",
}
_FILLED: Mapping[str, str] = {
    "channel_room": "room in a channel, {} taken",
    "channel_value": "value from a channel, {} there",
    "limiter": "limiter, {} taken",
}


def in_words(wait: Wait, now: float) -> str:
    """What a task waits for, as people say it."""
    if wait.what in _FILLED:
        size = "any number" if wait.size is None else wait.size
        return _FILLED[wait.what].format(f"{wait.filled or 0} of {size}")
    match wait.what:
        case "sleep":
            left = "without an end" if wait.until is None else f"{max(0.0, wait.until - now):.1f} s left"
            return f"sleep, {left}"
        case "socket" | "pipe":
            return f"{wait.what} to {wait.direction}"
        case "lock":
            of_job = f" of job {wait.holder_job}" if wait.holder_job else ""
            return f"lock held by {wait.holder or 'nobody'}{of_job}"
        case "process":
            return f"process {wait.process}"
        case plain:
            return _WORDS[plain]


def in_text(look: Look) -> str:
    """A look as text: a line a task, the innermost place of own code, what it waits for, and how long it is still."""
    tree = look.tree
    some = "" if tree.whole else "at least "
    head = [
        f"{look.job} ({look.kind}) attempt {look.attempt}, claim {look.claim}, on {look.node}",
        f"{some}{tree.tasks} {'task' if tree.tasks == 1 else 'tasks'} at {rfc3339(look.looked_at)}",
    ]
    if look.stopping is not None:
        seconds = look.looked_at - look.stopping.since
        head.append(f"should have ended {seconds:.1f} s ago: {look.stopping.reason}")
    head += [f"these wait for each other: {', '.join(circle)}" for circle in tree.circles]
    rows = list(_rows(tree.root, look.looked_at, "", ""))
    widths = [min(WIDEST, max(len(row[column]) for row in rows)) for column in range(3)]
    lines = [
        "  ".join([*(cell.ljust(width) for cell, width in zip(row, widths, strict=False)), row[3]]).rstrip()
        for row in rows
    ]
    rest = [f"and {one.count} at {_place(one.function, one.file, one.line)}" for one in tree.rest]
    return "\n".join([*head, "", *lines, *rest]) + "\n"


Cells = tuple[str, str, str, str]


def _rows(task: Node, now: float, stem: str, branch: str) -> Iterator[Cells]:
    """A row for a task, and those of the tasks below it. Drawn with what `tree` draws with."""
    count = f" x{task.count}" if task.count > 1 else ""
    yield (
        f"{stem}{branch}{task.name}{count}",
        "-" if task.at is None else _place(task.at.function, task.at.file, task.at.line),
        in_words(task.waiting_on, now),
        _still(task),
    )
    below = stem + ("" if not branch else "   " if branch.startswith("`") else "|  ")
    for child in task.children:
        yield from _rows(child, now, below, "`- " if child is task.children[-1] else "|- ")


def _place(function: str, file: str, line: int) -> str:
    return f"{PurePath(file).name}:{line} {function}"


def _still(task: Node) -> str:
    if task.longest_still < 1:
        return ""
    up_to = f" to {task.longest_still:.0f}" if task.longest_still - task.still >= 1 else ""
    return f"still for {task.still:.0f}{up_to} s"
