"""The files that the docs give for systemd and compose: they parse, and say what the page around them says."""

import configparser
import re
import shlex
from pathlib import Path

import pytest
import yaml

from jobpipe.settings import SETTINGS
from tests.docs.pages import DOCS, blocks, read

UNITS = [(page.name, block.text) for page in sorted(DOCS.glob("*.md")) for block in blocks(read(page), "ini")]
(COMPOSE,) = [block.text for page in sorted(DOCS.glob("*.md")) for block in blocks(read(page), "yaml")]
LONGEST_STOP = 30 + 5 + 3
"""Seconds: GRACE, cleanup, last answers; see docs/shutdown-and-crash.md."""


def settings_in(variables):
    """The settings that variables stand for; raises when one is wrong."""
    known = {setting.variable: setting for setting in SETTINGS}
    return {name: known[name].read(value) for name, value in variables.items() if name in known}


def unit(text):
    """A unit of systemd: the lines of each section, where a name may come twice."""
    parser = configparser.RawConfigParser(strict=False, interpolation=None)
    parser.optionxform = str
    parser.read_string(re.sub(r"^Environment=(\w+)=", r"Environment.\1=", text, flags=re.MULTILINE))
    return parser


@pytest.mark.parametrize(("page", "text"), UNITS)
def test_unit_gives_the_service_time_to_stop_and_starts_the_command(page, text):
    service = unit(text)["Service"]
    command, *arguments = shlex.split(service["ExecStart"])

    assert (Path(command).name, arguments) == ("jobpipe", ["serve"])
    assert int(service["TimeoutStopSec"]) > LONGEST_STOP
    assert service["Restart"] == "always"


@pytest.mark.parametrize(("page", "text"), UNITS)
def test_unit_with_a_dynamic_user_has_its_store_where_that_may_write(page, text):
    service = unit(text)["Service"]
    variables = {name.removeprefix("Environment."): value for name, value in service.items() if "." in name}
    settings_in({name: value.replace("%i", "8081") for name, value in variables.items()})

    assert service["DynamicUser"] == "yes"
    if "StateDirectory" in service:
        assert variables["STORE"].startswith(f"sqlite:/var/lib/{service['StateDirectory']}/")
    else:
        assert "EnvironmentFile" in service  # which names a database


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
