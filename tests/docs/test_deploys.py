"""The files that the docs give for systemd and compose: they parse, and say what the page around them says."""

import re
import shlex
from pathlib import Path

import pytest
import yaml  # type: ignore[import-untyped]  # it has no types of its own

from jobpipe.settings import SETTINGS
from tests.docs.pages import DOCS, blocks, read

pytestmark = pytest.mark.slow

UNITS = [(page.name, block.text) for page in sorted(DOCS.glob("*.md")) for block in blocks(read(page), "ini")]
(COMPOSE,) = [block.text for page in sorted(DOCS.glob("*.md")) for block in blocks(read(page), "yaml")]
LONGEST_STOP = 30 + 5 + 3
"""Seconds: GRACE, cleanup, last answers; see docs/shutdown-and-crash.md."""


def settings_in(variables):
    """The settings that variables stand for; raises when one is wrong."""
    known = {setting.variable: setting for setting in SETTINGS}
    return {name: known[name].read(value) for name, value in variables.items() if name in known}


class Unit:
    """A unit of systemd: its directives, and the environment that it gives to the service."""

    def __init__(self, text):
        pairs = re.findall(r"^(\w+)=(.*)$", text, re.MULTILINE)
        self.directives = dict(pairs)
        self.environment = dict(value.split("=", 1) for name, value in pairs if name == "Environment")


@pytest.mark.parametrize(("page", "text"), UNITS)
def test_unit_gives_the_service_time_to_stop_and_starts_the_command(page, text):
    directives = Unit(text).directives
    command, *arguments = shlex.split(directives["ExecStart"])

    assert (Path(command).name, arguments) == ("jobpipe", ["serve"])
    assert int(directives["TimeoutStopSec"]) > LONGEST_STOP
    assert directives["Restart"] == "always"


@pytest.mark.parametrize(("page", "text"), UNITS)
def test_unit_with_a_dynamic_user_has_its_store_where_that_user_may_write(page, text):
    unit = Unit(text.replace("%i", "8081"))
    settings = settings_in(unit.environment)

    assert unit.directives["DynamicUser"] == "yes"
    if folder := unit.directives.get("StateDirectory"):
        assert settings["STORE"].startswith(f"sqlite:/var/lib/{folder}/")
    else:
        assert "EnvironmentFile" in unit.directives  # which names a database


def test_compose_gives_settings_that_jobpipe_reads_and_no_files_that_it_cannot():
    services = yaml.safe_load(COMPOSE)["services"]
    jobpipe, database = services["jobpipe"], services["db"]
    settings = settings_in({name: str(value) for name, value in jobpipe["environment"].items()})

    assert settings["STORE"] == "postgresql://jobpipe@db/jobs"
    assert jobpipe["environment"]["PGPASSWORD"] == database["environment"]["POSTGRES_PASSWORD"]
    assert [each for each in (jobpipe, database) if "secrets" in each] == []
    assert int(jobpipe["stop_grace_period"].removesuffix("s")) > LONGEST_STOP
    assert settings["WAIT_FOR_STORE"] > 0


def test_compose_names_variables_that_the_page_puts_into_its_env_file():
    needed = set(re.findall(r"\$\{(\w+)", COMPOSE))
    made = {
        name
        for block in blocks(read(DOCS / "scaling.md"), "sh")
        if ".env" in block.text
        for name in re.findall(r"\b(\w+)=", block.text)
    }

    assert needed
    assert needed <= made
