"""One complete run of the stages, shared by the tests of this room."""

import shutil

import pytest

from pneumothorax.report import illustrations
from pneumothorax.training import history
from tests.helpers.stages import run_on


@pytest.fixture(scope="session")
def finished(submitted, tmp_path_factory):
    """(input, output) of stages 00 to 05; tests leave it unchanged."""
    made, output = submitted
    output = shutil.copytree(output, tmp_path_factory.mktemp("finished") / "output")
    run_on(output, "05_report.py")
    return made, output


@pytest.fixture
def without_pictures(monkeypatch):
    """No progress.png and no figures in the report: they take most of a tiny run's time."""
    monkeypatch.setattr(history, "write_progress", lambda *_, **__: None)
    monkeypatch.setattr(illustrations, "draw", lambda *_, **__: {})


@pytest.fixture
def copied(finished, tmp_path):
    """(input, output) of the complete run; tests may change the output."""
    made, output = finished
    shutil.copytree(output, tmp_path / "output")
    return made, tmp_path / "output"
