"""A network's trace is what a forward pass shows, and what the diagrams draw."""

import functools
import json
import random
import subprocess
import sys

import pytest
import torch
from torch import nn
from torch.nn import functional as F

import models
from models.coord_attention import ImprovedCoordAttention
from pneumothorax.compute import network_cost
from pneumothorax.plotting import LIGHT
from pneumothorax.report import network_diagram
from tests.helpers.figures import save
from tests.helpers.networks import SMALL, small
from tests.helpers.stages import ROOT

SIZE = 64


class TinyUNet(nn.Module):
    """Three levels; the middle skip is concatenated outside of modules. One module is unused."""

    def __init__(self):
        super().__init__()
        self.fine = nn.Sequential(
            nn.Conv2d(1, 4, 3, padding=1), nn.BatchNorm2d(4), nn.ReLU(inplace=True)
        )
        self.middle = nn.Conv2d(4, 8, 3, stride=2, padding=1, bias=False)
        self.norm = nn.BatchNorm2d(8)
        self.coarse = nn.Conv2d(8, 16, 3, stride=2, padding=1, bias=False)
        self.merge = nn.Conv2d(24, 8, 1, bias=False)
        self.head = nn.Conv2d(8, 1, 1)
        self.unused = nn.Conv2d(1, 1, 1)

    def forward(self, images):
        middle = self.norm(self.middle(self.fine(images)))
        coarse = F.dropout(self.coarse(middle), training=self.training)
        merged = self.merge(torch.cat([middle, F.interpolate(coarse, scale_factor=2.0)], dim=1))
        return F.interpolate(self.head(merged), scale_factor=2.0)


def products(network):
    """Multiply-adds of convolutions and linear layers, counted from shapes by hooks."""
    counted = []

    def count(module, args, output):
        if isinstance(module, nn.ConvTranspose2d):
            counted.append(args[0].numel() * module.weight[0].numel())
        else:
            counted.append(output.numel() * module.weight[0].numel())

    handles = [
        module.register_forward_hook(count)
        for module in network.modules()
        if isinstance(module, nn.Conv1d | nn.Conv2d | nn.ConvTranspose2d | nn.Linear)
    ]
    with torch.no_grad():
        network.eval()(torch.linspace(0, 1, SIZE * SIZE).reshape(1, 1, SIZE, SIZE))
    for handle in handles:
        handle.remove()
    return sum(counted)


@functools.cache
def traced(name):
    return network_cost.trace(small(name), SIZE)


@pytest.fixture(scope="module")
def tiny_trace():
    torch.manual_seed(0)
    return network_cost.trace(TinyUNet(), 32)


def test_parts_shapes_and_strides_of_a_network_known_by_hand(tiny_trace):
    rows = [
        (part["name"], part["class"], part["shapes"], part["stride"])
        for part in tiny_trace["parts"]
    ]
    assert rows == [
        ("fine", "Sequential", [[4, 32, 32]], 1),
        ("middle", "Conv2d", [[8, 16, 16]], 2),
        ("coarse", "Conv2d", [[16, 8, 8]], 4),
        ("merge", "Conv2d", [[8, 16, 16]], 2),
        ("head", "Conv2d", [[1, 16, 16]], 2),
    ]
    assert tiny_trace["output"] == [1, 32, 32]


def test_connections_are_followed_through_operations_outside_of_modules(tiny_trace):
    assert [part["from"] for part in tiny_trace["parts"]] == [[], [0], [1], [1, 2], [3]]
    assert tiny_trace["output_from"] == [4]


def test_weights_and_multiply_adds_by_hand(tiny_trace):
    # fine: 9 * 4 products for each of 32 * 32 pixels, and so on.
    products = [36 * 1024, 9 * 32 * 256, 9 * 128 * 64, 24 * 8 * 256, 8 * 256]
    assert tiny_trace["multiply_adds"] == sum(products)
    # fine: 9 * 4 weights, 4 biases, 2 * 4 of batch norm; the unused part has weights too.
    weights = {"fine": 48, "middle": 9 * 32, "norm": 16, "coarse": 9 * 128, "merge": 24 * 8}
    assert tiny_trace["parameters"] == sum(weights.values()) + 9 + 2


def test_multiply_adds_of_a_convolution_and_a_linear_layer_by_hand():
    network = nn.Sequential(nn.Conv2d(1, 6, 3, stride=2), nn.Flatten(), nn.Linear(6 * 15 * 15, 10))
    # (32 - 3) // 2 + 1 = 15; each output value takes 3 * 3 products, each of the ten 6 * 15 * 15.
    expected = 15 * 15 * 6 * 9 + 6 * 15 * 15 * 10
    assert network_cost.trace(network, 32)["multiply_adds"] == expected


@pytest.mark.parametrize("name", SMALL)
def test_every_network_is_traced_with_the_shapes_of_a_forward_pass(name):
    network = small(name)
    trace = network_cost.trace(network, SIZE)
    seen = {}
    modules = dict(network.named_modules())
    for path, module in modules.items():
        module.register_forward_hook(
            lambda _, args, output, path=path: seen.setdefault(path, []).append(output)
        )
    with torch.no_grad():
        output = network.eval()(torch.linspace(0, 1, SIZE * SIZE).reshape(1, 1, SIZE, SIZE))
    assert trace["output"] == list(output.shape[1:])
    assert trace["parameters"] == sum(weights.numel() for weights in network.parameters())
    assert len(trace["parts"]) >= 8
    for part in trace["parts"]:
        single = [one for one in seen[part["name"]] if isinstance(one, torch.Tensor)]
        if len(part["shapes"]) == 1 and single:
            assert part["shapes"] == [list(single[-1].shape)[1:]], part
        if part["stride"]:
            assert part["shapes"][0][1:] == [SIZE // part["stride"]] * 2
    # CheXLocNet also crops features and pastes masks by matrix products, outside of layers.
    outside = trace["multiply_adds"] - products(network)
    assert outside > 0 if name == "chexlocnet" else outside == 0


def test_every_network_has_a_small_form():
    assert set(models.NAMES) <= set(SMALL)


@pytest.mark.parametrize("name", SMALL)
def test_every_part_is_fed_by_earlier_ones_and_leads_to_the_output(name):
    trace = traced(name)
    parts = trace["parts"]
    assert all(source < at for at, part in enumerate(parts) for source in part["from"])
    used, waiting = set(), list(trace["output_from"])
    while waiting:
        at = waiting.pop()
        if at not in used:
            used.add(at)
            waiting += parts[at]["from"]
    assert used == set(range(len(parts)))
    assert len({part["name"] for part in parts}) == len(parts)


@pytest.mark.parametrize("name", SMALL)
def test_a_trace_is_json(name):
    trace = traced(name)
    assert json.loads(json.dumps(trace)) == trace


def test_ica_resunets_attended_features_feed_the_skip_and_the_next_stage():
    parts = traced("ica_resunet")["parts"]
    at = {part["name"]: number for number, part in enumerate(parts)}
    for level in range(3):
        attention = at[f"attention.{level}"]
        assert parts[attention]["from"] == [at[f"encoder.layer{level + 1}"]]
        assert parts[at[f"encoder.layer{level + 2}"]]["from"] == [attention]
        assert attention in parts[at[f"decoder.blocks.{2 - level}"]]["from"]


@pytest.mark.parametrize("name", SMALL)
def test_tracing_leaves_weights_modes_hooks_and_random_generators_alone(name):
    network = small(name).train()
    next(network.children()).eval()  # modes differ within the network
    next(module for module in network.modules() if isinstance(module, nn.BatchNorm2d)).train()
    modes = [module.training for module in network.modules()]
    state = {key: value.clone() for key, value in network.state_dict().items()}
    torch.manual_seed(3), random.seed(3)
    expected = torch.rand(3), random.random()
    torch.manual_seed(3), random.seed(3)
    network_cost.trace(network, SIZE)
    assert torch.equal(torch.rand(3), expected[0])
    assert random.random() == expected[1]
    assert [module.training for module in network.modules()] == modes
    assert all(torch.equal(value, state[key]) for key, value in network.state_dict().items())
    assert not any(
        module._forward_hooks or module._forward_pre_hooks for module in network.modules()
    )
    assert all(weights.grad is None and weights.requires_grad for weights in network.parameters())
    masks = torch.zeros(2, 1, SIZE, SIZE)
    masks[:, :, 20:40, 20:40] = 1
    loss = network.train().training_loss(
        torch.rand(2, 1, SIZE, SIZE), masks, F.binary_cross_entropy_with_logits
    )
    loss["loss"].backward()  # nothing the pass left behind refuses a gradient


class Remembering(nn.Module):
    """Keeps a tensor from its first forward pass, as a detector keeps its anchors."""

    def __init__(self):
        super().__init__()
        self.weight = nn.Parameter(torch.ones(1))
        self.kept = None

    def forward(self, images):
        if self.kept is None:
            self.kept = torch.arange(images.shape[3], dtype=torch.float32)
        return images * (self.kept * self.weight)


def test_a_tensor_the_network_keeps_from_the_pass_can_be_trained_with():
    network = Remembering()
    network_cost.trace(network, 4)
    network(torch.ones(1, 1, 4, 4)).sum().backward()
    assert network.weight.grad.item() == 4 * (0 + 1 + 2 + 3)


def test_a_failing_network_gets_its_modes_back_and_keeps_no_hooks():
    network = nn.Sequential(nn.Conv2d(3, 4, 3), nn.Dropout()).train()
    with pytest.raises(RuntimeError):
        network_cost.trace(network, 32)  # grey images have one channel
    assert network.training and network[1].training
    assert not any(
        module._forward_hooks or module._forward_pre_hooks for module in network.modules()
    )


def attended():
    return nn.Sequential(
        nn.Conv2d(1, 16, 3, stride=2, padding=1), ImprovedCoordAttention(16, merge="concat")
    )


@pytest.mark.parametrize("memory_format", [torch.contiguous_format, torch.channels_last])
def test_the_attention_block_is_described_with_its_shape_and_settings(memory_format):
    trace = network_cost.trace(attended().to(memory_format=memory_format), 24)
    assert trace["attention"] == {
        "name": "1",
        "shape": [16, 12, 12],
        "squeezed": 8,  # max(8, 16 / 32)
        "pooling": ["mean", "amax"],
        "merge": "concat",
        "residual": True,
    }


@pytest.mark.parametrize("merge", ["concat", "sum", "shared"])
@pytest.mark.parametrize("pooling", ["avg", "max", "avg+max"])
@pytest.mark.parametrize("residual", [True, False])
def test_the_attention_diagram_has_the_shapes_of_the_blocks_modules(merge, pooling, residual):
    block = ImprovedCoordAttention(16, merge=merge, pooling=pooling, residual=residual)
    network = nn.Sequential(nn.Conv2d(1, 16, 3, stride=2, padding=1), block)
    seen = {}
    for name in ("squeeze", "gate_rows", "gate_cols"):
        getattr(block, name).register_forward_hook(
            lambda _, args, output, name=name: seen.update({name: (args[0].shape, output.shape)})
        )
    trace = network_cost.trace(network, 24)
    boxes = network_diagram.attention_boxes(trace["attention"])
    shapes = {box.title: box.shape for box in boxes}
    squeeze = next(box for box in boxes if "hard-swish" in box.title)
    given = {boxes[source].shape for source in squeeze.sources}
    shape_text = network_diagram.shape_text
    assert given == {shape_text(seen["squeeze"][0][1:])}  # without the image's axis
    assert squeeze.shape == shape_text(seen["squeeze"][1][1:])
    for part, name in (("rows", "gate_rows"), ("columns", "gate_cols")):
        title = next(title for title in shapes if title.startswith(f"{part}: "))
        assert shapes[title] == shape_text(seen[name][1][1:])
    assert shapes["product"] == boxes[-1].shape == boxes[0].shape == "16 × 12 × 12"
    assert boxes[-1].title == ("input + input · gate" if residual else "input · gate")
    assert ("means of rows and columns" in shapes) == (pooling != "max")
    assert ("maxima of rows and columns" in shapes) == (pooling != "avg")


def texts(figure):
    return [text.get_text() for text in figure.axes[0].texts]


@pytest.mark.parametrize("name", SMALL)
def test_the_diagram_shows_every_part_with_its_shape(name):
    trace = traced(name)
    shown = texts(network_diagram.draw(trace, LIGHT))
    for part in trace["parts"]:
        title = part["name"].removeprefix("network.")
        shape = network_diagram.shape_text(part["shapes"][0])
        assert any(text.startswith(f"{title}\n{shape}") for text in shown), part
    assert f"image\n1 × {SIZE} × {SIZE}" in shown
    for stride in {part["stride"] for part in trace["parts"]} - {None}:
        assert f"stride {stride}" in shown


@pytest.mark.parametrize("name", SMALL)
def test_the_diagram_has_an_arrow_for_every_connection(name):
    trace = traced(name)
    figure = network_diagram.draw(trace, LIGHT)
    arrows = [patch for patch in figure.axes[0].patches if hasattr(patch, "get_arrowstyle")]
    boxes = network_diagram.boxes_of(trace)
    connections = sum(len(part["from"]) or 1 for part in trace["parts"])  # at least the image
    output = len(trace["output_from"]) if boxes[-1].title == "output" else 0
    assert len(arrows) == connections + output


@pytest.mark.parametrize("name", SMALL)
def test_boxes_do_not_overlap_and_hold_their_text(name):
    trace = traced(name)
    drawn = [network_diagram.draw(trace, LIGHT)]
    if trace["attention"]:
        drawn.append(network_diagram.draw_attention(trace, LIGHT))
    for figure in drawn:
        figure.draw_without_rendering()
        axes = figure.axes[0]
        boxes = [
            patch.get_window_extent() for patch in axes.patches if hasattr(patch, "get_boxstyle")
        ]
        frame = axes.get_window_extent()
        for number, box in enumerate(boxes):
            assert (
                frame.x0 <= box.x0
                and box.x1 <= frame.x1
                and frame.y0 <= box.y0
                and box.y1 <= frame.y1
            )
            assert not any(box.overlaps(other) for other in boxes[number + 1 :])
        labels = [text.get_window_extent() for text in axes.texts if "\n" in text.get_text()]
        assert len(labels) == len(boxes)
        for box, label in zip(boxes, labels, strict=True):
            assert box.x0 <= label.x0 and label.x1 <= box.x1
            assert box.y0 <= label.y0 + 1 and label.y1 - 1 <= box.y1


def test_a_unet_is_drawn_as_a_u(tiny_trace):
    boxes = network_diagram.boxes_of(tiny_trace)
    network_diagram.place(boxes)
    by_name = {box.title: box for box in boxes}
    fine, middle, coarse = (by_name[name] for name in ("fine", "middle", "coarse"))
    assert fine.y > middle.y > coarse.y and fine.x < middle.x < coarse.x < by_name["output"].x
    assert by_name["merge"].y == middle.y and by_name["merge"].x > middle.x
    assert by_name["head"].y > by_name["merge"].y  # upwards, towards the finer level
    assert by_name["output"].level == 0


def test_a_network_without_attention_has_no_attention_diagram():
    with pytest.raises(ValueError, match="UNet has no attention block"):
        network_diagram.draw_attention(traced("unet"), LIGHT)


def test_drawing_a_diagram_twice_gives_the_same_file(tmp_path):
    trace = traced("ica_resunet")
    for name in ("first", "second"):
        save(network_diagram.draw(trace, LIGHT), tmp_path / f"{name}.svg")
        save(network_diagram.draw_attention(trace, LIGHT), tmp_path / f"{name}-attention.svg")
    for name in ("first", "first-attention"):
        same = tmp_path / f"{name.replace('first', 'second')}.svg"
        assert (tmp_path / f"{name}.svg").read_bytes() == same.read_bytes()


def test_drawing_a_trace_needs_no_torch(tmp_path):
    (tmp_path / "trace.json").write_text(json.dumps(traced("chexlocnet")), encoding="utf-8")
    code = (
        "import json, sys\n"
        "from pneumothorax import plotting\n"
        "from pneumothorax.report import network_diagram\n"
        "figure = network_diagram.draw(json.load(open(sys.argv[1])), plotting.LIGHT)\n"
        "print('torch' in sys.modules, len(figure.axes[0].texts) > 10)\n"
    )
    command = [sys.executable, "-c", code, tmp_path / "trace.json"]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=True)
    assert done.stdout.split() == ["False", "True"]
