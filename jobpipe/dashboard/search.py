"""The one box that finds jobs: words in the filter language of the API, made into parameters and back. Pure.

`status:failed queue:mail kind:webhook.* tag:weekly since:2h text:"bounced mail"`. A word means what the parameter of
`GET /jobs` with its name means; several with one name mean any of their values. Words without a colon are a text.
"""

import re
from collections.abc import Iterable, Mapping, Sequence
from urllib.parse import urlencode

import msgspec

from jobpipe.api.inputs import query_from
from jobpipe.api.problems import Fault, Problem
from jobpipe.api.schemas import JobFilter, rfc3339
from jobpipe.settings import read_duration

LONGEST = 8_000
"""The most characters of a search: 100 ids are among those that fit."""

SHORT: Mapping[str, str] = {"error": "error_type"}
"""Words that are shorter than the parameters they stand for."""

SINCE: Mapping[str, str] = {"since": "created_after", "ended": "ended_after"}
"""Words whose value is how long ago something was, and the parameters whose value is a time."""

NAMES: Sequence[str] = [field.name for field in msgspec.structs.fields(JobFilter)]

WORDS: Sequence[str] = [*SINCE, *SHORT, *NAMES]
"""Every word, for the help."""

# A word is a name and a value, or a value; either value may be in quotes, where \" and \\ stand for themselves.
_WORD = re.compile(
    r"""\s*(?:(?P<name>[a-z_]+):)?(?:"(?P<quoted>(?:[^"\\]|\\.)*)(?P<closed>"?)|(?P<bare>\S+))(?=\s|$)|\s*(?P<rest>\S+)"""
)
_BARE = re.compile(r"[^\s\"]+")


class Word(msgspec.Struct, frozen=True):
    """One word of a search. A text has the name `text`, or none where it was said without."""

    name: str
    value: str


class Wrong(msgspec.Struct, frozen=True):
    """A word that means nothing, and why."""

    word: str
    detail: str


class Search(msgspec.Struct, frozen=True):
    """What was asked for: its words, and the filter that they make; None where something is wrong with them."""

    words: Sequence[Word] = ()
    filter: JobFilter | None = None
    wrong: Sequence[Wrong] = ()

    @property
    def text(self) -> str:
        """The search as it is written: the same text for the same words."""
        return written(self.words)

    @property
    def only_word(self) -> str | None:
        """What may be an id: the only word, said without a name."""
        return self.words[0].value if len(self.words) == 1 and not self.words[0].name else None

    def values(self, name: str) -> Sequence[str]:
        """What is asked for by one name."""
        return [word.value for word in self.words if word.name == name]

    def without(self, name: str) -> Sequence[Word]:
        """The other words."""
        return [word for word in self.words if word.name != name]

    @property
    def by_counts(self) -> bool:
        """Whether the store keeps count of what is asked for: statuses, of one queue or of all."""
        return {word.name for word in self.words} <= {"status", "queue"} and len(self.values("queue")) <= 1


def read(text: str, now: float) -> Search:
    """A search as it was typed; `now` is the time from which `since:2h` counts. Whatever was typed, it never raises."""
    if len(text) > LONGEST:
        long = Wrong(text[:20], f"is too long: a search has at most {LONGEST} characters")
        return Search(wrong=[long])
    words, wrong = _words(text)
    free = [word.value for word in words if not word.name]
    if len(free) > 1:  # several words make one text
        words = [*(word for word in words if word.name), Word("", " ".join(free))]
    return meaning(words, now, wrong)


def meaning(words: Sequence[Word], now: float, wrong: Sequence[Wrong] = ()) -> Search:
    """What words mean, and what is wrong with them."""
    pairs, unknown = _pairs(words, now)
    if wrong := [*wrong, *unknown]:
        return Search(words, None, wrong)
    try:
        return Search(words, query_from(urlencode(pairs).encode(), JobFilter))
    except Problem as problem:
        return Search(words, None, [_wrong(words, fault) for fault in problem.details.faults])


def written(words: Iterable[Word]) -> str:
    """Words as one text that `read` reads as these words."""
    return " ".join(f"{word.name}:{_value(word)}" if word.name else _value(word) for word in words)


def _words(text: str) -> tuple[list[Word], list[Wrong]]:
    words, wrong = list[Word](), list[Wrong]()
    for match in _WORD.finditer(text):
        if match["rest"] is not None or (match["quoted"] is not None and not match["closed"]):
            wrong.append(
                Wrong(match[0].strip(), 'has a " without another: put the value between two of them')
            )
        elif match["quoted"] is not None:
            words.append(Word(match["name"] or "", re.sub(r"\\(.)", r"\1", match["quoted"])))
        elif match["name"]:
            words.append(Word(match["name"], match["bare"]))
        else:
            words.append(Word("", match["bare"]))
    return list(dict.fromkeys(words)), wrong


def _pairs(words: Sequence[Word], now: float) -> tuple[list[tuple[str, str]], list[Wrong]]:
    pairs, wrong = list[tuple[str, str]](), list[Wrong]()
    for word in words:
        name = SHORT.get(word.name, word.name) or "text"
        if word.name in SINCE:
            try:
                pairs.append((SINCE[word.name], rfc3339(now - read_duration(word.value))))
            except ValueError:
                said = written([word])
                wrong.append(Wrong(said, "is no duration: write it as 90s, 5m, 2h or 7d"))
        elif name in NAMES:
            pairs.append((name, word.value))
        else:
            known = ", ".join(WORDS)
            wrong.append(Wrong(written([word]), f"begins with no word that is known; known are {known}"))
    return pairs, wrong


def _wrong(words: Sequence[Word], fault: Fault) -> Wrong:
    """A fault of a parameter, at the word that it is of."""
    name = fault.pointer.removeprefix("?").partition("/")[0]
    named = [
        word
        for word in words
        if (SHORT.get(word.name) or SINCE.get(word.name) or word.name or "text") == name
    ]
    return Wrong(written(named[:1]) or name, fault.detail)


def _value(word: Word) -> str:
    """A value as it is written: in quotes where it would be taken for something else."""
    looks_named = not word.name and re.match(r"[a-z_]+:", word.value)
    if _BARE.fullmatch(word.value) and not looks_named:
        return word.value
    escaped = word.value.replace("\\", "\\\\").replace('"', '\\"')
    return f'"{escaped}"'
