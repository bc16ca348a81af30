"""jobpipe can be installed into an environment of one's own as the docs say.

Offline: without dependencies and build environments, which a folder on the new environment's path has already.
"""

import re
import subprocess
import sysconfig
import venv
from pathlib import Path

import pytest

from tests.docs.pages import DOCS, README, ROOT, blocks, commands, read
from tests.docs.services import environment, shell
from tests.docs.test_commands import INSTALLS, listed

pytestmark = pytest.mark.slow

HERE = sysconfig.get_path("purelib")


def installing() -> list[str]:
    """The commands of README and docs that install jobpipe from somewhere."""
    return sorted(
        {
            command
            for page in (README, *sorted(DOCS.glob("*.md")))
            for block in blocks(read(page), "sh")
            for command in commands(block.text)
            if re.fullmatch(INSTALLS, command) and "rust-just" not in command
        }
    )


@pytest.fixture
def project(tmp_path: Path) -> Path:
    """A project with an environment of its own, beside a clone of the repository."""
    venv.create(tmp_path / "env", with_pip=False)
    library = sysconfig.get_path("purelib", vars={"base": str(tmp_path / "env")})
    Path(library, "offline.pth").write_text(HERE)
    (tmp_path / "jobpipe").symlink_to(ROOT)
    (tmp_path / "myjobs.py").write_text(blocks(read(README), "python")[0].text)
    return tmp_path


def test_docs_install_from_a_clone_from_git_and_by_a_wheel():
    text = "\n".join(installing())

    assert all(map(listed, installing()))
    assert [word for word in ("./jobpipe", "git+", "wheel", "[postgres]") if word not in text] == []


@pytest.mark.parametrize("command", installing())
def test_jobpipe_is_installed_by(project, command):
    if "git+" in command and not (ROOT / ".git").exists():
        pytest.skip("the sources are no git repository")
    pip = f"{project}/env/bin/python -m pip --disable-pip-version-check"
    offline = command.replace("https://git.example.com/jobpipe.git", f"file://{ROOT}")
    offline = re.sub(
        r"\bpip (install|wheel)\b", rf"{pip} \1 --quiet --no-deps --no-index --no-build-isolation", offline
    )
    shell(offline, project)

    done = subprocess.run(
        [project / "env" / "bin" / "jobpipe", "config", "--handlers", "myjobs"],
        cwd=project,
        env=environment(),
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    where, _ = shell("env/bin/python -c 'import jobpipe; print(jobpipe.__file__)'", project)

    assert (done.returncode, done.stderr) == (0, "")
    assert re.search(r"^HANDLERS +myjobs +flag", done.stdout, re.MULTILINE)
    assert f"{project}/env/lib" in where
