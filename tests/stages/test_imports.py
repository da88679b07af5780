"""Stages import no heavy library that they do not need."""

import subprocess
import sys

import pytest

from tests.helpers.stages import ROOT


@pytest.mark.parametrize("script", ["00_prepare_data.py", "01_make_folds.py", "04_submit.py"])
def test_stages_that_need_no_network_import_no_torch(finished, script):
    made, output = finished
    flags = {
        "00_prepare_data.py": ["--input", made.folder, "--size", "64"],
        "01_make_folds.py": ["--folds", "2"],
        "04_submit.py": ["--run", "tiny"],
    }
    code = (
        "import runpy, sys\n"
        f"runpy.run_path({script!r}, run_name='stage')['main'](sys.argv[1:])\n"
        "assert 'torch' not in sys.modules, 'torch was imported'\n"
    )
    command = [sys.executable, "-c", code, *flags[script], "--output", output]
    subprocess.run(command, cwd=ROOT, check=True, capture_output=True)
