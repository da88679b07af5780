"""The networks of several folds in one ONNX file: grey images in, probability maps out, compared with PyTorch at once.

Normalisation, the mean over an image and its mirror and the mean over the folds are inside: elsewhere the file is all
that is needed. Stage 03 predicts with the same nodes (pneumothorax/onnx_backend.py).
"""

import argparse
import json
import warnings
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import nn

from pneumothorax import png
from pneumothorax.data.dataset import to_network
from pneumothorax.errors import INSTALL_EXTRA, BadInput
from pneumothorax.masks import postprocess
from pneumothorax.pipeline import artifacts, atomic, records
from pneumothorax.prediction import onnx_runtime, probability_maps
from pneumothorax.prediction.onnx_runtime import (
    CLASSIFICATION,
    CLASSIFICATION_LOGITS,
    IMAGES,
    LOGITS,
    PIXELS,
    PROBABILITY,
)
from pneumothorax.prediction.probability_maps import Predictor

OPSET = 18  # the one the exporter is written for; runtimes since 2023 know it
LARGEST_BYTES = 2**31 - 2**24  # of weights: protobuf's limit, less room for the nodes
CHECKED_IMAGES = 3
TRACED_IMAGES = 2  # PyTorch takes 1 for a fixed number; maps are compared one by one, which finds any other fixed


def installed(name: str) -> str:
    """argparse type: `name`, where it needs no ONNX or all packages for that are installed."""
    if name in ("onnx", "onnxruntime"):
        try:
            import onnx  # noqa: F401
            import onnxruntime  # noqa: F401
            import onnxscript  # noqa: F401
        except ImportError as error:
            raise argparse.ArgumentTypeError(
                f"{name} needs more packages ({error}): {INSTALL_EXTRA}"
            ) from error
    return name


def is_current(
    output: Path, run: str, folds: list[int], weights: dict[str, str], *, or_more: bool
) -> bool:
    """Whether the run's ONNX file is whole and holds the folds' networks with these `weights` ({path: sha256}).

    or_more: it may hold other folds' too.
    """
    try:
        record = records.require(output, artifacts.Run(run).exported, weights)
    except BadInput:
        return False
    return or_more or record["settings"] == {"folds": folds}


def write(
    output: Path,
    run: str,
    networks: Mapping[int, Predictor],
    *,
    weights: dict[str, str],
    images: Sequence[Path],
) -> int:
    """Write the run's ONNX file and its record; returns the largest difference from PyTorch's maps, of 255.

    Args:
        networks: by fold, on the CPU.
        weights: {path: sha256} of their checkpoints.
        images: cached PNGs, of which some are taken to compare maps.

    Raises BadInput when a network cannot be exported, or a map differs by more than 1: the file is as it was then.
    """
    image_size = next(iter(networks.values())).image_size
    modules = {fold: one.network for fold, one in networks.items()}
    facts = {"run": run, "weights": json.dumps(weights)}
    graph = export(modules, image_size=image_size, facts=facts)
    difference = largest_difference(
        graph, list(modules.values()), images_to_check(images, image_size)
    )
    if difference > 1:
        raise BadInput(
            f"the ONNX file of run {run} gives other maps than PyTorch, by {difference} of 255, and was not kept. "
            f"It is tested with the versions that this installs: {INSTALL_EXTRA}"
        )
    path = artifacts.Run(run).onnx
    atomic.write_bytes(output / path, graph)
    records.write(
        output,
        artifacts.Run(run).exported,
        settings={"folds": list(networks)},
        inputs=weights,
        outputs=[path],
    )
    return difference


def export(networks: Mapping[int, Any], *, image_size: int, facts: Mapping[str, str]) -> bytes:
    """Networks by fold -> an ONNX model: `images` (N, 1, S, S) uint8 grey -> `probability` (N, 1, S, S) float32.

    With a classification head `classification` (N,) stands beside it. N is any number, S is fixed. The model's metadata say so, and
    hold `facts`. Equal networks give equal bytes. Raises BadInput where a network cannot be exported.
    """
    modules = list(networks.values())
    what = type(modules[0]).__name__
    if modules[0].no_fixed_graph:
        raise BadInput(f"{what} cannot be exported to ONNX: {modules[0].no_fixed_graph}")
    size = sum(values.nbytes for network in modules for values in network.state_dict().values())
    if size > LARGEST_BYTES:
        raise BadInput(
            f"the weights of {len(modules)} networks take {size / 2**30:.1f} GiB and one ONNX file holds less than 2: "
            "export fewer, as with --fold 0"
        )
    averaged = Averaged(modules).to(memory_format=torch.contiguous_format).eval()  # type: ignore[call-overload]
    images = torch.zeros(TRACED_IMAGES, 1, image_size, image_size, dtype=torch.uint8)
    try:
        with torch.no_grad(), warnings.catch_warnings():
            warnings.simplefilter("ignore")  # the exporter's, about PyTorch's own code
            has_classification = (
                modules[0].outputs(to_network(images[:1], images.device))[1] is not None
            )
            outputs = [PROBABILITY, *([CLASSIFICATION] if has_classification else [])]
            inner = [f"{LOGITS}{fold}" for fold in networks]
            inner += [f"{CLASSIFICATION_LOGITS}{fold}" for fold in networks if has_classification]
            program = torch.onnx.export(
                averaged,
                (images,),
                input_names=[IMAGES],
                output_names=[*outputs, PIXELS, *inner],
                dynamic_shapes={IMAGES: {0: torch.export.Dim("N", min=1)}},
                opset_version=OPSET,
                dynamo=True,
                verbose=False,
            )
    except torch.onnx.OnnxExporterError as error:
        raise BadInput(
            f"{what} cannot be exported to ONNX: {str(error).splitlines()[0]}"
        ) from error
    assert program is not None  # it is where dynamo is True
    size_text = f"{image_size}, {image_size}"
    told = {
        "project": "pneumothorax segmentation on chest radiographs",
        "network": what,
        "folds": json.dumps(list(networks)),
        "image_size": str(image_size),
        "input": f"{IMAGES} (N, 1, {size_text}) uint8 grey, 0 to 255, white is dense; downsample by averaging areas",
        "output": f"{PROBABILITY} (N, 1, {size_text}) float32 in 0 to 1, the mean over image and mirror and over folds",
        **(
            {"output_classification": f"{CLASSIFICATION} (N) float32 in 0 to 1, of any pixel"}
            if has_classification
            else {}
        ),
        **facts,
    }
    return _finished(program.model_proto, told)


class Averaged(nn.Module):
    """images (N, 1, S, S) uint8 -> the model's outputs, and after them the values between which a single network lies.

    As prediction.probabilities, but with images and mirrors in one pass through each network: half the nodes.
    """

    def __init__(self, networks: Sequence[Any]) -> None:
        super().__init__()
        self.networks: Any = nn.ModuleList(networks)

    def forward(self, images: torch.Tensor) -> tuple[torch.Tensor, ...]:
        n = images.shape[0]
        pixels = to_network(images, images.device)
        both = torch.cat([pixels, pixels.flip(3)])  # (2N, 1, S, S)
        logits, classifications = zip(
            *(network.outputs(both) for network in self.networks), strict=True
        )
        p = torch.stack(logits).sigmoid().mean(0)  # (2N, 1, S, S)
        outputs = [(p[:n] + p[n:].flip(3)) / 2]
        if classifications[0] is None:
            return *outputs, both, *logits
        p_classification = torch.stack(classifications).sigmoid().mean(0)  # (2N,)
        outputs.append((p_classification[:n] + p_classification[n:]) / 2)
        return *outputs, both, *logits, *classifications


def largest_difference(graph: bytes, networks: Sequence[Any], images: torch.Tensor) -> int:
    """Between what onnxruntime and PyTorch (fp32) give for images (N, 1, S, S) uint8, of 255 steps as maps are stored.

    Raises onnx's ValidationError for a graph that breaks ONNX's rules. What is not a finite number differs by 255.
    """
    import onnx

    onnx.checker.check_model(graph, full_check=True)
    session = onnx_runtime.session(graph)
    largest = 0
    for image in images.split(1):  # one by one: memory
        found = session.run(None, {IMAGES: image.numpy()})
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
    """(CHECKED_IMAGES, 1, S, S) uint8, spread over the PNGs at `paths`; noise for those that are not there."""
    generator = np.random.default_rng(0)
    images = []
    for place in np.linspace(0, len(paths) - 1, CHECKED_IMAGES).astype(int):
        try:
            images.append(png.downsample(png.read(paths[place]), image_size))
        except BadInput:
            images.append(generator.integers(0, 256, (image_size, image_size), dtype=np.uint8))
    return torch.from_numpy(np.stack(images)).unsqueeze(1)


def _finished(model: Any, facts: Mapping[str, str]) -> bytes:
    """The exporter's model with inner values no longer among the outputs, and with `facts` for its notes.

    Those hold file paths and source lines of the machine it ran on.
    """
    import onnx

    graph = model.graph
    for part in (
        graph,
        *graph.node,
        *graph.input,
        *graph.output,
        *graph.value_info,
        *graph.initializer,
    ):
        part.ClearField("metadata_props")
        part.ClearField("doc_string")
    outputs = list(graph.output)
    del graph.output[:]
    for value in outputs:
        (graph.output if value.name in (PROBABILITY, CLASSIFICATION) else graph.value_info).append(
            value
        )
    onnx.helper.set_model_props(model, dict(facts))
    data: bytes = model.SerializeToString(deterministic=True)
    return data
