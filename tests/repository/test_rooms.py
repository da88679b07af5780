"""Rooms import downwards only (CONTRIBUTING.md, "Rooms")."""

import ast
from pathlib import Path

import pytest

from tests.helpers.stages import ROOT

PACKAGE = ROOT / "pneumothorax"
DOOR = "errors rle metrics dicom pixels frames greyscale png augment plotting".split()
GROUND_UP = [
    "pipeline",
    "compute",
    "data",
    "scores",
    "masks",
    "training",
    "prediction",
    "submission",
    "inference",
]
BELOW = {room: {*DOOR, *GROUND_UP[:height]} for height, room in enumerate(GROUND_UP)}
BELOW["report"] = BELOW["scores"] | {"scores"}
BELOW["inference"] |= {"report"}  # the model card
BELOW["phantom"] = BELOW["data"] | {"data"}
BELOW |= {name: set(DOOR) for name in DOOR}


def imported_rooms(source: str) -> set[str]:
    """The rooms, or modules outside the rooms, that a module imports, from its text."""
    rooms = set()
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.ImportFrom):
            assert node.level == 0, "relative import"
            names = [f"{node.module}.{alias.name}" for alias in node.names]
        elif isinstance(node, ast.Import):
            names = [alias.name for alias in node.names]
        else:
            continue
        rooms |= {name.split(".")[1] for name in names if name.startswith("pneumothorax.")}
    return rooms


def upward_imports(room: str, source: str) -> set[str]:
    return imported_rooms(source) - BELOW[room] - {room}


def room_of(path: Path) -> str:
    return path.relative_to(PACKAGE).parts[0].removesuffix(".py")


MODULES = sorted(path for path in PACKAGE.rglob("*.py") if path != PACKAGE / "__init__.py")


@pytest.mark.parametrize("path", MODULES, ids=lambda path: str(path.relative_to(PACKAGE)))
def test_a_module_imports_its_own_room_and_those_below(path):
    assert upward_imports(room_of(path), path.read_text("utf-8")) == set()


def test_every_room_has_modules():
    assert {room_of(path) for path in MODULES} == BELOW.keys()


@pytest.mark.parametrize(
    ("room", "source"),
    [
        ("masks", "from pneumothorax.report import page"),
        ("data", "from pneumothorax.training.config import TrainConfig"),
        ("rle", "def late():\n    from pneumothorax.pipeline import atomic"),
        ("report", "import pneumothorax.masks.postprocess"),
        ("training", "from pneumothorax import report"),
        ("errors", "from pneumothorax import plotting, phantom"),
    ],
)
def test_an_upward_import_is_noticed(room, source):
    assert len(upward_imports(room, source)) == 1
