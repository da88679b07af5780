"""Kills, a full disk, no permission: the same results, or a message and no harm.

Which test proves which fault is listed in tests/README.md.
"""

import json
import os
import random
import resource
import shutil
import signal
import subprocess
import sys
import time
from contextlib import contextmanager

import pandas as pd
import pytest
import torch

from pneumothorax.pipeline import artifacts, stage
from tests.helpers.stages import ROOT, TINY, run_stage, tiny_input

STAGES = (
    "00_prepare_data.py",
    "01_make_folds.py",
    "02_train.py",
    "03_predict.py",
    "04_submit.py",
    "05_report.py",
)
# Prints the exit code of each command.
RUN_ALL = """
import json, sys
from pneumothorax.pipeline import stage
from tests.helpers.stages import run_stage

for script, *flags in json.loads(sys.argv[1]):
    print(stage.exit_code(lambda: run_stage(script, *flags)))
"""


def commands(made, output, config):
    """stage -> the command that runs it, in order."""
    more = {
        STAGES[0]: ["--input", made.folder, "--size", "64"],
        STAGES[1]: ["--folds", "2"],
        STAGES[2]: ["--config", config, "--run", "tiny"],
        STAGES[3]: ["--run", "tiny"],
        STAGES[4]: ["--run", "tiny"],
        STAGES[5]: [],
    }
    shared = ["--output", output, "--workers", "1"]
    return {
        script: [str(word) for word in (sys.executable, script, *more[script], *shared)]
        for script in STAGES
    }


def run(command):
    return subprocess.run(
        command, cwd=ROOT, capture_output=True, text=True, timeout=300, check=False
    )


def run_here(command):
    """The exit code of a command that runs in this process."""
    _, script, *flags = command
    return stage.exit_code(lambda: run_stage(script, *flags))


@pytest.fixture(scope="module")
def undisturbed(tmp_path_factory):
    """(output folder -> commands, output after all stages, seconds of each stage)."""
    folder = tmp_path_factory.mktemp("undisturbed")
    made = tiny_input(folder / "input", train=24)
    config = folder / "small.yaml"
    config.write_text(TINY.replace("epochs: 2", "epochs: 3"))
    seconds = {}

    def all_commands(output):
        made_commands = commands(made, output, config)
        made_commands[STAGES[2]] += ["--save-minutes", "0.001"]
        return made_commands

    for script, command in all_commands(folder / "output").items():
        started = time.monotonic()
        done = run(command)
        assert done.returncode == 0, done.stderr
        seconds[script] = time.monotonic() - started
    return all_commands, folder / "output", seconds


def results(output):
    """{path: bytes} of what interruptions must not change: no times, logs, journals."""
    found = {}
    for path in sorted(output.rglob("*")):
        name = path.relative_to(output).as_posix()
        if (
            path.is_dir()
            or ".locks" in path.parts
            or path.suffix in (".jsonl", ".json", ".pt")
            or "tensorboard" in name
        ):
            continue
        if path.name == "history.csv":
            times = ["seconds", "images_per_second"]
            found[name] = pd.read_csv(path).drop(columns=times).to_csv().encode()
        elif (
            path.name not in ("progress.png", "index.html", "without_images.html")
            and "figures" not in name
        ):  # they show times
            found[name] = path.read_bytes()
    return found


def weights(output):
    return [
        torch.load(output / artifacts.Run("tiny").fold(fold).best_weights, weights_only=True)[
            "network"
        ]
        for fold in (0, 1)
    ]


def assert_same(output, expected):
    one, other = results(output), results(expected)
    assert one.keys() == other.keys()
    assert [name for name in one if one[name] != other[name]] == []
    for first, second in zip(weights(output), weights(expected), strict=True):
        assert all(torch.equal(first[name], second[name]) for name in first)


@pytest.mark.slow
def test_stages_killed_at_random_moments_and_started_again_end_in_the_same_bytes(
    undisturbed, tmp_path
):
    """Five times each stage: 30 moments in all."""
    kills = 5
    all_commands, expected, seconds = undisturbed
    output, moments = tmp_path / "output", random.Random(kills)
    output.mkdir()
    for script, command in all_commands(output).items():
        shutil.copytree(output, tmp_path / "before" / script)
        limit, killed = seconds[script], 0
        for _ in range(10 * kills):
            # Imports take half of a short stage; later, it is at work.
            took = seconds_until_killed(command, limit * moments.uniform(0.3, 1.0))
            if took is None:
                killed += 1
            else:  # it finished first: start over, the machine has become faster
                limit = min(limit, took)
                shutil.rmtree(output)
                shutil.copytree(tmp_path / "before" / script, output)
                killed = 0
            if killed == kills:
                break
        assert killed == kills, script
        done = run(command)
        assert done.returncode == 0, done.stderr
    assert_same(output, expected)
    leftovers = [path for path in output.rglob("*") if path.name.startswith(".") and path.is_file()]
    assert not [path for path in leftovers if ".locks" not in path.parts]


def seconds_until_killed(command, moment):
    """Kill a command after `moment` s; None, or its seconds if it finished first."""
    started = time.monotonic()
    quiet = {"stdout": subprocess.DEVNULL, "stderr": subprocess.DEVNULL}
    process = subprocess.Popen(command, cwd=ROOT, start_new_session=True, **quiet)
    try:
        assert process.wait(timeout=moment) == 0
    except subprocess.TimeoutExpired:
        os.killpg(process.pid, signal.SIGKILL)
        process.wait()
        return None
    return time.monotonic() - started


@contextmanager
def largest_file(limit_bytes):
    """Writing more to a file fails, as on a full disk."""
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (limit_bytes, before[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)


@pytest.mark.parametrize(
    "script",
    [
        pytest.param(script, marks=pytest.mark.slow) if script == "02_train.py" else script
        for script in STAGES
    ],
)
def test_a_full_disk_is_reported_and_files_written_before_stay_whole(
    copied, finished, config, script, capsys
):
    (made, output), (_, expected) = copied, finished
    limit_bytes = 500 if script == "01_make_folds.py" else 3000  # its files are small
    before = results(output)
    # Without loader workers: memory shared with them counts as files.
    by_stage = commands(made, output, config)
    with largest_file(limit_bytes):
        assert run_here([*by_stage[script], "--overwrite", "--workers", "0"]) == 1
    assert "error: a file grew too large" in capsys.readouterr().err
    after = results(output)
    changed = [name for name in after if after[name] != before.get(name)]
    assert not [name for name in changed if not whole(output / name)]
    for later in STAGES[STAGES.index(script) :]:
        assert run_here(by_stage[later]) == 0
    assert_same(output, expected)


def whole(path):
    """Whether a file is complete."""
    if path.suffix == ".csv":
        return path.read_text("utf-8").endswith("\n")
    if path.suffix == ".png":
        return path.read_bytes().endswith(b"IEND\xaeB`\x82")
    return True


@pytest.mark.skipif(
    not hasattr(os, "geteuid") or not shutil.which("setpriv"), reason="needs setpriv"
)
def test_an_output_folder_without_permission_is_reported_at_once_by_every_stage(copied, config):
    """Without the capabilities of root, in case the tests run as root."""
    made, output = copied
    for path in (output, *output.rglob("*")):
        path.chmod(0o555 if path.is_dir() else 0o444)
    by_stage = [command[1:] for command in commands(made, output, config).values()]
    command = [sys.executable, "-c", RUN_ALL, json.dumps(by_stage)]
    if os.geteuid() == 0:
        command = ["setpriv", "--bounding-set=-all", "--inh-caps=-all", *command]
    before = results(output)
    done = run(command)
    assert done.returncode == 0, done.stderr
    codes = [line for line in done.stdout.splitlines() if line.isdecimal()]
    assert codes == ["3"] * len(STAGES), done.stderr
    assert done.stderr.count(f"error: cannot write to {output}") == len(STAGES)
    assert results(output) == before


@pytest.mark.parametrize(
    "name", ["manifest.csv", "folds.csv", "cache", "best.pt", "predictions.csv", "oof map"]
)
def test_a_flipped_byte_is_noticed_by_the_stage_that_reads_it(copied, config, name, capsys):
    made, output = copied
    image_id = artifacts.training_rows(output)["image_id"].iloc[0]
    path, script, says = {
        "manifest.csv": (output / artifacts.MANIFEST.path, STAGES[1], "00_prepare_data.py again"),
        "folds.csv": (output / artifacts.FOLDS.path, STAGES[2], "01_make_folds.py again"),
        "cache": (output / artifacts.Cache(64).image(image_id), STAGES[2], "00_prepare_data.py"),
        "best.pt": (output / artifacts.Run("tiny").fold(0).best_weights, STAGES[3], "02_train.py"),
        "predictions.csv": (
            output / artifacts.Run("tiny").predictions.path,
            STAGES[4],
            "03_predict.py",
        ),
        "oof map": (
            output / artifacts.Run("tiny").probability_map("oof", image_id),
            STAGES[4],
            "03_predict.py",
        ),
    }[name]
    data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= 1
    path.write_bytes(data)
    overwrite = ["--overwrite"] if script in (STAGES[2], STAGES[4]) else []
    assert run_here([*commands(made, output, config)[script], *overwrite]) == 3
    printed = capsys.readouterr().err
    assert says in printed
    assert "Traceback" not in printed
    assert path.read_bytes() == data  # the damaged file was left alone
