"""Networks of several folds -> one ONNX graph: grey images in, probability maps out.

Normalisation and the mean logit over image and mirror and over the folds are inside, so
that other programs need nothing but the file. The folds' networks differ in their weights
alone: one is exported, and each fold gets a copy with its own weights.
onnx_runtime.py cuts single networks out.
"""

import json
import warnings
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import torch
from torch import nn

from pneumothorax.errors import BadInput
from pneumothorax.prediction.exported import (
    CLASSIFICATION,
    CLASSIFICATION_LOGITS,
    IMAGES,
    LOGITS,
    PIXELS,
    PROBABILITY,
    of_fold,
)

OPSET, IR_VERSION = 18, 10  # the exporter's native opset; runtimes since 2023 support it
LARGEST_BYTES = 2**31 - 2**24  # of weights: protobuf's limit, less room for the nodes
TRACED_IMAGES = 2  # with 1, PyTorch would fix the batch size

# Around the networks, in ONNX's own notation. Images and their mirror images go through the
# networks together, which halves the nodes.
BEFORE = """
    grey = Cast <to = 1> (images)
    white = Constant <value_float = 255.0> ()
    upright = Div (grey, white)
    last = Constant <value_ints = [-1]> ()
    before_first = Constant <value_ints = [-9223372036854775807]> ()
    columns = Constant <value_ints = [3]> ()
    mirrored = Slice (upright, last, before_first, columns, last)
    pixels = Concat <axis = 0> (upright, mirrored)
"""
AFTER = """
    mean = Mean ({})
    of_upright, of_mirrored = Split <axis = 0, num_outputs = 2> (mean)
    mirrored_back = Slice (of_mirrored, last, before_first, columns, last)
    mean_upright = Mean (of_upright, mirrored_back)
    probability = Sigmoid (mean_upright)
"""
AFTER_CLASSIFICATION = """
    mean_c = Mean ({})
    of_upright_c, of_mirrored_c = Split <axis = 0, num_outputs = 2> (mean_c)
    mean_upright_c = Mean (of_upright_c, of_mirrored_c)
    classification = Sigmoid (mean_upright_c)
"""


class _Outputs(nn.Module):
    """Pixels (N, 1, S, S) float32 in [0, 1] -> the network's logits."""

    def __init__(self, network: Any) -> None:
        super().__init__()
        self.network = network

    def forward(self, pixels: torch.Tensor) -> tuple[torch.Tensor, ...]:
        return tuple(logits for logits in self.network.outputs(pixels) if logits is not None)


def export(networks: Mapping[int, Any], *, image_size: int, facts: Mapping[str, str]) -> bytes:
    """Networks by fold -> a serialised ONNX model.

    Input `images` (N, 1, S, S) uint8 grey, output `probability` (N, 1, S, S) float32, and
    `classification` (N,) where the networks have a classification head. N is any number,
    S is fixed. The model's metadata say so and hold `facts`. Equal networks give equal
    bytes. Raises BadInput where a network cannot be exported.

    Args:
        networks: of the same settings.
    """
    import onnx

    modules = list(networks.values())
    name = type(modules[0]).__name__
    _check(modules, name)
    network = _network(modules[0], name, image_size)
    has_classification = len(network.graph.output) > 1
    before, after, model = _frame(list(networks), image_size, has_classification)
    graph = model.graph
    graph.value_info.add(name=PIXELS, type=network.graph.input[0].type)
    graph.node.extend(before)
    for fold, module in networks.items():
        _add(graph, network.graph, fold, _Outputs(module).state_dict())
    graph.node.extend(after)
    described = _description(name, list(networks), image_size, has_classification)
    onnx.helper.set_model_props(model, {**described, **facts})
    data: bytes = model.SerializeToString(deterministic=True)
    return data


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


def _network(module: Any, name: str, image_size: int) -> Any:
    """ONNX model of one network, from `pixels` to its logits; its weights are inputs.

    The optimiser computes with constants, but not with inputs: it leaves the weights as
    they are, so that those of another fold can take their place.
    """
    import onnx
    import onnxscript.optimizer

    traced = _Outputs(module).to(memory_format=torch.contiguous_format).eval()  # type: ignore[call-overload]
    pixels = torch.zeros(TRACED_IMAGES, 1, image_size, image_size)
    try:
        with torch.no_grad(), warnings.catch_warnings():
            warnings.simplefilter("ignore")  # the exporter's, about PyTorch's own code
            program = torch.onnx.export(
                traced,
                (pixels,),
                input_names=[PIXELS],
                output_names=[LOGITS, CLASSIFICATION_LOGITS][: len(traced(pixels[:1]))],
                dynamic_shapes={PIXELS: {0: torch.export.Dim("M", min=1)}},
                opset_version=OPSET,
                dynamo=True,
                optimize=False,
                verbose=False,
            )
    except torch.onnx.OnnxExporterError as error:
        reason = str(error).splitlines()[0]
        raise BadInput(f"{name} cannot be exported to ONNX: {reason}") from error
    assert program is not None  # always a program where dynamo is True
    model = program.model_proto
    constants, weights = [], traced.state_dict()
    for tensor in model.graph.initializer:
        if tensor.name in weights:
            value = onnx.helper.make_tensor_value_info(tensor.name, tensor.data_type, tensor.dims)
            model.graph.input.append(value)
        else:
            constants.append(tensor)
    del model.graph.initializer[:]
    model.graph.initializer.extend(constants)
    return onnxscript.optimizer.optimize(model)


def _frame(folds: list[int], image_size: int, has_classification: bool) -> tuple[Any, Any, Any]:
    """The nodes before and after the networks, and a model without nodes."""
    import onnx

    size = f"1,{image_size},{image_size}"
    after, outputs = AFTER.format(_names(LOGITS, folds)), f"float[N,{size}] {PROBABILITY}"
    if has_classification:
        after += AFTER_CLASSIFICATION.format(_names(CLASSIFICATION_LOGITS, folds))
        outputs += f", float[N] {CLASSIFICATION}"
    head = f'<ir_version: {IR_VERSION}, opset_import: ["" : {OPSET}]>'
    text = f"{head} averaged (uint8[N,{size}] {IMAGES}) => ({outputs}) {{ {BEFORE} {after} }}"
    model = onnx.parser.parse_model(text)
    nodes = list(model.graph.node)
    del model.graph.node[:]
    n_before = next(at for at, node in enumerate(nodes) if PIXELS in node.output) + 1
    return nodes[:n_before], nodes[n_before:], model


def _names(name: str, folds: list[int]) -> str:
    return ", ".join(of_fold(name, fold) for fold in folds)


def _add(graph: Any, network: Any, fold: int, weights: Mapping[str, torch.Tensor]) -> None:
    """Add a copy of the network, an ONNX graph, with the weights of a fold."""
    from onnx import numpy_helper

    def renamed(names: Iterable[str]) -> list[str]:
        return [name if name in ("", PIXELS) else of_fold(name, fold) for name in names]

    for node in network.node:
        copy = graph.node.add(op_type=node.op_type, domain=node.domain, attribute=node.attribute)
        copy.name = of_fold(node.name, fold)
        copy.input.extend(renamed(node.input))
        copy.output.extend(renamed(node.output))
    used = {name for node in network.node for name in node.input}
    of_the_fold = [
        numpy_helper.from_array(weights[name].contiguous().numpy(), name)
        for name in sorted(used & weights.keys())
    ]
    for tensor in [*network.initializer, *of_the_fold]:
        graph.initializer.append(tensor)  # a copy of it
        graph.initializer[-1].name = of_fold(tensor.name, fold)
        graph.initializer[-1].ClearField("doc_string")
    for value in network.output:
        graph.value_info.add(name=of_fold(value.name, fold), type=value.type)


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
