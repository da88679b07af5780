"""Weights of 8 bits: a quarter of the bytes, nearly the same maps, computed in float32."""

import numpy as np
import onnx
import onnxruntime
import pytest
from onnx import numpy_helper

from pneumothorax import png
from pneumothorax.prediction import exported, onnx_check, small_weights

SIZE = 32
GRAPH = """
<ir_version: 10, opset_import: ["" : 18]>
networks (uint8[N,1,32,32] images) => (float[N,1,32,32] probability) {
    grey = Cast <to = 1> (images)
    features = Conv <pads = [1, 1, 1, 1]> (grey, first)
    positive = Relu (features)
    mixed = Conv <pads = [1, 1, 1, 1]> (positive, second)
    logits = Conv (mixed, third)
    probability = Sigmoid (logits)
}
"""


@pytest.fixture(scope="module")
def graph():
    """Convolutions with 864, 82944 and 96 weights."""
    model = onnx.parser.parse_model(GRAPH)
    rng = np.random.default_rng(0)
    for name, shape in (
        ("first", (96, 1, 3, 3)),
        ("second", (96, 96, 3, 3)),
        ("third", (1, 96, 1, 1)),
    ):
        weights = rng.normal(0, 0.02, shape).astype(np.float32)
        model.graph.initializer.append(numpy_helper.from_array(weights, name))
    return model.SerializeToString()


@pytest.fixture
def images(tmp_path):
    paths = [tmp_path / f"{number}.png" for number in range(3)]
    rng = np.random.default_rng(1)
    for path in paths:
        path.write_bytes(png.encode_small(rng.integers(0, 256, (SIZE, SIZE), dtype=np.uint8)))
    return paths


def test_each_channel_has_the_scale_of_its_largest_weight():
    weights = np.array([[-2.54, 1.3, 0.029], [0, 0, 0], [0, 12.7, 0.04]], np.float32)
    whole, scale = small_weights.quantise(weights)
    # 2.54 / 127 = 0.02 and 1.3 / 0.02 = 65 and 0.029 / 0.02 = 1.45; 12.7 / 127 = 0.1
    assert whole.tolist() == [[-127, 65, 1], [0, 0, 0], [0, 127, 0]]
    assert (whole.dtype, scale.dtype) == (np.int8, np.float32)
    np.testing.assert_allclose(scale, [0.02, 1, 0.1], rtol=1e-6)


def test_large_convolutions_are_stored_as_int8_and_nothing_else_changes(graph):
    changed = small_weights.as_int8(graph)
    onnx_check.check(changed)
    model = onnx.load_model_from_string(changed)
    onnx.checker.check_model(model, full_check=True)
    types = {tensor.name: tensor.data_type for tensor in model.graph.initializer}
    real = onnx.TensorProto.FLOAT
    integers = {"second_int8": onnx.TensorProto.INT8, "second_scale": real}
    assert types == {"first": real, "third": real, **integers}
    kinds = [node.op_type for node in model.graph.node]
    assert kinds[0] == "DequantizeLinear"
    original = onnx.load_model_from_string(graph).graph.node
    assert kinds[1:] == [node.op_type for node in original]


def test_the_difference_is_that_of_the_stored_maps(graph, images):
    same = small_weights.difference(graph, graph, images)
    assert same == small_weights.Difference(images=3, largest=0, mean=0)
    changed = small_weights.as_int8(graph)
    found = small_weights.difference(graph, changed, images)
    maps = [
        exported.ExportedNetworks(one).maps(np.stack([png.read(path) for path in images]))[0]
        for one in (graph, changed)
    ]
    steps = np.abs(np.rint(maps[0] * 255) - np.rint(maps[1] * 255))
    assert (found.images, found.largest) == (3, steps.max())
    assert found.mean == pytest.approx(steps.mean())
    assert 0 < found.mean < found.largest
    assert np.ptp(maps[0]) > 0.3


def test_weights_become_float32_when_the_graph_is_loaded_not_for_each_image(
    graph, tmp_path, monkeypatch
):
    original, path = onnxruntime.SessionOptions, tmp_path / "as_run.onnx"

    def options():
        made = original()
        made.optimized_model_filepath = str(path)
        return made

    monkeypatch.setattr(onnxruntime, "SessionOptions", options)
    exported.ExportedNetworks(small_weights.as_int8(graph))
    kinds = {node.op_type for node in onnx.load(path).graph.node}
    assert "Conv" in kinds
    assert "DequantizeLinear" not in kinds
