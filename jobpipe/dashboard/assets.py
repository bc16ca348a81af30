"""The files that pages need: style sheet, sprite, scripts. Read once; their address changes whenever they do."""

import gzip
import hashlib
from collections.abc import Mapping
from pathlib import Path

import msgspec

from jobpipe.version import VERSION

STATIC = Path(__file__).parent / "static"

TYPES: Mapping[str, str] = {
    ".css": "text/css; charset=utf-8",
    ".js": "text/javascript; charset=utf-8",
    ".svg": "image/svg+xml",
}
"""The files that are served, by their endings; others are for people."""

FOREVER = "public, max-age=31536000, immutable"
"""A year, the longest that HTTP means seriously; the address has the version."""


class Asset(msgspec.Struct, frozen=True):
    """A file, as it is and packed."""

    content_type: str
    body: bytes
    packed: bytes


class Assets:
    """All of them, in memory: about 100 KiB."""

    def __init__(self) -> None:
        found = sorted(path for path in STATIC.rglob("*") if path.suffix in TYPES)
        self._files = {path.relative_to(STATIC).as_posix(): _read(path) for path in found}
        digest = hashlib.sha256()
        for name, asset in self._files.items():
            digest.update(name.encode() + asset.body)
        self.version = f"{VERSION}-{digest.hexdigest()[:8]}"

    def url(self, name: str) -> str:
        """Where a file is. Raises `KeyError` for one that is not there."""
        self._files[name]
        return f"/dashboard/static/{self.version}/{name}"

    def find(self, version: str, name: str) -> Asset | None:
        """A file of this version; None: there is none."""
        return self._files.get(name) if version == self.version else None


def _read(path: Path) -> Asset:
    body = path.read_bytes()
    return Asset(TYPES[path.suffix], body, gzip.compress(body, mtime=0))
