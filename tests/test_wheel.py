"""The wheel holds the whole package: code, pages, static files, migrations, the marker of its types."""

import subprocess
import sys
import zipfile
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent


@pytest.fixture(scope="module")
def wheel(tmp_path_factory):
    """The files of a wheel that was just built, without what only describes it."""
    folder = tmp_path_factory.mktemp("wheel")
    subprocess.run(
        [sys.executable, "-m", "hatchling", "build", "--target", "wheel", "--directory", str(folder)],
        cwd=ROOT,
        check=True,
        capture_output=True,
    )
    (built,) = folder.glob("jobpipe-*.whl")
    return {name for name in zipfile.ZipFile(built).namelist() if ".dist-info/" not in name}


def test_wheel_holds_every_file_of_the_package_and_no_other(wheel):
    ours = {
        path.relative_to(ROOT).as_posix()
        for path in (ROOT / "jobpipe").rglob("*")
        if path.is_file() and path.suffix != ".pyc"
    }

    assert wheel == ours


@pytest.mark.parametrize(
    "name",
    [
        "jobpipe/py.typed",
        "jobpipe/api/static/swagger-ui/LICENSE",
        "jobpipe/api/static/swagger-ui/swagger-ui-bundle.js",
        "jobpipe/api/templates/docs.html",
        "jobpipe/store/sqlite/migrations/0002_jobs.sql",
    ],
)
def test_wheel_holds_what_is_no_code(wheel, name):
    assert name in wheel
