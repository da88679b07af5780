"""A run and a blend of two, and their bundles."""

import shutil

import pytest

from tests.helpers.stages import run_on, run_stage, train_from_tiny


@pytest.fixture(scope="package")
def two_runs(submitted, config, tmp_path_factory):
    """(input, output) with the runs "tiny" and "second", of other image sizes, and "blend"."""
    made, original = submitted
    output = shutil.copytree(original, tmp_path_factory.mktemp("two_runs") / "output")
    train_from_tiny(output, config, "--set", "epochs=1")
    run_on(output, "03_predict.py", "--run", "second")
    blend = ["--runs", "second=0.4,tiny=0.6", "--name", "blend"]
    run_on(output, "04_submit.py", *blend)
    return made, output


@pytest.fixture(scope="package")
def bundles(two_runs, tmp_path_factory):
    """{"tiny", "blend": path of the bundle}."""
    _, output = two_runs
    folder = tmp_path_factory.mktemp("bundles")
    paths = {name: folder / f"{name}.zip" for name in ("tiny", "blend")}
    for name, path in paths.items():
        run_stage("export_model.py", "--run", name, "--output", output, "--bundle", path)
    return paths
