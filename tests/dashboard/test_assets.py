"""The files of the pages: what is vendored, how large they are, and whether their colours can be read."""

import hashlib
import re

import pytest

from jobpipe.dashboard.assets import STATIC, Assets
from jobpipe.dashboard.drawing import TEMPLATES
from jobpipe.job import Status

SHEET = (STATIC / "dashboard.css").read_text()
COLORS = dict(re.findall(r"--([\w-]+): light-dark\((#\w+), #\w+\);", SHEET))
DARK = dict(re.findall(r"--([\w-]+): light-dark\(#\w+, (#\w+)\);", SHEET))


def luminance(color):
    """Relative luminance (WCAG 2.2)."""
    parts = [int(color[place : place + 2], 16) / 255 for place in (1, 3, 5)]
    red, green, blue = [one / 12.92 if one <= 0.04045 else ((one + 0.055) / 1.055) ** 2.4 for one in parts]
    return 0.2126 * red + 0.7152 * green + 0.0722 * blue


def contrast(one, other):
    high, low = sorted((luminance(one), luminance(other)), reverse=True)
    return (high + 0.05) / (low + 0.05)


@pytest.mark.parametrize("colors", [COLORS, DARK], ids=["light", "dark"])
def test_every_text_and_every_mark_can_be_seen(colors):
    statuses = [status.value for status in Status]
    texts = [*statuses, "ink", "ink-2", "ink-3", "accent"]

    faint = [name for name in texts for on in ("bg", "surface") if contrast(colors[name], colors[on]) < 4.5]
    faint += [name for name in statuses if contrast(colors[f"f-{name}"], colors["bg"]) < 3]
    # What stands on a colour of its own.
    faint += [
        "{} on {}".format(*pair)
        for pair in [("retrying", "attn"), ("ink", "attn"), ("ink", "bad"), ("ink-2", "tag"), ("ink", "tag")]
        if contrast(colors[pair[0]], colors[pair[1]]) < 4.5
    ]

    assert faint == []


def test_every_color_has_a_light_and_a_dark_one():
    assert COLORS.keys() == DARK.keys()
    assert not re.search(r"#[0-9a-f]{3,8}\b", SHEET.split("\n}\n", 1)[1]), "a colour beside the table"
    assert set(re.findall(r"var\(--([\w-]+)\)", SHEET)) <= {*COLORS, "sans", "mono"}


def test_own_script_and_the_first_visit_are_small():
    assets = Assets()
    sizes = {name: len(asset.packed) for name, asset in assets._files.items()}

    assert len((STATIC / "dashboard.js").read_bytes()) < 6 << 10
    assert sum(sizes.values()) < 40_000, sizes


def test_vendored_files_are_those_of_the_release():
    folder = STATIC / "htmx"
    sums = dict(re.findall(r"^([0-9a-f]{64})  (\S+)$", (folder / "VENDORED.txt").read_text(), re.MULTILINE))

    assert set(sums.values()) == {file.name for file in folder.iterdir()} - {"VENDORED.txt"}
    assert {hashlib.sha256((folder / name).read_bytes()).hexdigest() for name in sums.values()} == set(sums)


@pytest.mark.parametrize("path", sorted(TEMPLATES.iterdir()), ids=lambda path: path.name)
def test_nothing_stands_in_a_page_that_its_policy_forbids(path):
    text = path.read_text()

    assert not re.search(r"\sstyle=|<style|\son\w+=|javascript:|hx-on|\bjs:", text)
    assert re.findall(r"<script(?![^>]* src=)", text) == []
    assert not re.search(r"\| *safe|autoescape false", text)


def test_every_status_has_a_glyph_a_text_and_a_fill():
    sprite = (STATIC / "sprite.svg").read_text()
    every = [status.value for status in Status]

    assert [name for name in every if f'id="i-{name}"' not in sprite] == []
    assert [name for name in every if f".s-{name} " not in SHEET or f".f-{name} " not in SHEET] == []
