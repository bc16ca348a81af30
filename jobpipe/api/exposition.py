"""Metrics as text, for Prometheus and whatever reads the same: in slices, so that nobody waits for the event loop."""

import itertools
from collections.abc import Callable, Iterable
from typing import Any, Literal

import trio
from prometheus_client import GC_COLLECTOR, PROCESS_COLLECTOR
from prometheus_client.core import Metric
from prometheus_client.exposition import CONTENT_TYPE_PLAIN_0_0_4, generate_latest
from prometheus_client.openmetrics import exposition as openmetrics
from prometheus_client.registry import Collector

Format = Literal["text", "openmetrics"]

CONTENT_TYPES: dict[Format, str] = {
    "text": CONTENT_TYPE_PLAIN_0_0_4,
    "openmetrics": openmetrics.CONTENT_TYPE_LATEST,
}

_WRITE: dict[Format, Callable[[Any], bytes]] = {
    "text": generate_latest,
    "openmetrics": openmetrics.generate_latest,
}

_END = b"# EOF\n"
"""How OpenMetrics ends; so would each piece."""

OPENMETRICS = "application/openmetrics-text"
PLAIN = frozenset({"text/plain", "text/*", "*/*"})


def chosen(accepted: Iterable[tuple[str, float]]) -> Format:
    """The format for what a client accepts: media types with their quality, the best first. Whatever it says, one."""
    for media_type, quality in accepted:
        name = media_type.partition(";")[0].strip().lower()
        if quality > 0 and name == OPENMETRICS:
            return "openmetrics"
        if quality > 0 and name in PLAIN:
            return "text"
    return "text"


class _One(Collector):
    """Collects one piece of a metric."""

    def __init__(self, piece: Metric) -> None:
        self._piece = piece

    def collect(self) -> Iterable[Metric]:
        return [self._piece]


async def written(pieces: Iterable[Metric], form: Format) -> bytes:
    """Metrics as text. Those that come in pieces, one after the other, are one; others run between two pieces."""
    # In a thread: with ten thousand connections it takes a while to count the open files.
    of_process = await trio.to_thread.run_sync(_of_process)
    parts, last = [], ""
    for piece in itertools.chain(pieces, of_process):
        text = _WRITE[form](_One(piece)).removesuffix(_END)
        if piece.name == last:
            text = _without_head(text)
        parts.append(text)
        last = piece.name
        await trio.lowlevel.checkpoint()
    return b"".join(parts) + (_END if form == "openmetrics" else b"")


def _of_process() -> list[Metric]:
    return [*PROCESS_COLLECTOR.collect(), *GC_COLLECTOR.collect()]


def _without_head(text: bytes) -> bytes:
    """The samples alone: what the metric is and means stands before its first piece."""
    while text.startswith(b"#"):
        text = text.partition(b"\n")[2]
    return text
