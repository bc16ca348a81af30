"""The numbered SQL files that make and change a store's tables. A store's version is the number of its last one.

The first has the number 2. Stores at version 1 were made before the first release, with tables that kept changing.
A later one of a store that nodes share begins with a line that says what it means for nodes of older versions that run:
`GO_ON` or `MUST_HAVE_STOPPED`.
"""

import re
from importlib.resources import files

GO_ON = "-- older nodes: go on"
"""They work beside newer ones on the changed tables."""

MUST_HAVE_STOPPED = "-- older nodes: must have stopped"
"""They would do wrong on the changed tables: while one of them lives, the migration is refused."""

UNRELEASED = "was made by an unreleased version of jobpipe, whose tables no other version reads"


def migrations(package: str) -> list[tuple[int, str]]:
    """The files in a package's `migrations` folder, in order: (number, SQL)."""
    found = [
        (int(match[1]), file)
        for file in (files(package) / "migrations").iterdir()
        if (match := re.match(r"(\d{4})_\w+\.sql$", file.name))
    ]
    return [
        (number, file.read_text(encoding="utf-8")) for number, file in sorted(found, key=lambda pair: pair[0])
    ]
