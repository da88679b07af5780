"""One complete run of the stages, shared by the tests of this room."""

import shutil

import pytest

from tests.helpers.stages import run_on


@pytest.fixture(scope="session")
def finished(submitted, tmp_path_factory):
    """(input, output) of stages 00 to 05; tests leave it unchanged."""
    made, output = submitted
    output = shutil.copytree(output, tmp_path_factory.mktemp("finished") / "output")
    run_on(output, "05_report.py")
    return made, output


@pytest.fixture
def copied(finished, tmp_path):
    """(input, output) of the complete run; tests may change the output."""
    made, output = finished
    shutil.copytree(output, tmp_path / "output")
    return made, tmp_path / "output"
