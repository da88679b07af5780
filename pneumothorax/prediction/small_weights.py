"""The weights of an exported ONNX graph as 8-bit integers: a quarter to a half of the bytes.

Weight-only quantisation: the weights of a large convolution become int8 with one scale for
each output channel, and ONNX's DequantizeLinear turns them back into float32. Everything
is computed as before.
"""

from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np

from pneumothorax import png
from pneumothorax.masks import postprocess
from pneumothorax.prediction import exported

# Of a convolution that is stored as int8. Smaller ones are mostly near the image, where an error
# spreads: as int8 they would save little and change the maps several times as much.
FEWEST_WEIGHTS = 2**16
COMPARED_IMAGES = 16
LARGEST = 127  # of int8, whose scale is symmetric


class Difference(NamedTuple):
    """Between the probability maps of two graphs, as they are stored: in steps of 1/255."""

    images: int  # that were compared
    largest: int
    mean: float

    @property
    def in_words(self) -> str:
        return (
            f"the probability maps of {self.images} images differ from those with the trained "
            f"weights by at most {self.largest}/255, on average by {self.mean:.3f}/255"
        )


def as_int8(graph: bytes) -> bytes:
    """A serialised model of onnx_graph.export -> the same, with weights of 8 bits."""
    import onnx
    from onnx import helper, numpy_helper

    model = onnx.load_model_from_string(graph)
    kernels = {node.input[1] for node in model.graph.node if node.op_type == "Conv"}
    nodes, tensors = [], []
    for tensor in model.graph.initializer:
        if tensor.name not in kernels or np.prod(tensor.dims) < FEWEST_WEIGHTS:
            tensors.append(tensor)
            continue
        whole, scale = quantise(numpy_helper.to_array(tensor))
        names = [f"{tensor.name}_int8", f"{tensor.name}_scale"]
        tensors += map(numpy_helper.from_array, (whole, scale), names)
        nodes.append(helper.make_node("DequantizeLinear", names, [tensor.name], axis=0))
    nodes += model.graph.node
    del model.graph.initializer[:], model.graph.node[:]
    model.graph.initializer.extend(tensors)
    model.graph.node.extend(nodes)
    data: bytes = model.SerializeToString(deterministic=True)
    return data


def quantise(weights: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """float32 (C, ...) -> int8 of the same shape and float32 scales (C,).

    weights are about integers * scales, at most half a scale away.
    """
    rows = weights.reshape(len(weights), -1)
    scale = np.abs(rows).max(axis=1) / LARGEST
    scale[scale == 0] = 1
    whole = np.rint(rows / scale[:, np.newaxis]).astype(np.int8)
    return whole.reshape(weights.shape), scale.astype(np.float32)


def difference(graph: bytes, changed: bytes, paths: Sequence[Path]) -> Difference:
    """Between the maps of two graphs for images of the same size.

    Args:
        paths: cached PNGs, a few of which are compared.

    Raises BadInput where one of these is missing or damaged.
    """
    networks = [exported.ExportedNetworks(one) for one in (graph, changed)]
    places = np.linspace(0, len(paths) - 1, COMPARED_IMAGES).astype(int)
    steps = []
    for path in (paths[place] for place in np.unique(places)):
        image = png.downsample(png.read(path), networks[0].image_size)
        before, after = (postprocess.quantise(one.maps(image[np.newaxis])[0]) for one in networks)
        steps.append(np.abs(before.astype(int) - after))
    return Difference(len(steps), int(np.max(steps)), float(np.mean(steps)))
