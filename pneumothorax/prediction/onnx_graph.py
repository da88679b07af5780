"""Networks of several folds -> one ONNX graph: grey images in, probability maps out.

Normalisation and the mean logit over image and mirror and over the folds are inside, so
that other programs need nothing but the file. onnx_runtime.py cuts single networks out.
"""

import json
import warnings
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import nn

from pneumothorax.data.dataset import to_network
from pneumothorax.errors import BadInput
from pneumothorax.prediction.exported import (
    CLASSIFICATION,
    CLASSIFICATION_LOGITS,
    IMAGES,
    LOGITS,
    PIXELS,
    PROBABILITY,
)

OPSET = 18  # the exporter's native opset; runtimes since 2023 support it
LARGEST_BYTES = 2**31 - 2**24  # of weights: protobuf's limit, less room for the nodes
TRACED_IMAGES = 2  # with 1, PyTorch would fix the batch size


class Averaged(nn.Module):
    """Images (N, 1, S, S) uint8 -> the graph's outputs, then its inner values.

    The same numbers as probability_maps.probabilities, but with images and mirrors in
    one pass through each network, which halves the nodes.
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
        mean = torch.stack(logits).mean(0)  # (2N, 1, S, S)
        outputs = [((mean[:n] + mean[n:].flip(3)) / 2).sigmoid()]
        if classifications[0] is None:
            return *outputs, both, *logits
        mean_classification = torch.stack(classifications).mean(0)  # (2N,)
        outputs.append(((mean_classification[:n] + mean_classification[n:]) / 2).sigmoid())
        return *outputs, both, *logits, *classifications


def export(networks: Mapping[int, Any], *, image_size: int, facts: Mapping[str, str]) -> bytes:
    """Networks by fold -> a serialised ONNX model.

    Input `images` (N, 1, S, S) uint8 grey, output `probability` (N, 1, S, S) float32, and
    `classification` (N,) where the networks have a classification head. N is any number,
    S is fixed. The model's metadata say so and hold `facts`. Equal networks give equal
    bytes. Raises BadInput where a network cannot be exported.
    """
    modules = list(networks.values())
    name = type(modules[0]).__name__
    _check(modules, name)
    averaged = Averaged(modules).to(memory_format=torch.contiguous_format).eval()  # type: ignore[call-overload]
    images = torch.zeros(TRACED_IMAGES, 1, image_size, image_size, dtype=torch.uint8)
    try:
        with torch.no_grad(), warnings.catch_warnings():
            warnings.simplefilter("ignore")  # the exporter's, about PyTorch's own code
            pixels = to_network(images[:1], images.device)
            has_classification = modules[0].outputs(pixels)[1] is not None
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
        reason = str(error).splitlines()[0]
        raise BadInput(f"{name} cannot be exported to ONNX: {reason}") from error
    assert program is not None  # always a program where dynamo is True
    described = _description(name, list(networks), image_size, has_classification)
    return _finished(program.model_proto, {**described, **facts})


def _check(networks: Sequence[Any], name: str) -> None:
    """Before the export, raise BadInput for networks that no ONNX file can hold."""
    if networks[0].no_fixed_graph:
        raise BadInput(f"{name} cannot be exported to ONNX: {networks[0].no_fixed_graph}")
    size = sum(values.nbytes for network in networks for values in network.state_dict().values())
    if size > LARGEST_BYTES:
        raise BadInput(
            f"the weights of {len(networks)} networks take {size / 2**30:.1f} GiB and one ONNX "
            "file holds less than 2: export fewer, for example --fold 0"
        )


def _description(
    name: str, folds: list[int], image_size: int, has_classification: bool
) -> dict[str, str]:
    """The model's metadata, for use without this project."""
    shape = f"(N, 1, {image_size}, {image_size})"
    described = {
        "project": "pneumothorax segmentation on chest radiographs",
        "network": name,
        "folds": json.dumps(folds),
        "image_size": str(image_size),
        "input": f"{IMAGES} {shape} uint8 grey, 0 to 255, white is dense; "
        "downsample by averaging areas",
        "output": f"{PROBABILITY} {shape} float32 in 0 to 1, "
        "of the mean logit over image and mirror and over folds",
    }
    if has_classification:
        described["output_classification"] = (
            f"{CLASSIFICATION} (N) float32 in 0 to 1, that the image has a pneumothorax"
        )
    return described


def _finished(model: Any, facts: Mapping[str, str]) -> bytes:
    """The exporter's model, serialised, with the inner values taken out of its outputs.

    `facts` replace the exporter's notes, which hold file paths and source lines of the
    machine it ran on.
    """
    import onnx

    graph = model.graph
    notes = [graph, *graph.node, *graph.input, *graph.output, *graph.value_info]
    for part in [*notes, *graph.initializer]:
        part.ClearField("metadata_props")
        part.ClearField("doc_string")
    outputs = list(graph.output)
    del graph.output[:]
    for value in outputs:
        is_output = value.name in (PROBABILITY, CLASSIFICATION)
        (graph.output if is_output else graph.value_info).append(value)
    onnx.helper.set_model_props(model, dict(facts))
    data: bytes = model.SerializeToString(deterministic=True)
    return data
