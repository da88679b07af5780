"""Phantoms behind stages 00 and 01, and the parts of stages 02 and 03 that work on them."""

import runpy
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pandas as pd
import torch

import models
from benchmarks import memory, training_step
from pneumothorax.compute.interruption import StopRequest
from pneumothorax.pipeline import artifacts
from pneumothorax.prediction import probability_maps
from pneumothorax.prediction.probability_maps import Predictor
from pneumothorax.prediction.splits import PredictionTask
from pneumothorax.training.config import TrainConfig
from pneumothorax.training.loop import Training
from pneumothorax.training.run import TrainingRun

RUN = "gpu"
FOLD = 0  # of two


@dataclass(frozen=True)
class Sizes:
    """How large everything is; sides in pixels."""

    config: Path
    image: int
    batch: int
    fitting: int  # the batch that has to fit in fp32; twice as much has to in 16 bits
    resumed_image: int
    radiographs: int  # links to phantoms
    phantoms: int
    radiograph: int
    comparison_s: float  # of measuring, at most; 0 is one round

    def as_words(self) -> str:
        return f"{self.config}, {self.batch} x {self.image} x {self.image}, phantoms"


ON_A_CARD = Sizes(
    config=Path("configs/ica_resunet.yaml"),
    image=512,
    batch=16,
    fitting=16,
    resumed_image=128,
    radiographs=512,
    phantoms=40,
    radiograph=1024,
    comparison_s=12,
)
ON_A_CPU = Sizes(
    config=Path("configs/demo/unet.yaml"),
    image=32,
    batch=4,
    fitting=4,
    resumed_image=32,
    radiographs=16,
    phantoms=8,
    radiograph=128,
    comparison_s=0,
)


class Material:
    """The output folder after stage 01, with two folds, and what is trained and predicted on it.

    Args:
        folder: an empty one.
        workers: processes that load images.
    """

    def __init__(self, folder: Path, sizes: Sizes, device: torch.device, *, workers: int) -> None:
        self.output, self.sizes, self.device, self.workers = (
            folder / "output",
            sizes,
            device,
            workers,
        )
        memory.write_input(
            folder / "input",
            sizes.radiographs,
            1,
            phantoms=sizes.phantoms,
            radiograph_px=sizes.radiograph,
        )
        common = ["--output", str(self.output), "--workers", str(max(1, workers))]
        source = ["--input", str(folder / "input"), "--size", str(sizes.image)]
        run_stage("00_prepare_data.py", *source, *common)
        run_stage("01_make_folds.py", "--folds", "2", *common)

    def settings(self, *, batch: int | None = None, **changes: Any) -> TrainConfig:
        """The config at this size with random encoder weights; every image once in an epoch."""
        own = {"image_size": self.sizes.image, "sampling": "natural", "epochs": 2}
        return training_step.load(self.sizes.config, batch or self.sizes.batch, **own | changes)

    def training(
        self, *, run: str = RUN, stop: StopRequest | None = None, workers: int = 0, **changes: Any
    ) -> Training:
        """Stage 02's training of a fold, from weights that are always the same."""
        settings = self.settings(**changes)
        return Training(
            self.network(settings),
            TrainingRun(self.output, run, settings).fold_data(FOLD),
            settings,
            run=run,
            device=self.device,
            workers=workers,
            stop=stop or StopRequest(),
        )

    def network(self, settings: TrainConfig) -> Any:
        torch.manual_seed(0)
        return models.build(settings.model, **settings.model_settings)

    def predictor(self) -> Predictor:
        """Stage 03's network, with random weights."""
        network = self.network(self.settings())
        return Predictor(probability_maps.ready(network, self.device), self.sizes.image)

    def prediction(self, precision: str) -> tuple[pd.DataFrame, PredictionTask]:
        """The rows of the fold to predict, and how."""
        rows = artifacts.training_rows(self.output)
        size, batch = self.sizes.image, self.sizes.batch
        task = PredictionTask(self.output, RUN, size, batch, self.workers, self.device, precision)
        return rows[rows["fold"] == FOLD], task


def run_stage(script: str, *arguments: str) -> None:
    """Stages are run by path: their names begin with a digit."""
    runpy.run_path(script, run_name="stage")["main"](list(arguments))


def first_batch(training: Training) -> tuple[list[Any], int, int]:
    """What Optimization.step takes: a batch's parts on the device, their and the images' number."""
    batch = training.loaders().epoch(0, done=0)[0]
    return list(batch.parts), batch.n_parts, batch.n_images


def synchronise(device: torch.device) -> None:
    """Wait for everything that the device was given to do."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    elif device.type == "mps":
        torch.mps.synchronize()
