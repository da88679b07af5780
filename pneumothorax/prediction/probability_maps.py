"""Networks from checkpoints, and their probability maps of a batch of images."""

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NamedTuple

import torch

from pneumothorax.compute import checkpoint, devices, runtime
from pneumothorax.errors import BadInput
from pneumothorax.pipeline import artifacts

AVERAGED = "logits"  # part of what maps are made from: those of earlier versions are made again


class Predictor(NamedTuple):
    """A network in evaluation mode, and the size of the images it was trained on."""

    network: Any  # has `outputs`, as models.network.SegmentationNetwork
    image_size: int


def load_folds(
    output: Path,
    run: str,
    folds: Sequence[int],
    *,
    build: Callable[..., Any],
    device: torch.device,
) -> dict[int, Predictor]:
    """The networks of a run's folds, each from its best checkpoint alone.

    Args:
        build: models.build_untrained; the package itself does not import `models`.

    Raises BadInput for a checkpoint that is missing, damaged or of another network.
    """
    networks = {}
    for fold in folds:
        path = output / artifacts.Run(run).fold(fold).best_weights
        state = checkpoint.load(path)
        config = state["config"]
        network = build(config["model"], **config["model_settings"])
        checkpoint.load_weights(network, state["network"], path)
        networks[fold] = Predictor(ready(network, device), config["image_size"])
    return networks


def ready(network: torch.nn.Module, device: torch.device) -> torch.nn.Module:
    """The network in evaluation mode, on the device, in its fastest memory format."""
    return network.to(device).to(memory_format=devices.memory_format(device)).eval()  # type: ignore[call-overload]


@contextmanager
def memory_for(batch_size: int) -> Iterator[None]:
    """Raises BadInput that says what to try where memory is not enough for batches of this size."""
    try:
        yield
    except (RuntimeError, MemoryError) as error:
        if not runtime.is_out_of_memory(error):
            raise
        smaller = f"--batch-size {batch_size // 2}" if batch_size > 1 else "--device cpu"
        raise BadInput(
            f"out of memory with {batch_size} images at a time; what is written so far is kept. "
            f"Run the same command with {smaller}"
        ) from error


@torch.inference_mode()
def probabilities(
    networks: Sequence[Any], images: torch.Tensor
) -> tuple[torch.Tensor, torch.Tensor | None]:
    """Of the mean logit over networks, and over each image and its mirror image.

    Thresholds are fitted on maps of single networks. A mean of probabilities is less
    extreme than these; a mean of logits stays closer to them
    (tests/prediction/test_transfer.py simulates it).

    Args:
        networks: each with `outputs`, as models.network.SegmentationNetwork.
        images: (N, 1, H, W) in [0, 1].

    Returns float32 probabilities: (N, 1, H, W) of each pixel, and (N,) of each image
    being positive, or None unless every network has a classification head.
    """
    mirrored = images.flip(3)
    total = torch.zeros_like(images)
    classifications = []
    for network in networks:
        logits, classification = network.outputs(images)
        logits_mirrored, classification_mirrored = network.outputs(mirrored)
        total += logits.float()
        total += logits_mirrored.float().flip(3)
        if classification is not None and classification_mirrored is not None:
            classifications += [classification.float(), classification_mirrored.float()]
    maps = (total / (2 * len(networks))).sigmoid()
    complete = len(classifications) == 2 * len(networks)
    return maps, torch.stack(classifications).mean(0).sigmoid() if complete else None
