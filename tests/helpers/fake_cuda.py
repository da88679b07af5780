"""A forward pass on cuda:0 without a card: CUDA's rules of autocast, tensors without values."""

import contextlib
import ctypes
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest
import torch
from torch import nn
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

# Positions of CUDA and of meta tensors in c10's enum DeviceType.
CUDA, META, DEVICE_TYPES = 1, 14, 22


@dataclass(frozen=True)
class Kernel:
    """One kernel that a pass ran, with what it read and wrote."""

    name: str  # e.g. "aten.relu_.default"
    inputs: list[torch.Tensor]
    outputs: list[torch.Tensor]

    @property
    def traffic(self) -> int:
        """Bytes of all its inputs and outputs. An input that is given twice counts twice."""
        return sum(_bytes(tensor) for tensor in (*self.inputs, *self.outputs))


@dataclass(frozen=True)
class Pass:
    """What a forward pass did."""

    kernels: list[Kernel]  # views are none: they move nothing
    kept: int  # bytes of the storages that autograd keeps for the backward pass, but weights

    @property
    def traffic(self) -> int:
        """Bytes that all kernels read and write, weights included."""
        return sum(kernel.traffic for kernel in self.kernels)


def forward(network: nn.Module, *inputs: torch.Tensor, dtype: torch.dtype | None) -> Pass:
    """Run a network in channels_last on inputs of the same shapes and types on cuda:0.

    Args:
        network: it is moved there, and has no values afterwards.
        inputs: on any device, for example meta.
        dtype: that of autocast; None is fp32.
    """
    network.to("meta").to(memory_format=torch.channels_last)
    counter = _Counter()
    kept: dict[int, torch.UntypedStorage] = {}

    def keep(tensor: torch.Tensor) -> torch.Tensor:
        storage = tensor.untyped_storage()
        kept[storage._cdata] = storage  # alive, so that no other one takes its place
        return tensor

    with _device_guard(), FakeTensorMode(allow_non_fake_inputs=True):
        network.to_empty(device="cuda:0")
        on_cuda = [torch.empty_like(one, device="cuda:0") for one in inputs]
        watched = torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor)
        with _autocast(dtype), watched, counter:
            result = network(*on_cuda)
        for weights in (*network.parameters(), *network.buffers()):
            kept.pop(weights.untyped_storage()._cdata, None)
        size = sum(storage.nbytes() for storage in kept.values())
        del result  # the graph, while CUDA has a guard
    return Pass(counter.kernels, size)


class _Counter(TorchDispatchMode):
    def __init__(self) -> None:
        super().__init__()
        self.kernels: list[Kernel] = []

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        result = function(*args, **(kwargs or {}))
        inputs, outputs = _tensors((args, kwargs)), _tensors(result)
        storages = {tensor.untyped_storage()._cdata for tensor in inputs}
        same = all(tensor.untyped_storage()._cdata in storages for tensor in outputs)
        if function._schema.is_mutable or not same:  # else a view, or a question without tensors
            self.kernels.append(Kernel(str(function), inputs, outputs))
        return result


@contextlib.contextmanager
def _autocast(dtype: torch.dtype | None) -> Iterator[None]:
    """torch.autocast("cuda", dtype=dtype), which refuses to work without a card."""
    if dtype is None:
        yield
        return
    torch.set_autocast_enabled("cuda", True)
    torch.set_autocast_dtype("cuda", dtype)
    torch.autocast_increment_nesting()
    try:
        yield
    finally:
        torch.autocast_decrement_nesting()
        torch.clear_autocast_cache()
        torch.set_autocast_enabled("cuda", False)


@contextlib.contextmanager
def _device_guard() -> Iterator[None]:
    """Lets a CPU build of PyTorch record gradients on cuda:0.

    It lacks the object that switches between CUDA devices; that of meta tensors, which does
    nothing, stands in. A CUDA build without a card does the same by itself.
    """
    if torch.backends.cuda.is_built():
        yield
        return
    if sys.platform == "win32":
        pytest.skip("a CPU build of PyTorch for Windows has no fake CUDA device")
    library = next((Path(torch.__file__).parent / "lib").glob("libc10.*"))
    guards = (ctypes.c_void_p * DEVICE_TYPES).in_dll(
        ctypes.CDLL(str(library)), "_ZN3c104impl26device_guard_impl_registryE"
    )
    guards[CUDA] = guards[META]
    try:
        yield
    finally:
        guards[CUDA] = None


def _tensors(tree: object) -> list[torch.Tensor]:
    return [leaf for leaf in tree_leaves(tree) if isinstance(leaf, torch.Tensor)]


def _bytes(tensor: torch.Tensor) -> int:
    return tensor.numel() * tensor.element_size()
