"""What a network is made of, seen in a forward pass: its cost, parts, shapes and connections.

The result is plain JSON and is saved with the run; the report draws it without the network.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn
from torch.utils._pytree import tree_leaves, tree_map_only
from torch.utils.flop_counter import FlopCounterMode

from pneumothorax.compute import runtime
from pneumothorax.errors import BadConfig

ATTENTION = "ImprovedCoordAttention"
MAX_STRIDE = 64  # coarser outputs are pooled values, not a level of the network

Shape = list[int]


@dataclass(frozen=True)
class _Call:
    """One call of a module; `shapes` are those of its outputs."""

    path: str
    module: Any
    shapes: list[Shape]
    elementwise: bool  # a leaf that keeps the shape, such as batch norm or an activation

    @property
    def is_attention(self) -> bool:
        return type(self.module).__name__ == ATTENTION


def trace(network: nn.Module, size: int) -> dict[str, Any]:
    """Send one grey image (size, size) through the network and describe what happens.

    Shapes are without the image axis: [C, H, W]. Keys:
        network, size, parameters, multiply_adds: class, pixels, weights, cost of one image.
        parts: in the order of the forward pass, each with `name`, `class`, `shapes` (of
            its outputs), `stride` (None unless the output is one feature map) and `from`
            (positions of the parts whose outputs it takes; [] is the image).
        output, output_from: the shape of the output, and where it comes from.
        attention: the first improved coordinate attention block (`_attention`), or None.

    Weights, buffers, modes and random generators are the same afterwards.
    """
    calls: list[_Call] = []

    def record(path: str, module: nn.Module, inputs: list[Any], output: Any) -> Any:
        shapes = [_shape(tensor) for tensor in _tensors(output)]
        keeps_shape = shapes == [_shape(tensor) for tensor in inputs]
        leaf = not any(module.children()) and all(w.ndim < 2 for w in module.parameters())
        calls.append(_Call(path, module, shapes, leaf and keeps_shape))
        return output

    watched = _hooks(dict(network.named_modules()), record)
    with _undisturbed(network), torch.no_grad(), watched, FlopCounterMode(display=False) as counter:
        output = network(_image(network, size))
    parts = _parts(calls, size)
    sources, output_sources = _connections(network, size, parts)
    position = {path: at for at, path in enumerate(parts)}
    return {
        "network": type(network).__name__,
        "size": size,
        "parameters": sum(weights.numel() for weights in network.parameters()),
        "multiply_adds": counter.get_total_flops() // 2,  # one multiply-add is two FLOPs
        "parts": [
            {
                "name": path,
                "class": type(part.module).__name__,
                "shapes": part.shapes,
                "stride": _stride(part.shapes[0], size) if len(part.shapes) == 1 else None,
                "from": sorted(position[source] for source in sources[path]),
            }
            for path, part in parts.items()
        ],
        "output": _shape(output),
        "output_from": sorted(position[source] for source in output_sources),
        "attention": next((_attention(call) for call in calls if call.is_attention), None),
    }


def require_size(network: nn.Module, size: int, *, stride: int = 32) -> None:
    """Send one grey image (size, size) through the network.

    Raises BadConfig if it fails, with the nearest multiple of `stride` that succeeds.
    """
    error = _failure(network, size)
    if error is None:
        return
    others = sorted(
        range(stride, 2 * size + 1, stride), key=lambda other: (abs(other - size), -other)
    )
    nearest = next((other for other in others if _failure(network, other) is None), None)
    advice = (
        "no other size up to twice as large works either"
        if nearest is None
        else f"the nearest size that works is {nearest}: --set image_size={nearest}"
    )
    reason = " ".join(str(error).split()) or type(error).__name__
    raise BadConfig(
        f"image_size {size}: the network cannot take images of {size} x {size} ({reason}); {advice}"
    ) from error


def _failure(network: nn.Module, size: int) -> Exception | None:
    """The error of a forward pass, or None. Too little memory is raised."""
    try:
        with _undisturbed(network), torch.inference_mode():
            network(_image(network, size))
    except Exception as error:  # each architecture has its own
        if runtime.is_out_of_memory(error):
            raise
        return error
    return None


@contextlib.contextmanager
def _undisturbed(network: nn.Module) -> Iterator[None]:
    """Evaluation mode; every module's mode and the random generators are restored afterwards."""
    modes = [(module, module.training) for module in network.modules()]
    devices = {weights.device for weights in network.parameters() if weights.device.type == "cuda"}
    with torch.random.fork_rng(devices=list(devices)):
        try:
            network.eval()
            yield
        finally:
            for module, mode in modes:
                module.training = mode


@contextlib.contextmanager
def _hooks(modules: dict[str, nn.Module], hook: Callable[..., Any]) -> Iterator[None]:
    """After each call of a module, hook(path, module, input tensors, output) gives the output."""

    def with_path(path: str) -> Any:
        return lambda module, args, kwargs, output: hook(
            path, module, _tensors((args, kwargs)), output
        )

    handles = [
        module.register_forward_hook(with_path(path), with_kwargs=True)
        for path, module in modules.items()
    ]
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()


def _image(network: nn.Module, size: int) -> torch.Tensor:
    """(1, 1, S, S) in [0, 1] on the network's device: a ramp, no random numbers."""
    device = next((weights.device for weights in network.parameters()), torch.device("cpu"))
    return torch.linspace(0, 1, size * size, device=device).reshape(1, 1, size, size)


def _parts(calls: list[_Call], size: int) -> dict[str, _Call]:
    """By path: the outermost modules that stay on one or two strides and hold no attention block.

    Elementwise modules are not parts.
    """
    undivided = {call.path for call in calls if not _is_divided(call, calls, size)}
    parts: dict[str, _Call] = {}
    for call in calls:
        names = call.path.split(".")
        above = {".".join(names[:depth]) for depth in range(1, len(names))}
        if not call.elementwise and call.path in undivided and not above & undivided:
            parts.setdefault(call.path, call)
    return parts


def _is_divided(call: _Call, calls: list[_Call], size: int) -> bool:
    """Whether the modules inside are shown instead of the module."""
    if not call.path:
        return True
    inside = [other for other in calls if other.path.startswith(f"{call.path}.")]
    strides = {_stride(shape, size) for one in (call, *inside) for shape in one.shapes} - {None}
    spans_levels = len(strides) > 2 and any(_stride(shape, size) for shape in call.shapes)
    return bool(inside) and (spans_levels or any(other.is_attention for other in inside))


def _connections(
    network: nn.Module, size: int, parts: dict[str, _Call]
) -> tuple[dict[str, set[str]], set[str]]:
    """The parts that feed each part, by path, and the parts that feed the output.

    A second pass with gradients: walking PyTorch's graph backwards from a part's outputs
    leads to the parts before it, also through operations outside of modules. Outputs that
    a part detaches from the graph are taken to come from all of its inputs.
    """
    sources: dict[str, set[str]] = {path: set() for path in parts}
    made_by: dict[Any, str] = {}  # node of the graph -> path

    def connect(path: str, _: nn.Module, inputs: list[torch.Tensor], output: Any) -> Any:
        made = [tensor for tensor in _tensors(output) if tensor.grad_fn not in made_by]
        detached = any(tensor.grad_fn is None for tensor in made)
        sources[path] |= _makers(inputs if detached else made, made_by) - {path}
        output = tree_map_only(torch.Tensor, _attached, output)
        for tensor in _tensors(output):
            if tensor.grad_fn is not None:
                made_by.setdefault(tensor.grad_fn, path)
        return output

    watched = _hooks({path: call.module for path, call in parts.items()}, connect)
    nothing = torch.empty(0)  # kept instead of every activation: no gradient is computed
    forget = torch.autograd.graph.saved_tensors_hooks(lambda _: nothing, lambda _: nothing)
    with _undisturbed(network), torch.enable_grad(), forget, watched:
        output = network(_attached(_image(network, size)))
    return sources, _makers([output], made_by)


def _attached(tensor: torch.Tensor) -> torch.Tensor:
    """The same values with a node in the graph."""
    if tensor.requires_grad or not tensor.is_floating_point():
        return tensor
    return tensor.detach().requires_grad_().clone()


def _makers(tensors: list[torch.Tensor], made_by: dict[Any, str]) -> set[str]:
    """The nearest parts that the tensors were computed from."""
    found: set[str] = set()
    seen: set[Any] = {None}
    waiting = [tensor.grad_fn for tensor in tensors]
    while waiting:
        node: Any = waiting.pop()
        if node in made_by:
            found.add(made_by[node])
        elif node not in seen:
            seen.add(node)
            waiting += [before for before, _ in node.next_functions]
    return found


def _attention(call: _Call) -> dict[str, Any]:
    """An attention block: `name`, `shape` [C, H, W], `squeezed` channels, and its settings."""
    block = call.module
    return {
        "name": call.path,
        "shape": call.shapes[0],
        "squeezed": block.squeeze[0].out_channels,
        "pooling": [reduce.__name__ for reduce in block.reducers],
        "merge": block.merge,
        "residual": block.residual,
    }


def _stride(shape: Shape, size: int) -> int | None:
    """Image size over feature map size; None where the shape is not [C, S, S]."""
    if len(shape) != 3 or shape[1] != shape[2] or shape[1] == 0 or size % shape[1]:
        return None
    stride = size // shape[1]
    return stride if stride <= MAX_STRIDE else None


def _shape(tensor: torch.Tensor) -> Shape:
    """The shape without the image axis, which detections, of another length there, keep."""
    shape = list(tensor.shape)
    return shape[1:] if len(shape) > 2 and shape[0] == 1 else shape


def _tensors(tree: Any) -> list[torch.Tensor]:
    return [leaf for leaf in tree_leaves(tree) if isinstance(leaf, torch.Tensor)]
