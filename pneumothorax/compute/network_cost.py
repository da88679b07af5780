"""What a network is made of, read from one forward pass: parts, shapes, connections, multiply-adds.

Nothing is typed by hand: hooks see every module's call, and a dispatch mode follows each tensor from the part that
made it to the parts that take it, also through concatenations written outside of modules. The result is plain JSON,
kept with the run; `network_diagram` draws it without the network.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import nn
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves
from torch.utils.flop_counter import FlopCounterMode
from torch.utils.weak import WeakTensorKeyDictionary

ATTENTION = "ImprovedCoordAttention"  # the class whose inside is recorded too
MAX_STRIDE = 64  # coarser outputs are pooled values, not a level of the network
# Modules that stand for no part of their own: drawn with the part whose output they change value by value.
ELEMENTWISE = (
    *(nn.modules.batchnorm._BatchNorm, nn.GroupNorm, nn.LayerNorm, nn.modules.dropout._DropoutNd),
    *(nn.ReLU, nn.ReLU6, nn.LeakyReLU, nn.PReLU, nn.SiLU, nn.GELU, nn.Hardswish, nn.Sigmoid),
)
# What is shown of an attention block, by PyTorch's name; everything else (views, copies) passes its input on.
OPERATIONS = {
    **{
        "mean": "mean",
        "amax": "maximum",
        "sum": "sum",
        "cat": "concatenation",
        "sigmoid": "sigmoid",
    },
    **{"mul": "product", "mul_": "product", "add": "sum", "add_": "sum", "addcmul": "x + x · gate"},
    **{"hardswish": "hard-swish", "hardswish_": "hard-swish"},
    **dict.fromkeys(
        ("convolution", "conv1d", "conv2d", "mkldnn_convolution", "cudnn_convolution"),
        "convolution",
    ),
    **dict.fromkeys(
        ("batch_norm", "native_batch_norm", "cudnn_batch_norm", "miopen_batch_norm"), "batch norm"
    ),
    **dict.fromkeys(
        ("_native_batch_norm_legit_no_training", "_batch_norm_with_update"), "batch norm"
    ),
}

Shape = list[int]


def trace(network: nn.Module, size: int) -> dict[str, Any]:
    """One image of (size, size) through a network of grey images -> what it is made of, as plain JSON.

    Keys: `network` (class), `size`, `parameters`, `multiply_adds` (of one image), `output` (shape), `output_from`
    (positions in `parts`), `parts` and `attention`. Shapes are without the image axis: [C, H, W].

    A part has `name` (the module's, with those of elementwise modules that follow it), `class`, `shapes` (of all its
    outputs), `stride` (None where the output is not one feature map), `parameters`, `multiply_adds` and `from` (the
    positions of the parts whose outputs it takes; [] = the image).
    `attention` is None, or the inside of the first improved coordinate attention block: `name` and `operations`, each
    with `name`, `module` (inside the block; "" for the block itself), `shape` and `from`; the first operation is the
    block's input.

    The network's weights, buffers, modes and the random generators are left as they are.
    """
    recorder = _Recorder(network)
    with _undisturbed(network), recorder.hooks(), FlopCounterMode(display=False) as counter:
        recorder.counter = counter
        with _Provenance(recorder):
            output = network(_image(network, size))
        origins = recorder.origins.get(output, frozenset())
    groups = _groups(recorder.root, size)
    position = {id(call): at for at, group in enumerate(groups) for call in group}
    parts = [_part(group, at, position, size) for at, group in enumerate(groups)]
    return {
        "network": type(network).__name__,
        "size": size,
        "parameters": sum(weights.numel() for weights in network.parameters()),
        "multiply_adds": counter.get_total_flops() // 2,
        "output": _shape(output),
        "output_from": sorted(_resolve(origins, position)),
        "parts": parts,
        "attention": recorder.attention.as_dict() if recorder.attention else None,
    }


def multiply_adds(network: nn.Module, size: int) -> int:
    """Multiplications with addition that one image of (size, size) costs in convolutions and matrix products."""
    with _undisturbed(network), FlopCounterMode(display=False) as counter:
        network(_image(network, size))
    return counter.get_total_flops() // 2  # a floating-point operation is half a multiply-add


def _image(network: nn.Module, size: int) -> torch.Tensor:
    """(1, 1, S, S) in [0, 1] where the network's weights are: a ramp, no random numbers."""
    device = next((weights.device for weights in network.parameters()), torch.device("cpu"))
    return torch.linspace(0, 1, size * size, device=device).reshape(1, 1, size, size)


@contextlib.contextmanager
def _undisturbed(network: nn.Module) -> Iterator[None]:
    """Evaluation mode without gradients, and every module's mode and the random generators put back afterwards.

    no_grad, not inference_mode: a tensor that a network keeps (anchors) could otherwise not be trained with.
    """
    modes = [(module, module.training) for module in network.modules()]
    devices = {weights.device for weights in network.parameters() if weights.device.type == "cuda"}
    with torch.random.fork_rng(devices=list(devices)), torch.no_grad():
        try:
            network.eval()
            yield
        finally:
            for module, mode in modes:
                module.training = mode


@dataclass(eq=False)
class _Call:
    """One call of a module: who called it, what it used, what it gave."""

    path: str
    module: nn.Module
    parent: _Call | None
    multiply_adds: int  # while it runs: of the pass until then
    given: set[int] = field(default_factory=set)  # ids of the tensors it was called with
    sources: set[_Origin] = field(default_factory=set)  # of what its operations took from outside
    shapes: list[Shape] = field(default_factory=list)
    single: bool = False  # the output is one tensor
    children: list[_Call] = field(default_factory=list)

    def is_inside(self, other: _Call) -> bool:
        call: _Call | None = self
        while call is not None and call is not other:
            call = call.parent
        return call is other


@dataclass(eq=False)
class _Origin:
    """A tensor comes out of `call`; `inner` is where it came from inside, for calls that turn out to be no part."""

    call: _Call
    inner: frozenset[_Origin]


class _Recorder:
    """Every module's calls, as a tree, and where each living tensor came from."""

    def __init__(self, network: nn.Module) -> None:
        self.network = network
        self.root = _Call("", network, None, 0)
        self.running: list[_Call] = []
        self.origins: Any = WeakTensorKeyDictionary()
        self.attention: _Operations | None = None
        self.inside_attention: _Call | None = None
        self.counter: FlopCounterMode | None = None

    @contextlib.contextmanager
    def hooks(self) -> Iterator[None]:
        handles = []
        for path, module in self.network.named_modules():
            handles.append(module.register_forward_pre_hook(self._entering(path), with_kwargs=True))
            handles.append(module.register_forward_hook(self._leaving))
        try:
            yield
        finally:
            for handle in handles:
                handle.remove()

    def _entering(self, path: str) -> Any:
        def enter(module: nn.Module, args: Any, kwargs: Any) -> None:
            parent = self.running[-1] if self.running else None
            given = _tensors((args, kwargs))
            call = _Call(path, module, parent, self._flops() // 2, {id(tensor) for tensor in given})
            if parent is None:
                self.root = call
            else:
                parent.children.append(call)
            self.running.append(call)
            if self.attention is None and type(module).__name__ == ATTENTION:
                self.attention, self.inside_attention = _Operations(path, given[0]), call

        return enter

    def _leaving(self, module: nn.Module, args: Any, output: Any) -> None:
        call = self.running.pop()
        call.multiply_adds = self._flops() // 2 - call.multiply_adds
        call.single = isinstance(output, torch.Tensor)
        tensors = _tensors(output)
        call.shapes = [_shape(tensor) for tensor in tensors]
        # A list may hold inputs that are only handed on (a pyramid with one more level); one tensor was worked on.
        worked_on = call.single and not isinstance(module, nn.Identity)
        for tensor in tensors:
            if id(tensor) in call.given and not worked_on:
                continue
            self.origins[tensor] = frozenset({_Origin(call, self.origins.get(tensor, frozenset()))})
        if call is self.inside_attention:
            self.inside_attention = None

    def operation(self, inputs: list[torch.Tensor], outputs: list[torch.Tensor]) -> None:
        """Outputs come from where the inputs came from; every call that is running has used those."""
        sources = frozenset().union(*(self.origins.get(tensor, frozenset()) for tensor in inputs))
        for tensor in outputs:
            self.origins[tensor] = sources
        for call in self.running:
            call.sources.update(source for source in sources if not source.call.is_inside(call))

    def _flops(self) -> int:
        return self.counter.get_total_flops() if self.counter else 0


class _Provenance(TorchDispatchMode):
    """Hands every operation's inputs and outputs to the recorder."""

    def __init__(self, recorder: _Recorder) -> None:
        super().__init__()
        self.recorder = recorder

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        result = func(*args, **(kwargs or {}))
        inputs, outputs = _tensors((args, kwargs)), _tensors(result)
        self.recorder.operation(inputs, outputs)
        attention = self.recorder.attention
        if attention is not None and self.recorder.inside_attention is not None:
            module = self.recorder.running[-1].path.removeprefix(attention.name).removeprefix(".")
            attention.add(func.overloadpacket.__name__, module, args, inputs, outputs)
        return result


class _Operations:
    """The operations inside an attention block, with the shapes of what they give."""

    def __init__(self, name: str, block_input: torch.Tensor) -> None:
        self.name = name
        # A view of the input reduced over an axis with this step in memory: over the width it leaves the rows.
        *_, row_step, column_step = block_input.stride()
        self.leaves = {column_step: "of rows", row_step: "of columns"}
        self.operations: list[dict[str, Any]] = [
            {"name": "input", "module": "", "shape": _shape(block_input), "from": []}
        ]
        self.made_by: Any = WeakTensorKeyDictionary()
        self.made_by[block_input] = frozenset({0})

    def add(
        self,
        operation: str,
        module: str,
        args: Any,
        inputs: list[torch.Tensor],
        outputs: list[torch.Tensor],
    ) -> None:
        sources = frozenset().union(*(self.made_by.get(tensor, frozenset()) for tensor in inputs))
        if not sources or not outputs:  # weights alone
            return
        name = OPERATIONS.get(operation)
        if name == "sum" and len(inputs) == 1 and inputs[0].numel() == outputs[0].numel():
            name = None  # over an axis of one
        if name is not None:
            if name == "convolution":
                kernel = inputs[1].shape[2:]
                name = (
                    f"{' × '.join(map(str, kernel))} conv" if max(kernel) > 1 else "pointwise conv"
                )
            if name in ("mean", "maximum") and inputs[0].ndim == 4:
                axis = args[1][0] if isinstance(args[1], list | tuple) else args[1]
                name = f"{name} {self.leaves.get(inputs[0].stride()[axis], '')}".strip()
            taken = {
                "name": name,
                "module": module,
                "shape": _shape(outputs[0]),
                "from": sorted(sources),
            }
            self.operations.append(taken)
            sources = frozenset({len(self.operations) - 1})
        for tensor in outputs:
            self.made_by[tensor] = sources

    def as_dict(self) -> dict[str, Any]:
        return {"name": self.name, "operations": self.operations}


def _groups(root: _Call, size: int) -> list[list[_Call]]:
    """The calls that are parts, in order; those drawn as one part together."""
    groups: list[list[_Call]] = []
    for call in _parts_of(root, size):
        if isinstance(call.module, nn.Identity):
            continue
        if groups and _belongs(call, groups[-1]):
            groups[-1].append(call)
        else:
            groups.append([call])
    return groups


def _parts_of(call: _Call, size: int) -> list[_Call]:
    """The call itself, or the parts inside it where it spans several levels or holds attention of its own."""
    parts = []
    for child in call.children:
        spans = len(_strides(child, size)) > 2 and any(
            _stride(shape, size) for shape in child.shapes
        )
        expand = child.children and (spans or _holds_attention(child))
        parts += _parts_of(child, size) if expand else [child]
    return parts


def _belongs(call: _Call, group: list[_Call]) -> bool:
    """Whether a call is drawn with the part before it."""
    last = group[-1]
    if call.shapes != last.shapes:
        return call.module is last.module and not call.single
    if any(origin.call is not last for origin in call.sources):  # takes something else too
        return False
    (home, _, number), (other_home, _, _) = call.path.rpartition("."), last.path.rpartition(".")
    alike = type(call.module) is type(last.module) and type(call.module).__name__ != ATTENTION
    return isinstance(call.module, ELEMENTWISE) or (
        alike and home == other_home and number.isdigit()
    )


def _part(group: list[_Call], at: int, position: dict[int, int], size: int) -> dict[str, Any]:
    sources = set().union(*(_resolve(frozenset(call.sources), position) for call in group))
    first = next((call for call in group if not isinstance(call.module, ELEMENTWISE)), group[0])
    shapes = group[-1].shapes
    modules = {id(call.module): call.module for call in group}.values()
    weights = {id(one): one.numel() for module in modules for one in module.parameters()}
    return {
        "name": _name(group),
        "class": type(first.module).__name__,
        "shapes": shapes,
        "stride": _stride(shapes[0], size) if len(shapes) == 1 else None,
        "parameters": sum(weights.values()),
        "multiply_adds": sum(call.multiply_adds for call in group),
        "from": sorted(sources - {at}),
    }


def _name(group: list[_Call]) -> str:
    """encoder.conv1 + bn1 + relu; block1.0, block1.1 and block1.2 as block1.0-2."""
    named = list(dict.fromkeys(call.path for call in group))
    last = [path.rpartition(".")[2] for path in named]
    if len(named) > 2 and all(name.isdigit() for name in last):
        return f"{named[0]}-{last[-1]}"
    return " + ".join([named[0], *last[1:]])


def _resolve(origins: frozenset[_Origin], position: dict[int, int]) -> set[int]:
    """Positions of the parts from which a tensor with these origins comes."""
    found: set[int] = set()
    for origin in origins:
        part = _enclosing(origin.call, position)
        found |= _resolve(origin.inner, position) if part is None else {part}
    return found


def _enclosing(call: _Call | None, position: dict[int, int]) -> int | None:
    while call is not None:
        if id(call) in position:
            return position[id(call)]
        call = call.parent
    return None


def _strides(call: _Call, size: int) -> set[int]:
    """Strides of all feature maps that a call and those inside it give."""
    own = {stride for shape in call.shapes if (stride := _stride(shape, size))}
    return own.union(*(_strides(child, size) for child in call.children))


def _stride(shape: Shape, size: int) -> int | None:
    """How much smaller a feature map [C, H, W] is than the image; None where the shape is no feature map's."""
    if len(shape) != 3 or shape[1] != shape[2] or shape[1] == 0 or size % shape[1]:
        return None
    stride = size // shape[1]
    return stride if stride <= MAX_STRIDE else None


def _holds_attention(call: _Call) -> bool:
    if type(call.module).__name__ == ATTENTION:
        return False
    return any(
        type(child.module).__name__ == ATTENTION or _holds_attention(child)
        for child in call.children
    )


def _shape(tensor: torch.Tensor) -> Shape:
    """Without the axis of the one image; tensors of another length there (detections) keep it."""
    shape = list(tensor.shape)
    return shape[1:] if len(shape) > 2 and shape[0] == 1 else shape


def _tensors(tree: Any) -> list[torch.Tensor]:
    return [leaf for leaf in tree_leaves(tree) if isinstance(leaf, torch.Tensor)]
