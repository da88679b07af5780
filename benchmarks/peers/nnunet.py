"""nnU-Net v2, 2D, in an environment that has it.

Its own plans, preprocessing, augmentation, loss and inference (sliding window, mirrored along
both axes); only the number of epochs follows from the minutes (minutes_trainer.py). The
probabilities of a fold are those that its validation saves.
"""

import json
import os
import shutil
import subprocess
import sys
import time
import zlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from benchmarks.peers.peer_run import Radiographs, Trained
from pneumothorax import png

ROOT = Path(__file__).resolve().parents[2]
REQUIREMENTS = Path(__file__).with_name("requirements-peers.txt")
DATASET = "Dataset001_Pneumothorax"


class NnUNet:
    """nnU-Net works below `folder`; `environment` is made if it is missing.

    Every process has its own folder there: if it is killed, its nnU-Net works on for a while.
    """

    def __init__(self, radiographs: Radiographs, *, folder: Path, environment: Path) -> None:
        self.radiographs, self.environment = radiographs, environment.absolute()
        self.folder = folder.absolute() / f"process-{os.getpid()}"
        self.is_prepared = False
        make_environment(self.environment)

    def facts(self) -> dict[str, Any]:
        code = (
            "from importlib.metadata import version; print(version('nnunetv2'), version('torch'))"
        )
        python = self.environment / "bin" / "python"
        nnunet, torch = subprocess.check_output([python, "-c", code], text=True).split()
        return {"versions": {"nnunetv2": nnunet, "torch": torch}}

    def prepare(self) -> None:
        """Export images, masks and folds, then let nnU-Net plan and preprocess, from scratch."""
        shutil.rmtree(self.folder.parent, ignore_errors=True)
        export(self.radiographs, self.folder)
        started = time.monotonic()
        one_process = ["-npfp", "1", "-np", "1"]
        self.run("nnUNetv2_plan_and_preprocess", "-d", "1", "-c", "2d", *one_process)
        self.is_prepared = True
        plans = self.folder / "nnUNet_preprocessed" / DATASET / "nnUNetPlans.json"
        plan = json.loads(plans.read_text("utf-8"))["configurations"]["2d"]
        minutes = (time.monotonic() - started) / 60
        print(
            f"planned in {minutes:.1f} minutes: batches of {plan['batch_size']}, "
            f"patches of {' x '.join(map(str, plan['patch_size']))}"
        )

    def train(self, fold: int, *, seconds: float, weights: Path) -> Trained:
        if not self.is_prepared:  # once per command: labels or folds may have changed since
            self.prepare()
        trained = self.folder / "nnUNet_results" / DATASET / "MinutesTrainer__nnUNetPlans__2d"
        trained = trained / f"fold_{fold}"
        history_file = self.folder / f"history_{fold}.json"
        preprocessed = self.folder / "nnUNet_preprocessed" / DATASET
        started = time.monotonic()
        module = ["python", "-m", "benchmarks.peers.minutes_trainer"]
        arguments = [preprocessed, fold, seconds, history_file]
        self.run(*module, *map(str, arguments), nnUNet_n_proc_DA="0")  # no cores to spare
        history = json.loads(history_file.read_text("utf-8"))
        other = (time.monotonic() - started - sum(row["seconds"] for row in history)) / 60
        print(f"fold {fold}: {other:.1f} minutes to start and to predict")
        shutil.copyfile(trained / "checkpoint_final.pth", weights)
        facts = {"device": f"CPU, {os.cpu_count()} threads", "peak_memory_mib": peak_memory_mib()}
        return Trained(history, read_maps(trained / "validation"), facts)

    def run(self, program: str, *arguments: str, **variables: str) -> None:
        """Run a program of the environment with more variables; it prints to log.txt."""
        folders = ("nnUNet_raw", "nnUNet_preprocessed", "nnUNet_results")
        variables |= {name: str(self.folder / name) for name in folders}
        variables |= {
            "PYTHONPATH": str(ROOT),  # for benchmarks.peers
            "nnUNet_def_n_proc": "1",
            "OMP_WAIT_POLICY": "passive",
        }
        log = self.folder / "log.txt"
        with open(log, "a", encoding="utf-8") as file:
            done = subprocess.run(
                [self.environment / "bin" / program, *arguments],
                env={**os.environ, **variables},
                stdout=file,
                stderr=subprocess.STDOUT,
                check=False,
            )
        if done.returncode:
            raise RuntimeError(f"{program} {' '.join(arguments)} failed: see {log}")


def make_environment(folder: Path) -> None:
    """Install REQUIREMENTS into `folder`, unless they are there."""
    stamp = folder / f".installed-{zlib.crc32(REQUIREMENTS.read_bytes()):08x}"
    if stamp.exists():
        return
    print(f"installing {REQUIREMENTS} into {folder} (once; takes a few minutes)", flush=True)
    subprocess.run([sys.executable, "-m", "venv", folder], check=True)
    pip: list[str | Path] = [folder / "bin" / "python", "-m", "pip"]
    subprocess.run([*pip, "install", "--quiet", "-r", REQUIREMENTS], check=True)
    stamp.touch()


def export(radiographs: Radiographs, folder: Path) -> None:
    """Write nnU-Net's raw folder, and the folds as its splits."""
    raw = folder / "nnUNet_raw" / DATASET
    preprocessed = folder / "nnUNet_preprocessed" / DATASET
    for new in (raw / "imagesTr", raw / "labelsTr", preprocessed, folder / "nnUNet_results"):
        new.mkdir(parents=True, exist_ok=True)
    for image_id, image, mask in radiographs.read(radiographs.rows):
        (raw / "imagesTr" / f"{image_id}_0000.png").write_bytes(png.encode(image))
        (raw / "labelsTr" / f"{image_id}.png").write_bytes(png.encode(mask))
    (preprocessed / "splits_final.json").write_text(
        json.dumps(as_splits(radiographs.rows)), "utf-8"
    )
    facts = {
        "channel_names": {"0": "radiograph"},
        "labels": {"background": 0, "pneumothorax": 1},
        "numTraining": len(radiographs.rows),
        "file_ending": ".png",
    }
    (raw / "dataset.json").write_text(json.dumps(facts), "utf-8")


def as_splits(rows: pd.DataFrame) -> list[dict[str, list[str]]]:
    """Rows with image_id and fold -> for each fold the images to train on and to predict."""
    ids, fold = rows["image_id"], rows["fold"]
    return [
        {"train": ids[fold != held_out].tolist(), "val": ids[fold == held_out].tolist()}
        for held_out in sorted(set(fold.tolist()))
    ]


def read_maps(folder: Path) -> Iterator[tuple[str, np.ndarray]]:
    """image id, (S, S) probabilities: of every .npz file, which holds (classes, 1, S, S)."""
    for path in sorted(folder.glob("*.npz")):
        with np.load(path) as saved:
            yield path.name.removesuffix(".npz"), saved["probabilities"][1, 0].astype(np.float32)


def peak_memory_mib() -> float:
    """Of the largest process that this one has started and awaited."""
    import resource

    peak = resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss
    return peak / 2**10 if sys.platform == "linux" else peak / 2**20  # KiB, or bytes
