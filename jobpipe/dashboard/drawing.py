"""Templates made into bytes. Every value is escaped; nothing that a page says comes from anywhere but its templates."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import jinja2

from jobpipe.api.schemas import rfc3339
from jobpipe.dashboard.assets import Assets
from jobpipe.dashboard.words import duration, time_of_day
from jobpipe.engine.node import Node
from jobpipe.version import VERSION

TEMPLATES = Path(__file__).parent / "templates"

SITES: Sequence[tuple[str, str]] = (("Overview", "/dashboard"), ("Jobs", "/dashboard/jobs"))
"""The pages of the bar on top, and where they are."""

KEYS: Sequence[tuple[str, str]] = (
    ("/", "search"),
    ("g o", "overview"),
    ("g j", "jobs"),
    ("j k", "next and previous row"),
    ("x", "tick the row"),
    ("[ ]", "older and newest"),
    ("c", "cancel the job"),
    ("r", "retry the job"),
    ("y", "copy the job's id"),
    ("l", "the job's log"),
    ("p", "pause what is live"),
    ("d", "theme"),
    ("?", "this list"),
    ("Esc", "close it"),
)
"""What each key does, for the help."""


class Drawing:
    """Draws pages and parts of pages."""

    def __init__(self, node: Node, assets: Assets) -> None:
        settings = node.settings
        # Autoescape is on for whatever has no ending, too: nothing here is anything but HTML.
        self._env = jinja2.Environment(
            loader=jinja2.FileSystemLoader(TEMPLATES),
            autoescape=True,
            trim_blocks=True,
            lstrip_blocks=True,
            undefined=jinja2.StrictUndefined,
            auto_reload=False,
        )
        self._env.globals.update(
            base=settings.base_path,
            asset=lambda name: settings.base_path + assets.url(name),
            iso=rfc3339,
            duration=duration,
            time_of_day=time_of_day,
            acts=settings.dashboard == "on",
            mode=settings.dashboard,
            origin=f"http://localhost:{settings.port}{settings.base_path}",
            instance=settings.instance,
            node=node.name,
            version=VERSION,
            sites=SITES,
            key_help=KEYS,
        )

    def page(self, name: str, here: str, *, live: str = "", notice: str = "", **what: Any) -> bytes:  # noqa: ANN401 - views
        """A whole page; `here`: which of `SITES` it belongs to, `live`: where its stream is."""
        template = self._env.get_template(f"{name}.html")
        return template.render(here=here, live=live, notice=notice, **what).encode()

    def part(self, name: str, **what: Any) -> bytes:  # noqa: ANN401 - views
        """A part of a page, the same bytes for the same view."""
        return self._env.get_template(f"_{name}.html").render(**what).encode()

    def row(self, row: object) -> bytes:
        """A row of the list of jobs."""
        macros = self._env.get_template("macros.html").module
        drawn: str = macros.job_row(row, self._env.globals["acts"])  # type: ignore[attr-defined]  # a macro of the file
        return drawn.encode()
