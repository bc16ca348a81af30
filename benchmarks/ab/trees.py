"""The two trees that are compared: a revision in a worktree of git, and this one as it is."""

import filecmp
import signal
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from benchmarks.processes import ROOT, Tree, environment

REQUIREMENTS = Path("requirements") / "runtime.txt"

SIGNALS = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)

WHERE = "import jobpipe, pathlib; print(pathlib.Path(jobpipe.__file__).resolve())"


class NoSuchRevision(Exception):  # noqa: N818 - what somebody asked for
    """Git knows no such commit."""


def commit(revision: str) -> str:
    """The number of a commit, short. Raises `NoSuchRevision`."""
    done = subprocess.run(
        _git("rev-parse", "--verify", "--quiet", "--short", f"{revision}^{{commit}}"),
        stdout=subprocess.PIPE,
        text=True,
        check=False,
    )
    if done.returncode:
        raise NoSuchRevision(f"git knows no commit {revision!r} here")
    return done.stdout.strip()


@contextmanager
def trees(revision: str, folder: Path) -> Iterator[tuple[Tree, Tree]]:
    """The older and the newer tree, both driven by this tree's programs. What is made for it is taken away."""
    number = commit(revision)
    programs = folder / "programs"
    programs.mkdir()
    (programs / "benchmarks").symlink_to(ROOT / "benchmarks")  # alone: beside it would be this tree's jobpipe
    code = folder / f"jobpipe-{number}"
    try:
        # In a session of its own: a Ctrl+C is for this program, which then has git take the worktree away.
        subprocess.run(
            _git("worktree", "add", "--quiet", "--detach", code, number), check=True, start_new_session=True
        )
        python = sys.executable if same_requirements(code) else own_python(code, folder / "venv")
        yield Tree(code, programs, python, name=number), Tree(ROOT, programs)
    finally:
        with _undisturbed():
            command = _git("worktree", "remove", "--force", code)
            subprocess.run(command, check=False, start_new_session=True, stderr=subprocess.DEVNULL)


def same_requirements(code: Path) -> bool:
    """Whether a tree runs on the very packages that this one runs on."""
    theirs = code / REQUIREMENTS
    return theirs.exists() and filecmp.cmp(theirs, ROOT / REQUIREMENTS, shallow=False)


def own_python(code: Path, folder: Path) -> str:
    """Make an environment with the packages that a tree pins; returns its Python."""
    print(f"its requirements differ: an environment of its own for {code.name} ...", file=sys.stderr)
    subprocess.run([sys.executable, "-m", "venv", folder], check=True)
    python = str(folder / "bin" / "python")
    install = [python, "-m", "pip", "--disable-pip-version-check", "--quiet", "install"]
    pinned = [code / "requirements" / name for name in ("runtime.txt", "build.txt")]
    files = [part for path in pinned if path.exists() for part in ("--requirement", str(path))]
    subprocess.run([*install, "--require-hashes", *files], check=True)
    # For its name and version alone: what is imported is found by its folder, as with a shared environment.
    subprocess.run([*install, "--no-deps", "--no-build-isolation", "--editable", str(code)], check=True)
    return python


def imported(tree: Tree) -> Path:
    """The file of the package that the programs of a tree import, which must be its own."""
    command = [tree.python, "-c", WHERE]
    told = subprocess.check_output(command, env=environment(tree), cwd=tree.programs, text=True)
    found = Path(told.strip())
    if found != (tree.code / "jobpipe" / "__init__.py").resolve():
        raise RuntimeError(f"{tree.name} would run {found}, not the code of {tree.code}")
    return found


@contextmanager
def _undisturbed() -> Iterator[None]:
    """Pass over what would end this program, for a moment: people press Ctrl+C more than once."""
    before = {number: signal.signal(number, signal.SIG_IGN) for number in SIGNALS}
    try:
        yield
    finally:
        for number, action in before.items():
            signal.signal(number, action)


def _git(*arguments: object) -> list[str]:
    # Somebody's hooks have nothing to do with a tree that is only run.
    return ["git", "-C", str(ROOT), "-c", "core.hooksPath=/dev/null", *map(str, arguments)]
