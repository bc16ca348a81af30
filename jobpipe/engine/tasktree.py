"""The tasks of an attempt as a tree in which equal ones are one node, so that the one which differs is seen. Pure."""

from collections import Counter, deque
from collections.abc import Callable, Iterable, Sequence
from functools import cache

import msgspec

from jobpipe.engine.awaits import Wait
from jobpipe.engine.stacks import Code, Line, Seen, Sight, short

MOVES = 5.0
"""Seconds below which tasks that have not moved are in one node with those that have."""

TREE, REST = 44_000, 12_000
"""The most bytes of JSON that the nodes of a tree may take, and the lines of tasks that are only counted."""

FRAMES = (60, 12, 2)
"""The most frames of one node, the innermost; fewer where the tree would be too large."""

SHOWN = 10
"""The most tasks of a circle that are named."""

LONGEST = 300
"""The most characters of the name of a file or of a function; of a longer one the end is told."""


class Frame(msgspec.Struct, frozen=True):
    """A place in code."""

    function: str
    file: str
    line: int
    own: bool
    """whether it is of the user's own code"""


class Node(msgspec.Struct, frozen=True, kw_only=True):
    """Tasks that stand at the same line and wait for the same."""

    name: str
    count: int
    at: Frame | None
    """the innermost frame of own code; None: there is none"""
    waiting_on: Wait
    """of one of them, as to its figures; of sleeps, the first that is over"""
    still: float
    """for at least so many seconds none of them has moved"""
    longest_still: float
    """for at least so many seconds one of them has not"""
    stack: Sequence[Frame]
    """the innermost frames, the innermost last"""
    left_out: int
    """how many further frames there are"""
    children: list["Node"]


class TaskTree(msgspec.Struct, frozen=True):
    """The tasks of an attempt at one time."""

    tasks: int
    whole: bool
    """whether all tasks were counted; else there are more"""
    root: Node
    rest: Sequence[Line]
    """tasks beyond the bounds, by their line"""
    circles: Sequence[Sequence[str]]
    """names of tasks that wait for each other"""


class Folds:
    """Which tasks are equal: same frames, same wait, equal children, however many of each."""

    def __init__(self, root: Seen) -> None:
        self._numbers: dict[object, int] = {}
        self._of: dict[Seen, int] = {}
        order = [root]
        for seen in order:  # grows meanwhile
            order += seen.children
        for seen in reversed(order):
            self._of[seen] = self._numbers.setdefault(self._key(seen), len(self._numbers))

    def _key(self, seen: Seen) -> object:
        wait = seen.wait
        return (
            seen.codes,
            seen.places,
            (wait.what, wait.direction, wait.holder, wait.holder_job),
            seen.still >= MOVES,
            frozenset([self._of[child] for child in seen.children]) if seen.children else None,
        )

    def folded(self, tasks: Iterable[Seen]) -> Sequence[Sequence[Seen]]:
        """Equal ones together; first those that have not moved for longest, and of these the fewest."""
        groups: dict[int, list[Seen]] = {}
        for seen in tasks:
            groups.setdefault(self._of[seen], []).append(seen)
        return sorted(groups.values(), key=lambda group: (-_still(group), len(group), group[0].name))


def tree(sight: Sight, ahead: float = 0.0) -> TaskTree:
    """What was seen as a tree, in at most some 64 KiB of JSON.

    `ahead`: by how many seconds the clock of whoever reads it is ahead of Trio's.
    """
    folds = Folds(sight.root)
    most, *fewer = FRAMES
    root, rest = _nodes(sight.root, folds, most, ahead)
    while rest and fewer:
        root, rest = _nodes(sight.root, folds, fewer.pop(0), ahead)
    for line in sight.rest:
        rest[line.function, line.file, line.line] += line.count
    circles = [[short(name) for name in circle[:SHOWN]] for circle in sight.circles]
    return TaskTree(sight.tasks, sight.whole, root, _lines(rest), circles)


Lines = Counter[tuple[str, str, int]]


def _nodes(top: Seen, folds: Folds, frames: int, ahead: float) -> tuple[Node, Lines]:
    """A tree of nodes, those near the root first, and how many tasks of each line have no room in it."""
    room, rest = TREE, Lines()
    line = cache(_line)
    root = _node([top], frames, line, ahead)
    below = deque([(root, [top])])
    while below:
        parent, tasks = below.popleft()
        for group in folds.folded(child for seen in tasks for child in seen.children):
            node = None if room <= 0 else _node(group, frames, line, ahead)
            room -= 0 if node is None else len(_encode(node))
            if node is None or room <= 0:
                _leave_out(group, rest, line)
            else:
                parent.children.append(node)
                below.append((node, list(group)))
    return root, rest


def _node(group: Sequence[Seen], frames: int, line: "FindLine", ahead: float) -> Node:
    first = group[0]
    stack = list(zip(first.codes, first.places, strict=True))
    mine = [place for place in stack if place[0].is_own]
    wait = min((seen.wait for seen in group), key=_over)
    if wait.until is not None:
        wait = msgspec.structs.replace(wait, until=wait.until + ahead)
    return Node(
        name=short(first.name if len({seen.name for seen in group}) == 1 else _function(first)),
        count=len(group),
        at=_frame(mine[-1], line) if mine else None,
        waiting_on=wait,
        still=_still(group),
        longest_still=max(seen.still for seen in group),
        stack=[_frame(place, line) for place in stack[-frames:]],
        left_out=max(0, len(stack) - frames),
        children=[],
    )


def _still(group: Sequence[Seen]) -> float:
    return min(seen.still for seen in group)


def _over(wait: Wait) -> float:
    return float("inf") if wait.until is None else wait.until


def _function(seen: Seen) -> str:
    """The function of a task, for several that have names of their own."""
    return _end(seen.codes[0].function) if seen.codes else seen.name


Place = tuple[Code, int]
FindLine = Callable[[Place], int]


def _frame(place: Place, line: FindLine) -> Frame:
    code, _ = place
    return Frame(_end(code.function), _end(code.file), line(place), code.is_own)


def _line(place: Place) -> int:
    """The line of an instruction."""
    code, instruction = place
    for begin, end, line in code.code.co_lines():
        if begin <= instruction < end and line is not None:
            return line
    return code.code.co_firstlineno


def _end(text: str) -> str:
    return text if len(text) <= LONGEST else f"...{text[-LONGEST:]}"


def _leave_out(group: Iterable[Seen], rest: Lines, line: FindLine) -> None:
    """Count tasks, and all below them, by the line of the function of each."""
    ahead = list(group)
    while ahead:
        seen = ahead.pop()
        if seen.codes:
            code = seen.codes[0]
            rest[code.function, code.file, line((code, seen.places[0]))] += 1
        ahead += seen.children


def _lines(rest: Lines) -> Sequence[Line]:
    """The most frequent lines, as many as there is room for."""
    room, lines = REST, list[Line]()
    for (function, file, line), count in rest.most_common():
        one = Line(_end(function), _end(file), line, count)
        room -= len(_encode(one)) + 1
        if room < 0:
            break
        lines.append(one)
    return lines


_encode = msgspec.json.Encoder().encode
