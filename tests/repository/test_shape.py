"""The repository keeps its shape: short functions, small rooms, one-page scripts."""

import ast
import subprocess
from collections import defaultdict
from pathlib import Path

import pytest

from tests.helpers.stages import ROOT

SCRIPTS = sorted(ROOT.glob("*.py"))
LIBRARY = sorted([*(ROOT / "pneumothorax").rglob("*.py"), *(ROOT / "models").glob("*.py")])
SOURCES = [*SCRIPTS, *LIBRARY]
FUNCTION_LINES, CLASS_LINES, SCRIPT_LINES, ROOM_FILES, FRAGMENT_LINES = 50, 200, 150, 11, 60


def name_of(path):
    return path.relative_to(ROOT).as_posix()


def too_long(source, kinds, limit):
    """["name (lines)"] of the definitions of these kinds with more lines than `limit`."""
    return [
        f"{node.name} ({node.end_lineno - node.lineno + 1} lines)"
        for node in ast.walk(ast.parse(source))
        if isinstance(node, kinds) and node.end_lineno - node.lineno + 1 > limit
    ]


def test_the_search_finds_the_code():
    assert len(SCRIPTS) >= 6
    assert len(LIBRARY) >= 70


@pytest.mark.parametrize("path", SOURCES, ids=name_of)
def test_functions_and_classes_are_short(path):
    source = path.read_text("utf-8")
    assert too_long(source, (ast.FunctionDef, ast.AsyncFunctionDef), FUNCTION_LINES) == []
    assert too_long(source, ast.ClassDef, CLASS_LINES) == []


def test_a_long_function_is_noticed():
    source = "class C:\n    def f(self):\n" + "        pass\n" * 50
    assert too_long(source, ast.FunctionDef, 50) == ["f (51 lines)"]
    assert too_long(source, ast.ClassDef, 51) == ["C (52 lines)"]


@pytest.mark.parametrize("path", SCRIPTS, ids=name_of)
def test_a_script_is_a_page_of_steps(path):
    assert len(path.read_text("utf-8").splitlines()) <= SCRIPT_LINES


def test_a_room_has_few_files():
    files = defaultdict(list)
    for path in LIBRARY:
        if path.name != "__init__.py" and path.parent.parent == ROOT / "pneumothorax":
            files[path.parent.name].append(path.stem)
    assert len(files) >= 11
    assert {room: names for room, names in files.items() if len(names) > ROOM_FILES} == {}


def imported_modules(path):
    """The paths of the modules of this repository that a file imports."""
    candidates = set()
    for node in ast.walk(ast.parse(path.read_text("utf-8"))):
        if isinstance(node, ast.Import):
            candidates |= {ROOT / alias.name.replace(".", "/") for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            base = path.parents[node.level - 1] if node.level else ROOT
            base = base.joinpath(*(node.module or "").split("."))
            candidates |= {base, *(base / alias.name for alias in node.names)}
    return {candidate.with_name(f"{candidate.name}.py") for candidate in candidates}


def faces():
    """Modules that scripts import: the face of a room or of the script. So is every network."""
    registry = ROOT / "models" / "__init__.py"
    return {module for path in [*SCRIPTS, registry] for module in imported_modules(path)}


def test_no_module_is_a_fragment_of_another():
    """A short module with one importer belongs in that module, unless it is a face."""
    importers = defaultdict(set)
    for path in SOURCES:
        for module in imported_modules(path) - {path}:
            importers[module].add(path)
    fragments = [
        f"{name_of(path)}: only {name_of(next(iter(importers[path])))} imports it"
        for path in LIBRARY
        if path.name not in ("__init__.py", "__main__.py")
        and len(importers[path]) == 1
        and len(path.read_text("utf-8").splitlines()) < FRAGMENT_LINES
        and path not in faces()
    ]
    assert len(importers) >= 70
    assert fragments == []


def test_a_clone_has_empty_input_and_output_folders():
    if not (ROOT / ".git").exists():
        pytest.skip("not a git checkout")
    listed = subprocess.run(
        ["git", "ls-files", "input", "output"], cwd=ROOT, check=True, capture_output=True, text=True
    )
    assert listed.stdout.split() == ["input/.gitkeep", "output/.gitkeep"]
    for path in (Path("input/scan.dcm"), Path("output/folds.csv")):
        ignored = subprocess.run(["git", "check-ignore", "--quiet", path], cwd=ROOT, check=False)
        assert ignored.returncode == 0, f"{path} is not ignored"
