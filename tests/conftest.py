"""Fixtures that several rooms share: real data, and an output folder after stage 01."""

import pytest

from tests.helpers.stages import REAL_DATA, run_stage, tiny_input


@pytest.fixture(scope="session")
def real_data():
    """The folder of real files; its README.md describes them."""
    if not (REAL_DATA / "labels").is_dir():
        pytest.skip(f"no real data at {REAL_DATA}; set PNEUMOTHORAX_REAL_DATA to its folder")
    return REAL_DATA


@pytest.fixture(scope="module")
def folded(tmp_path_factory):
    """An output folder after stage 01: 24 images of 64 x 64, 12 positive, two folds."""
    folder = tmp_path_factory.mktemp("folded")
    made = tiny_input(folder / "input", train=24)
    output = folder / "output"
    flags = ["--input", made.folder, "--output", output, "--size", 64, "--workers", 1]
    run_stage("00_prepare_data.py", *flags)
    run_stage("01_make_folds.py", "--output", output, "--folds", 2)
    return output
