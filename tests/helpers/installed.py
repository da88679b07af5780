"""The package as `pip install .` leaves it, for tests that use it from outside the repository."""

import os
import shutil
import subprocess
import sys
import zipfile
from pathlib import Path

from tests.helpers.stages import ROOT

BUILD = "import setuptools.build_meta, sys; setuptools.build_meta.build_wheel(sys.argv[1])"


def installed(tmp_path_factory) -> Path:
    """A folder with the unpacked wheel, built offline from a clean copy, once per session."""
    folder = tmp_path_factory.getbasetemp() / "installed"
    if (folder / "site").is_dir():
        return folder / "site"
    copy_of_the_repository(folder / "source")
    (folder / "wheel").mkdir()
    subprocess.run(
        [sys.executable, "-c", BUILD, str(folder / "wheel")],
        cwd=folder / "source",
        check=True,
    )
    (wheel,) = (folder / "wheel").glob("*.whl")
    with zipfile.ZipFile(wheel) as archive:
        archive.extractall(folder / "site")
    return folder / "site"


def copy_of_the_repository(target: Path) -> None:
    """Copies to `target` what a clean clone would hold, in the state of the working tree."""
    if not (ROOT / ".git").exists():  # an unpacked archive
        ignored = shutil.ignore_patterns(".*", "__pycache__", "input", "output", "build")
        shutil.copytree(ROOT, target, ignore=ignored, dirs_exist_ok=True)
        return
    listed = subprocess.run(
        ["git", "ls-files", "--cached", "--others", "--exclude-standard", "-z"],
        cwd=ROOT,
        check=True,
        capture_output=True,
        text=True,
    )
    for name in filter(None, listed.stdout.split("\0")):
        if (ROOT / name).is_file():  # a file deleted but not yet committed is still listed
            (target / name).parent.mkdir(parents=True, exist_ok=True)
            shutil.copy(ROOT / name, target / name)


def run_python(code: str, *, site: Path, folder: Path) -> str:
    """What `python -c CODE` prints in `folder`, with the installed package found in `site`."""
    done = subprocess.run(
        [sys.executable, "-c", code],
        cwd=folder,
        env={**os.environ, "PYTHONPATH": str(site)},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    return done.stdout
