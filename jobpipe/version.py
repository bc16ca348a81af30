"""The version of jobpipe, as installed: `pyproject.toml` is where it stands."""

from importlib.metadata import version

VERSION = version("jobpipe")
