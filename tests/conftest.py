"""Fixtures that several rooms share: the real data, and an output folder after stages 00 and 01."""

import pytest

from tests.helpers.stages import REAL_DATA, run_stage, tiny_input


@pytest.fixture(scope="session")
def real_data():
    """The folder of real files (see its README.md)."""
    if not (REAL_DATA / "labels").is_dir():
        pytest.skip(f"no real data at {REAL_DATA}; set PNEUMOTHORAX_REAL_DATA to its folder")
    return REAL_DATA


@pytest.fixture(scope="module")
def folded(tmp_path_factory):
    """An output folder after stages 00 and 01: 24 images of 64 x 64, half of them positive, in two folds."""
    folder = tmp_path_factory.mktemp("folded")
    made = tiny_input(folder / "input", train=24)
    output = folder / "output"
    run_stage(
        "00_prepare_data.py",
        "--input",
        made.folder,
        "--output",
        output,
        "--size",
        64,
        "--workers",
        1,
    )
    run_stage("01_make_folds.py", "--output", output, "--folds", 2)
    return output
