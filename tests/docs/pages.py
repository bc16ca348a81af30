"""The pages of the docs as text: sections, tables, fenced blocks."""

import re
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

ROOT = Path(__file__).parents[2]
README = ROOT / "README.md"
DOCS = ROOT / "docs"
PAGES = sorted([README, ROOT / "CHANGELOG.md", *DOCS.rglob("*.md")])

FENCE = re.compile(r"^```(\w*)\n(.*?)^```$", re.MULTILINE | re.DOTALL)


def read(page: Path) -> str:
    return page.read_text(encoding="utf-8")


def section(page: Path, heading: str) -> str:
    """The text below a heading, up to the next heading of its level."""
    level = heading.split(" ", 1)[0]
    text = read(page).split(f"\n{heading}\n", 1)[1]
    return re.split(rf"^#{{1,{len(level)}}} ", text, maxsplit=1, flags=re.MULTILINE)[0]


def rows(text: str) -> list[list[str]]:
    """The rows of all tables in a text: cells, without the head."""
    lines = [line.strip().strip("|") for line in text.splitlines() if line.startswith("|")]
    rules = {number for number, line in enumerate(lines) if set(line) <= set("-|: ")}
    heads = {number - 1 for number in rules}
    return [
        [cell.strip() for cell in line.split(" | ")]
        for number, line in enumerate(lines)
        if number not in rules | heads
    ]


def quoted(text: str) -> list[str]:
    """The words in backticks."""
    return re.findall(r"`([^`]+)`", text)


def first_cells(text: str) -> list[str]:
    """The words in backticks in the first column of all tables."""
    return [word for row in rows(text) for word in quoted(row[0])]


class Block(NamedTuple):
    """A fenced block: its language, its text, and the words since the block before it."""

    language: str
    text: str
    words: str


def blocks(text: str, language: str | None = None) -> list[Block]:
    """The fenced blocks of a text, or those of one language."""
    return [each for each in _blocks(text) if language is None or each.language == language]


def _blocks(text: str) -> Iterator[Block]:
    end = 0
    for fence in FENCE.finditer(text):
        yield Block(fence[1], fence[2], text[end : fence.start()])
        end = fence.end()


def commands(text: str) -> list[str]:
    """The commands of a shell block: a line each, unless a quoted text goes on in the next line."""
    found: list[str] = []
    for line in text.splitlines():
        if found and found[-1].count("'") % 2:
            found[-1] += "\n" + line
        else:
            found.append(line)
    return found


def examples(page: Path) -> list[str]:
    """The Python examples of a page."""
    return [block.text for block in blocks(read(page), "python")]
