"""The README is short, has pictures, and everything it shows works."""

import re

import pytest

from tests.helpers.installed import installed, run_python
from tests.helpers.stages import ROOT

README = (ROOT / "README.md").read_text("utf-8")
SNIPPETS = re.findall(r"^```python\n(.*?)^```$", README, re.MULTILINE | re.DOTALL)
LAYOUT = README.split("## Layout\n")[1].split("\n## ")[0]
MOST_LINES = 160
MOST_PICTURE_BYTES = 300_000


def test_the_readme_is_at_most_160_lines():
    assert len(README.splitlines()) <= MOST_LINES


def test_the_readme_shows_pictures_of_at_most_300_kilobytes():
    pictures = re.findall(r"!\[[^\]]+\]\(([^)]+)\)", README)
    assert pictures
    too_large = {
        name: (ROOT / name).stat().st_size
        for name in pictures
        if (ROOT / name).stat().st_size > MOST_PICTURE_BYTES
    }
    assert too_large == {}


def test_the_readme_has_three_snippets():
    assert len(SNIPPETS) == 3


@pytest.mark.parametrize("number", range(len(SNIPPETS)))
def test_every_snippet_runs_unchanged_with_the_installed_package(
    number, tmp_path, tmp_path_factory
):
    run_python(SNIPPETS[number], site=installed(tmp_path_factory), folder=tmp_path)


def test_the_layout_names_every_room_and_no_other_folder():
    folders = set(re.findall(r"([a-z]+)/(?= )", LAYOUT))
    rooms = {path.parent.name for path in (ROOT / "pneumothorax").glob("*/__init__.py")}
    assert len(rooms) > 5
    assert rooms - folders == set()
    others = {path.name for path in ROOT.iterdir() if path.is_dir()}
    assert folders - rooms - others == set()


def test_the_layout_names_every_script_and_every_module_outside_the_rooms():
    words = set(re.findall(r"[\w.]+", LAYOUT))
    scripts = {path.name for pattern in ("*.py", "*.sh") for path in ROOT.glob(pattern)}
    door = {path.stem for path in (ROOT / "pneumothorax").glob("*.py")} - {"__init__"}
    assert len(scripts) > 5
    assert len(door) > 5
    assert (scripts | door) - words == set()
    assert {word for word in words if word.endswith(".sh") or word[:2].isdigit()} - scripts == set()


def test_the_files_that_follow_one_image_exist():
    named = re.findall(r"`([a-z_]+/[a-z_]+\.py)`", LAYOUT)
    assert len(named) >= 5
    assert [name for name in named if not (ROOT / "pneumothorax" / name).is_file()] == []
