"""Every setting, once: what there is, how it is written, and where it is looked for."""

from jobpipe.settings.definition import SETTINGS, Setting, Settings
from jobpipe.settings.forms import (
    mask,
    read_duration,
    read_size,
    show_duration,
    show_numbered,
    show_size,
    show_weights,
)
from jobpipe.settings.loading import DOTENV, Loaded, load, service_url

__all__ = [
    "DOTENV",
    "SETTINGS",
    "Loaded",
    "Setting",
    "Settings",
    "load",
    "mask",
    "read_duration",
    "read_size",
    "service_url",
    "show_duration",
    "show_numbered",
    "show_size",
    "show_weights",
]
