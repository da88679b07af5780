"""One complete run of the stages, shared by the tests of this room."""

import shutil

import pytest

from tests.helpers.stages import TINY, run_all, tiny_input


@pytest.fixture(scope="session")
def config(tmp_path_factory):
    path = tmp_path_factory.mktemp("config") / "tiny.yaml"
    path.write_text(TINY)
    return path


@pytest.fixture(scope="session")
def finished(tmp_path_factory, config):
    """(input, output) of stages 00 to 05; tests leave it unchanged."""
    folder = tmp_path_factory.mktemp("stages")
    made = tiny_input(folder / "input")
    run_all(made.folder, folder / "output", config)
    return made, folder / "output"


@pytest.fixture
def copied(finished, tmp_path):
    """(input, output) of the complete run; tests may change the output."""
    made, output = finished
    shutil.copytree(output, tmp_path / "output")
    return made, tmp_path / "output"
