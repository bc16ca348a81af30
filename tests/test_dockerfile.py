"""The Dockerfile keeps its promises. It is read, not built: a machine without Docker can run this too."""

import json
import re
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent


def _instructions() -> list[tuple[str, str]]:
    """Each instruction with its arguments, without comments and line breaks."""
    text = (ROOT / "Dockerfile").read_text()
    lines = [line for line in text.splitlines() if line.strip() and not line.startswith("#")]
    joined = re.sub(r"\\\n\s*", " ", "\n".join(lines))
    words = (line.partition(" ") for line in joined.splitlines())
    return [(word.upper(), rest.strip()) for word, _, rest in words]


INSTRUCTIONS = _instructions()
STAGES = [index for index, (word, _) in enumerate(INSTRUCTIONS) if word == "FROM"]
BUILD, IMAGE = INSTRUCTIONS[STAGES[0] : STAGES[1]], INSTRUCTIONS[STAGES[-1] :]


def _only(word: str) -> str:
    """The arguments of the one instruction of that name in the image's stage."""
    found = [rest for name, rest in IMAGE if name == word]
    assert len(found) == 1, f"{word} stands {len(found)} times"
    return found[0]


def _environment() -> dict[str, str]:
    words = [word for name, rest in IMAGE if name == "ENV" for word in rest.split()]
    return dict(word.split("=", 1) for word in words)


def test_has_two_stages_and_the_second_takes_only_the_built_folder():
    copied = [rest for name, rest in IMAGE if name in {"COPY", "ADD"}]

    assert len(STAGES) == 2
    assert BUILD[0][1].endswith("AS build")
    assert copied
    assert all(rest.startswith("--from=build /opt/jobpipe ") for rest in copied)


def test_base_is_pinned_to_a_patch_release_and_the_same_in_both_stages():
    base = dict(rest.split("=", 1) for name, rest in INSTRUCTIONS[: STAGES[0]] if name == "ARG")["BASE"]

    assert re.fullmatch(r"python:3\.\d+\.\d+-slim-[a-z]+", base)
    assert [INSTRUCTIONS[index][1].split(" AS ")[0] for index in STAGES] == ["${BASE}", "${BASE}"]


def test_what_is_installed_is_checked_by_hash_or_needs_no_index():
    commands = " && ".join(rest for name, rest in BUILD if name == "RUN")
    installs = re.findall(r"pip (?:--python \S+ )?install [^&]*", commands)

    assert any("-r requirements/runtime.txt" in install for install in installs)
    assert all("--require-hashes" in install or "--no-index" in install for install in installs)


def test_image_holds_no_development_tools():
    assert not any("dev.txt" in rest for _, rest in INSTRUCTIONS)
    assert not any(name == "RUN" and "pip" in rest for name, rest in IMAGE)


def test_process_gets_the_signals_itself_and_serves_by_default():
    assert json.loads(_only("ENTRYPOINT")) == ["jobpipe"]
    assert json.loads(_only("CMD")) == ["serve"]
    assert _only("STOPSIGNAL") == "SIGTERM"


def test_user_is_a_number_and_not_root():
    user, _, group = _only("USER").partition(":")

    assert int(user) >= 1000
    assert int(group) >= 1000


def test_database_lies_in_a_volume_that_the_user_may_write():
    user, _, group = _only("USER").partition(":")
    made = next(rest for name, rest in IMAGE if name == "RUN" and rest.endswith("/data"))
    words = [name for name, _ in IMAGE]

    assert _only("VOLUME") == "/data"
    assert _environment()["STORE"] == "sqlite:/data/jobpipe.db"
    assert f"-o {user} -g {group} " in made
    assert words.index("RUN") < words.index("VOLUME"), "what is changed after VOLUME is lost"


def test_listens_to_the_outside_on_the_exposed_port():
    assert _environment()["HOST"] == "0.0.0.0"
    assert _environment()["PORT"] == _only("EXPOSE") == "8080"


def test_health_is_asked_without_a_shell_or_curl():
    _options, _, command = _only("HEALTHCHECK").partition(" CMD ")

    assert json.loads(command) == ["jobpipe", "health"]


@pytest.mark.parametrize("kept_out", [".git", ".env", "tests", ".venv", "jobpipe.db"])
def test_build_context_holds_only_what_is_copied(kept_out):
    lines = (ROOT / ".dockerignore").read_text().splitlines()
    rules = [line for line in lines if line and not line.startswith("#")]
    words = [word for name, rest in BUILD if name == "COPY" for word in rest.split()[:-1]]
    let_in = {rule[1:] for rule in rules if rule.startswith("!")}

    assert rules[0] == "*"
    assert {word.split("/")[0] for word in words} == {rule.rstrip("/") for rule in let_in}
    assert kept_out not in let_in
