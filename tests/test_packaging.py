"""What is committed can be installed anywhere: pins with hashes, no index by name, recipes that say what they do."""

import re
import shutil
import subprocess
import tomllib
from importlib.metadata import version
from pathlib import Path

import pytest

from jobpipe.settings import SETTINGS, Settings, load
from jobpipe.settings.definition import connections_for

ROOT = Path(__file__).parent.parent
PINNED = sorted(path.name for path in (ROOT / "requirements").glob("*.txt"))

PINNED_AND_HASHED = re.compile(r"[\w.-]+(\[[\w, -]+\])?==\S+ .*--hash=sha256:[0-9a-f]{64}")

# In halves, so that this file does not name what it looks for.
REGISTRIES = [
    "py" + "pi.org",
    "python" + "hosted.org",
    "npm" + "js.org",
    "deb" + ".debian.org",
    "docker" + ".io",
    "gh" + "cr.io",
    "qu" + "ay.io",
]


def _project() -> dict[str, object]:
    project: dict[str, object] = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    return project


def _committed() -> list[Path]:
    """The files that git keeps, or would keep."""
    command = ["git", "ls-files", "-z", "--cached", "--others", "--exclude-standard"]
    names = subprocess.run(command, cwd=ROOT, check=True, capture_output=True, text=True).stdout.split("\0")
    return [path for name in names if name and (path := ROOT / name).is_file()]


def _requirements(name: str) -> list[str]:
    """Each requirement of a file with its hashes, without comments."""
    text = re.sub(r"^\s*#.*\n?", "", (ROOT / "requirements" / name).read_text(), flags=re.MULTILINE)
    return [line for line in re.sub(r"\\\n\s*", "", text).splitlines() if line.strip()]


def _names(requirements: list[str]) -> set[str]:
    return {re.split(r"[^A-Za-z0-9._-]", one)[0].lower().replace("_", "-") for one in requirements}


def _versions(name: str) -> dict[str, set[str]]:
    """The versions of each requirement: more than one where Python or the platform decides."""
    versions: dict[str, set[str]] = {}
    for one in _requirements(name):
        package, _, rest = one.partition("==")
        versions.setdefault(package, set()).add(rest.split(" ")[0])
    return versions


@pytest.mark.skipif(
    not (ROOT / ".git").exists() or shutil.which("git") is None,
    reason="only a git checkout knows what is committed",
)
@pytest.mark.parametrize("host", REGISTRIES)
def test_no_committed_file_names_a_package_registry(host):
    naming = [str(path.relative_to(ROOT)) for path in _committed() if host.encode() in path.read_bytes()]

    assert naming == []


@pytest.mark.parametrize("name", PINNED)
def test_every_requirement_is_pinned_and_has_hashes(name):
    requirements = _requirements(name)

    assert requirements
    assert [one for one in requirements if not PINNED_AND_HASHED.match(one)] == []


def test_pins_cover_every_dependency_of_the_package():
    dependencies = _project()["dependencies"]
    assert isinstance(dependencies, list)

    assert _names(dependencies) <= _names(_requirements("runtime.txt"))
    assert all(">=" in dependency for dependency in dependencies), "a dependency without a lower bound"


def test_development_uses_the_versions_that_users_get():
    runtime, dev = (_versions(name) for name in ("runtime.txt", "dev.txt"))
    shared = runtime.keys() & dev.keys()

    assert shared
    assert {name: dev[name] for name in shared} == {name: runtime[name] for name in shared}


def test_version_in_force_is_the_version_of_the_project():
    assert version("jobpipe") == _project()["version"]


def test_env_example_shows_every_setting_with_its_default(tmp_path):
    text = (ROOT / ".env.example").read_text()
    dotenv = tmp_path / ".env"
    dotenv.write_text(re.sub(r"^#(?=[A-Z_]+=)", "", text, flags=re.MULTILINE))
    shown = re.findall(r"^#([A-Z_]+)=", text, re.MULTILINE)

    assert sorted(shown) == sorted(setting.variable for setting in SETTINGS)
    assert load({}, {}, dotenv).settings == Settings(max_connections=connections_for(1024))


def test_every_recipe_has_a_comment_that_is_its_help():
    text = re.sub(r"^\[.*\n", "", (ROOT / "justfile").read_text(), flags=re.MULTILINE)
    recipes = re.findall(r"^(.*)\n([a-z][\w-]*)(?: [^:\n]*)?:(?!=)", text, re.MULTILINE)

    assert len(recipes) >= 10
    assert [name for above, name in recipes if not above.startswith("# ")] == []


@pytest.mark.parametrize(
    "recipe", ["default", "run", "test", "vet", "fix", "build", "docker-run", "check", "lock"]
)
def test_justfile_has_the_recipes_that_are_promised(recipe):
    assert re.search(rf"^{recipe}( [^:]*)?:", (ROOT / "justfile").read_text(), re.MULTILINE)
