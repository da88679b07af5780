"""export_model.py writes a run's ONNX file, and stage 03 predicts with it."""

import errno
import json
import shutil
import subprocess
import sys

import numpy as np
import onnx
import pytest

from pneumothorax import png
from pneumothorax.errors import BadConfig, BadInput, OutputLocked
from pneumothorax.pipeline import artifacts, journal, locks, records
from pneumothorax.prediction import onnx_export, onnx_graph
from tests.helpers.stages import ROOT, run_on, run_stage

TINY = """
model: ica_resunet
model_settings:
  {encoder: resnet18, encoder_weights: none, decoder_channels: [8, 8, 8, 8], attention: false,
   classification_weight: 0.5}
image_size: 64
epochs: 1
batch_size: 4
learning_rate: 0.01
"""


@pytest.fixture(scope="module")
def trained(folded, tmp_path_factory):
    """The output folder of run "tiny": two folds, trained and exported."""
    output = shutil.copytree(folded, tmp_path_factory.mktemp("trained") / "output")
    config = tmp_path_factory.mktemp("config") / "tiny.yaml"
    config.write_text(TINY)
    run_on(output, "02_train.py", "--config", config, "--run", "tiny")
    export(output)
    return output


@pytest.fixture
def made_before(trained, monkeypatch):
    """The bytes of the run's file, which the exporter gives without its seconds of work."""
    good = (trained / artifacts.Run("tiny").onnx).read_bytes()
    monkeypatch.setattr(onnx_graph, "export", lambda *_, **__: good)
    return good


def export(output, *more):
    run_stage("export_model.py", "--run", "tiny", "--output", output, *more)


def predict(output, *more):
    common = ["--run", "tiny", "--output", output, "--workers", 0, "--precision", "fp32"]
    run_stage("03_predict.py", *common, *more)


def test_the_exported_file_holds_all_folds_of_the_run_and_is_not_made_twice(
    trained, monkeypatch, capsys
):
    path = trained / artifacts.Run("tiny").onnx
    facts = {entry.key: entry.value for entry in onnx.load(path).metadata_props}
    assert facts["run"] == "tiny"
    best = [artifacts.Run("tiny").fold(fold).best_weights for fold in (0, 1)]
    assert json.loads(facts["weights"]) == records.hashes(trained, best)
    made = path.stat().st_mtime_ns
    export(trained)
    assert "network.onnx is up to date" in capsys.readouterr().out
    assert path.stat().st_mtime_ns == made
    written = []
    monkeypatch.setattr(onnx_export, "write", lambda output, run, *_, **__: written.append(run))
    export(trained, "--overwrite")
    assert written == ["tiny"]


def stored(output):
    """The predictions table and all its maps (N, S, S) as integers."""
    table = artifacts.read_table(output, artifacts.Run("tiny").predictions)
    places = zip(table["split"], table["image_id"], strict=True)
    maps = [
        png.read(output / artifacts.Run("tiny").probability_map(split, image_id))
        for split, image_id in places
    ]
    return table, np.stack(maps).astype(int)


def backends(output):
    """The backend behind the last journal entry of each image."""
    entries = journal.read(output / artifacts.Run("tiny").prediction_journal())
    return {
        name: "onnxruntime" if "onnxruntime" in entry["key"] else "pytorch"
        for name, entry in entries.items()
    }


def test_stage_03_gives_the_same_maps_with_either_backend_and_never_mixes_them(trained, capsys):
    predict(trained)
    table, maps = stored(trained)
    assert set(table["split"]) == {artifacts.OOF, artifacts.TEST}
    assert np.ptp(maps) > 20
    assert set(backends(trained).values()) == {"pytorch"}

    predict(trained, "--backend", "onnxruntime")
    assert "network.onnx is up to date" in capsys.readouterr().out
    table_again, maps_again = stored(trained)
    assert np.abs(maps - maps_again).max() <= 1
    np.testing.assert_allclose(
        table["p_classification"], table_again["p_classification"], atol=1e-4
    )
    assert table["image_id"].equals(table_again["image_id"])
    assert list(backends(trained).values()) == ["onnxruntime"] * len(table)
    assert (
        records.read(trained, artifacts.Run("tiny").predicted)["settings"]["backend"]
        == "onnxruntime"
    )

    predict(trained, "--backend", "onnxruntime")
    assert "the predictions of run tiny are up to date" in capsys.readouterr().out
    predict(trained)
    assert list(backends(trained).values()) == ["pytorch"] * len(table)
    assert (stored(trained)[1] == maps).all()


def test_a_file_of_earlier_weights_is_replaced_before_stage_03_predicts_with_it(
    trained, made_before, tmp_path, capsys
):
    output = shutil.copytree(trained, tmp_path / "output")
    path = output / artifacts.Run("tiny").onnx
    record = records.read(output, artifacts.Run("tiny").exported)
    path.write_bytes(b"of earlier weights")
    records.write(
        output,
        artifacts.Run("tiny").exported,
        settings=record["settings"],
        inputs=dict.fromkeys(record["inputs"], "of earlier weights"),
        outputs=record["outputs"],
    )
    predict(output, "--backend", "onnxruntime", "--split", "test")
    assert (
        "network.onnx: 2 networks in one file, probability maps differ from PyTorch's by at most"
        in capsys.readouterr().out
    )
    assert path.read_bytes() == made_before


@pytest.mark.slow
def test_a_file_of_one_fold_is_replaced_only_by_the_command_for_all(
    trained, tmp_path, monkeypatch, capsys
):
    output = shutil.copytree(trained, tmp_path / "output")
    good = (output / artifacts.Run("tiny").onnx).read_bytes()
    export(output, "--fold", 1)
    assert "network.onnx: the network of fold 1, probability maps differ" in capsys.readouterr().out
    one_fold = (output / artifacts.Run("tiny").onnx).read_bytes()
    export(output, "--fold", 1)
    assert "network.onnx is up to date" in capsys.readouterr().out
    assert one_fold != good
    monkeypatch.setattr(onnx_graph, "export", lambda *_, **__: good)  # without seconds of work
    export(output)
    assert "network.onnx: 2 networks in one file" in capsys.readouterr().out
    assert (output / artifacts.Run("tiny").onnx).read_bytes() == good


@pytest.mark.slow
def test_overwrite_writes_the_same_file_again(trained, tmp_path, capsys):
    output = shutil.copytree(trained, tmp_path / "output")
    export(output, "--overwrite")
    assert "wrote " in capsys.readouterr().out
    file = artifacts.Run("tiny").onnx
    assert (output / file).read_bytes() == (trained / file).read_bytes()


def test_no_file_is_exported_while_stage_03_predicts_the_run(trained):
    with locks.lock(trained, "03_predict-tiny"), pytest.raises(OutputLocked):
        export(trained)


def test_on_a_disk_without_locks_no_lock_replaces_that_of_a_process_elsewhere(
    trained, without_locks
):
    without_locks(errno.ENOLCK)
    marker = trained / ".locks" / "03_predict-tiny.lock.marker"
    marker.write_text("1\nelsewhere\n")
    with pytest.raises(OutputLocked, match="add --no-lock"):
        export(trained)
    export(trained, "--no-lock")
    assert not marker.exists()


@pytest.mark.parametrize(
    "script, flags, message",
    [
        ("03_predict.py", ["--backend", "tensorrt"], "invalid choice"),
        ("03_predict.py", ["--backend", "onnxruntime", "--precision", "bf16"], "drop --device"),
        ("03_predict.py", ["--backend", "onnxruntime", "--device", "cuda"], "drop --device"),
        ("03_predict.py", ["--split", "train"], "--split must be oof, test or oof,test"),
        ("03_predict.py", ["--split", ""], "--split must be oof, test or oof,test"),
        ("03_predict.py", ["--batch-size", "0"], "--batch-size must be at least 1"),
        ("03_predict.py", ["--run", "../tiny"], "--run must be"),
        ("export_model.py", ["--run", "../tiny"], "--run must be"),
        ("export_model.py", ["--split", "oof"], "unrecognized arguments: --split"),
        ("export_model.py", ["--weights", "int8"], "add --bundle"),
        ("export_model.py", ["--weights", "fp16", "--bundle", "x.zip"], "invalid choice"),
    ],
)
def test_wrong_flags_are_usage_errors(script, flags, message, capsys):
    with pytest.raises(SystemExit) as caught:
        run_stage(script, *flags)
    assert caught.value.code == 2
    assert message in capsys.readouterr().err


def test_a_fold_that_does_not_exist_is_refused_with_those_that_do(trained):
    with pytest.raises(BadConfig, match="--fold must be 0 to 1 or all, got '2'"):
        export(trained, "--fold", 2)
    with pytest.raises(BadConfig, match="--fold must be 0 to 1 or all, got '2'"):
        predict(trained, "--fold", 2)


def test_an_export_without_prepared_data_names_the_stage_and_writes_nothing(tmp_path):
    with pytest.raises(BadInput, match=r"run 00_prepare_data\.py first"):
        run_stage("export_model.py", "--output", tmp_path)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("package", ["onnx", "onnxruntime", "onnxscript"])
@pytest.mark.parametrize(
    "command", [["export_model.py"], ["03_predict.py", "--backend", "onnxruntime"]]
)
def test_a_missing_package_is_a_usage_error_with_the_command_to_install_it(
    package, command, monkeypatch, capsys
):
    monkeypatch.setitem(sys.modules, package, None)  # its import raises ImportError
    with pytest.raises(SystemExit) as caught:
        run_stage(*command)
    assert caught.value.code == 2
    assert "python -m pip install -r requirements-extra.txt" in capsys.readouterr().err


@pytest.mark.parametrize(
    "script", ["02_train.py", "03_predict.py", "predict_radiographs.py", "export_model.py"]
)
def test_help_imports_no_heavy_library(script):
    code = (
        "import contextlib, runpy, sys\n"
        "main = runpy.run_path(sys.argv[1], run_name='stage')['main']\n"
        "with contextlib.suppress(SystemExit):\n"
        "    main(['--help'])\n"
        "print(sorted({'cv2', 'pydicom', 'sklearn', 'torch'} & sys.modules.keys()))"
    )
    assert in_fresh_process(code, script).splitlines()[-1] == "[]"


def in_fresh_process(code, *arguments):
    """What the code prints."""
    done = subprocess.run(
        [sys.executable, "-c", code, *arguments],
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


@pytest.mark.slow
def test_stage_03_with_pytorch_imports_no_package_of_onnx(trained):
    code = (
        "import runpy, sys\n"
        "main = runpy.run_path('03_predict.py', run_name='stage')['main']\n"
        "main(['--run', 'tiny', '--output', sys.argv[1], '--workers', '0', '--split', 'test', "
        "'--overwrite'])\n"
        "print(sorted({'onnx', 'onnxruntime', 'onnxscript'} & sys.modules.keys()))"
    )
    assert in_fresh_process(code, trained).splitlines()[-1] == "[]"
