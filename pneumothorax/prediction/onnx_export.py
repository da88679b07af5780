"""A run's ONNX file: written when it is out of date, kept when it agrees with PyTorch."""

import json
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch

from pneumothorax import png
from pneumothorax.data import cache
from pneumothorax.data.dataset import to_network
from pneumothorax.errors import INSTALL_EXTRA, BadInput
from pneumothorax.masks import postprocess
from pneumothorax.pipeline import artifacts, atomic, lineage, records
from pneumothorax.prediction import exported, onnx_graph, probability_maps
from pneumothorax.prediction.probability_maps import Predictor

CHECKED_IMAGES = 3


def missing() -> str:
    """What to install before ONNX can be used, "" where nothing is missing."""
    try:
        import onnx  # noqa: F401
        import onnxruntime  # noqa: F401
        import onnxscript  # noqa: F401
    except ImportError as error:
        return f"ONNX needs more packages ({error}): {INSTALL_EXTRA}"
    return ""


def update(
    output: Path,
    run: str,
    folds: list[int],
    *,
    build: Callable[..., Any],
    or_more: bool = False,
    overwrite: bool = False,
) -> str:
    """Write the run's ONNX file unless it is up to date; returns a line to print.

    Args:
        build: models.build_untrained.
        or_more: a file that also holds other folds' networks is up to date.
        overwrite: write the file in any case.

    Raises BadInput where a network cannot be exported, or its maps would change.
    """
    weights = lineage.weights(output, run, folds)
    path = output / artifacts.Run(run).onnx
    if not overwrite and is_current(output, run, folds, weights, or_more=or_more):
        return f"{path} is up to date"
    cpu = torch.device("cpu")
    networks = probability_maps.load_folds(output, run, folds, build=build, device=cpu)
    images = cached_images(output)
    difference = write(output, run, networks, weights=weights, images=images)
    one = f"the network of fold {folds[0]}"
    held = one if len(folds) == 1 else f"{len(folds)} networks in one file"
    return (
        f"wrote {path}: {held}, probability maps differ from PyTorch's by at most {difference}/255"
    )


def cached_images(output: Path) -> list[Path]:
    """The cached PNG of each training image."""
    cached = artifacts.Cache(cache.size(output))
    ids = artifacts.training_rows(output)["image_id"]
    return [output / cached.image(image_id) for image_id in ids]


def is_current(
    output: Path, run: str, folds: list[int], weights: dict[str, str], *, or_more: bool
) -> bool:
    """Whether the run's ONNX file is whole and holds the folds' networks.

    Args:
        weights: {path: sha256} of their checkpoints.
        or_more: it may hold other folds' networks, too.
    """
    try:
        record = records.require(output, artifacts.Run(run).exported, weights)
    except BadInput:
        return False
    settings = {"folds": folds, "averaged": probability_maps.AVERAGED}
    if or_more:
        settings["folds"] = record["settings"]["folds"]
    return bool(record["settings"] == settings)


def write(
    output: Path,
    run: str,
    networks: Mapping[int, Predictor],
    *,
    weights: dict[str, str],
    images: Sequence[Path],
) -> int:
    """Write the run's ONNX file and its record.

    Args:
        networks: by fold, on the CPU.
        weights: {path: sha256} of their checkpoints.
        images: cached PNGs, a few of which are taken to compare maps.

    Returns the largest difference from PyTorch's maps, in steps of 1/255. Raises BadInput,
    and leaves the file alone, where that is above 1 or a network cannot be exported.
    """
    image_size = next(iter(networks.values())).image_size
    modules = {fold: one.network for fold, one in networks.items()}
    facts = {"run": run, "weights": json.dumps(weights)}
    graph = onnx_graph.export(modules, image_size=image_size, facts=facts)
    difference = largest_difference(
        graph, list(modules.values()), images_to_check(images, image_size)
    )
    if difference > 1:
        raise BadInput(
            f"the ONNX file of run {run} was not kept: its probability maps differ from "
            f"PyTorch's by {difference}/255. Install the tested versions: {INSTALL_EXTRA}"
        )
    path = artifacts.Run(run).onnx
    atomic.write_bytes(output / path, graph)
    records.write(
        output,
        artifacts.Run(run).exported,
        settings={"folds": list(networks), "averaged": probability_maps.AVERAGED},
        inputs=weights,
        outputs=[path],
    )
    return difference


def largest_difference(graph: bytes, networks: Sequence[Any], images: torch.Tensor) -> int:
    """Between the stored maps of onnxruntime and PyTorch (fp32), in steps of 1/255.

    Args:
        images: (N, 1, S, S) uint8.

    Values that are not finite differ by 255. Raises onnx's ValidationError for a graph
    that breaks ONNX's rules.
    """
    import onnx

    onnx.checker.check_model(graph, full_check=True)
    session = exported.session(graph, threads=torch.get_num_threads())
    largest = 0
    for image in images.split(1):  # one by one: less memory, and a fixed N > 1 would be noticed
        found = session.run(None, {exported.IMAGES: image.numpy()})
        expected = probability_maps.probabilities(networks, to_network(image, image.device))
        for ours, theirs in zip(
            found, (value.numpy() for value in expected if value is not None), strict=True
        ):
            if not np.isfinite(ours).all():
                return 255
            steps = postprocess.quantise(ours).astype(int) - postprocess.quantise(theirs)
            largest = max(largest, int(np.abs(steps).max()))
    return largest


def images_to_check(paths: Sequence[Path], image_size: int) -> torch.Tensor:
    """(CHECKED_IMAGES, 1, S, S) uint8: PNGs spread over `paths`, noise if missing."""
    generator = np.random.default_rng(0)
    images = []
    for place in np.linspace(0, len(paths) - 1, CHECKED_IMAGES).astype(int):
        try:
            images.append(png.downsample(png.read(paths[place]), image_size))
        except BadInput:
            images.append(generator.integers(0, 256, (image_size, image_size), dtype=np.uint8))
    return torch.from_numpy(np.stack(images)).unsqueeze(1)
