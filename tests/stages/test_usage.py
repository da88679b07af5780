"""Wrong commands: the message lists what is known, or names the right command."""

import subprocess
import sys

import pytest

from pneumothorax.errors import BadConfig, BadInput
from pneumothorax.pipeline import artifacts
from tests.helpers.stages import ROOT, run_all, run_on, settings


def test_an_unknown_setting_lists_the_known_ones(finished, config):
    made, output = finished
    with pytest.raises(BadConfig, match="known settings: model, "):
        run_all(made.folder, output, config, "--set", "leaning_rate=1", stages=[2])


def test_an_unknown_network_lists_the_known_ones(finished, config):
    _, output = finished
    with pytest.raises(BadConfig, match="ica_resunet"):
        run_on(output, "02_train.py", "--config", config, *settings("model=unknown"))


def test_a_typo_in_the_settings_leaves_no_run_behind(copied, config):
    _, output = copied
    wrong = ["--run", "typo", *settings("model=albunet", "model_settings={encoder: resnet999}")]
    with pytest.raises(BadConfig, match="resnet999"):
        run_on(output, "02_train.py", "--config", config, *wrong)
    assert not (output / artifacts.Run("typo").config).exists()


def test_a_frozen_encoder_is_refused_for_a_network_without_one(copied, config):
    _, output = copied
    unet = settings("model=unet", "model_settings={base_channels: 4}", "frozen_encoder_epochs=1")
    with pytest.raises(BadConfig, match="unet has no encoder"):
        run_on(output, "02_train.py", "--config", config, *unet, "--run", "frozen")


@pytest.mark.parametrize(
    "stage, missing",
    [
        (("01_make_folds.py",), "00_prepare_data.py"),
        (("02_train.py", "--config", "configs/demo/ica_resunet.yaml"), "00_prepare_data.py"),
        (("03_predict.py",), "00_prepare_data.py"),
        (("04_submit.py",), "03_predict.py"),
        (("05_report.py",), "04_submit.py"),
    ],
)
def test_a_stage_run_too_early_names_the_command_to_run_first(tmp_path, stage, missing):
    with pytest.raises(BadInput, match=missing):
        run_on(tmp_path, stage[0], *stage[1:])


def test_bad_input_gives_exit_code_3_and_no_traceback(tmp_path):
    command = [sys.executable, "01_make_folds.py", "--output", str(tmp_path)]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == 3
    assert "run 00_prepare_data.py first" in done.stderr
    assert "Traceback" not in done.stderr
