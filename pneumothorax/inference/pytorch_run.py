"""The networks of a run's checkpoints, computed by PyTorch."""

import argparse
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch

from pneumothorax.compute import devices, precisions, runtime
from pneumothorax.data.dataset import to_network
from pneumothorax.inference import settled
from pneumothorax.inference.predicting import Source
from pneumothorax.prediction import probability_maps
from pneumothorax.prediction.probability_maps import Predictor


@dataclass(frozen=True)
class TorchNetworks:
    """The networks of one run (predicting.Networks)."""

    folds: list[Predictor]
    device: torch.device
    precision: str  # fp32, bf16 or fp16

    @property
    def image_size(self) -> int:
        return self.folds[0].image_size

    def maps(self, images: np.ndarray) -> tuple[np.ndarray, np.ndarray | None]:
        batch = to_network(torch.from_numpy(images).unsqueeze(1), self.device)
        with precisions.autocast(self.device, self.precision):
            maps, classification = probability_maps.probabilities(
                [one.network for one in self.folds], batch
            )
        of_head = None if classification is None else classification.cpu().numpy()
        return maps[:, 0].cpu().numpy(), of_head


def source(args: argparse.Namespace, *, build: Callable[..., Any]) -> Source:
    """The networks of the run `args.run`, or of all runs that this submission blends.

    Prints what they are computed with. Raises BadInput as settled.read.

    Args:
        args: of predict_radiographs.py.
        build: models.build_untrained.
    """
    runtime.keep_freed_memory()
    device = devices.choose(args.device)
    precision = precisions.resolve(args.precision, device)
    print(precisions.first_line(device, precision), flush=True)
    found = settled.read(args.output, args.run)

    def load() -> list[TorchNetworks]:
        loaded = [
            probability_maps.load_folds(
                args.output, run.name, run.folds, build=build, device=device
            )
            for run in found.runs
        ]
        return [TorchNetworks(list(folds.values()), device, precision) for folds in loaded]

    return Source(found, precision, load, probability_maps.memory_for(args.batch_size))
