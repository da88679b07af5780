"""Stages import no heavy library that they do not need."""

import subprocess
import sys

from tests.helpers.stages import ROOT

RUN = """
import runpy, sys

made, output = sys.argv[1:]
for script, *flags in (
    ["00_prepare_data.py", "--input", made, "--size", "64"],
    ["01_make_folds.py", "--folds", "2"],
    ["04_submit.py", "--run", "tiny"],
):
    main = runpy.run_path(script, run_name="stage")["main"]
    main([*flags, "--output", output, "--workers", "1", "--overwrite"])
    loaded = {"torch", "albumentations", "matplotlib"} & set(sys.modules)
    assert not loaded, f"{script} imports {loaded}"
"""


def test_stages_that_need_no_network_import_no_library_for_networks_and_figures(copied):
    made, output = copied
    subprocess.run([sys.executable, "-c", RUN, made.folder, output], cwd=ROOT, check=True)
