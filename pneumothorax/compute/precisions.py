"""Numbers in 16 or 32 bits: which of them a device computes in, autocast and loss scaling.

16 bits means mixed precision: weights stay in fp32, convolutions and matrix products are
computed in fp16 or bf16.
"""

import math
import re
import time
from collections.abc import Callable

import torch

from pneumothorax.compute import devices
from pneumothorax.errors import BadConfig

AUTO, FP32, BF16, FP16 = "auto", "fp32", "bf16", "fp16"

VOLTA, AMPERE = (7, 0), (8, 0)
# Turing without tensor cores: fp16 convolutions give NaN (pytorch#77955), and are slow.
NO_TENSOR_CORES = re.compile(r"GTX 16\d0|MX[45]50|\bT\d{3,4}\b")

CLEARLY_FASTER = 1.2  # below it, bf16's rounding buys nothing, and noise would decide
ROUNDS = 3  # the first warms up


def resolve(asked: str, device: torch.device) -> str:
    """The precision that `asked` (auto, fp32, bf16 or fp16) means on a device.

    `auto` means 16 bits where the device has units for them. What a device only emulates
    is refused, so that the name says what was computed: raises BadConfig.
    """
    if device.type == "cuda":
        capability = torch.cuda.get_device_capability(device)
        return on_card(asked, capability, torch.cuda.get_device_name(device))
    if device.type == "mps":
        if asked in (BF16, FP16):
            raise BadConfig(
                f"precision {asked} is not tested on MPS: use fp32, or leave it at auto"
            )
        return FP32
    if asked == AUTO:
        return BF16 if cpu_has_bf16() else FP32
    return asked


def on_card(asked: str, capability: tuple[int, int], card: str) -> str:
    """`resolve` for a CUDA device of this compute capability and name.

    bf16 has units from Ampere on. fp16 has tensor cores from Volta on; before them it
    saves memory, but no time.
    """
    if asked == BF16 and capability < AMPERE:
        raise BadConfig(f"precision bf16: {card} only emulates it: use fp16, or leave it at auto")
    if asked != AUTO:
        return asked
    if capability >= AMPERE:
        return BF16
    return FP16 if capability >= VOLTA and not NO_TENSOR_CORES.search(card) else FP32


def half(device: torch.device) -> str | None:
    """The 16 bits that save memory on a device, whether or not they save time; None on MPS."""
    if device.type == "cuda":
        return BF16 if torch.cuda.get_device_capability(device) >= AMPERE else FP16
    return None if device.type == "mps" else BF16


def of_training(asked: str, device: torch.device) -> str | None:
    """`resolve` for training; None where only timing can tell which precision is faster.

    Some CPUs with units for bf16 train more slowly in it, and their flags do not say which.
    """
    timed = asked == AUTO and device.type == "cpu" and cpu_has_bf16()
    return None if timed else resolve(asked, device)


def cpu_has_bf16() -> bool:
    """Whether the CPU has units for bf16 (AVX512-BF16 or AMX); others emulate it slowly."""
    has = torch.cpu.get_capabilities()
    return bool(has.get("avx512_bf16") or has.get("amx_bf16"))


def first_line(device: torch.device, asked: str, *, training: bool = False) -> str:
    """What a script computes with, for its first line. Raises BadConfig as `resolve` does."""
    named = of_training(asked, device) if training else resolve(asked, device)
    named = named or f"{FP32} or {BF16}, whichever trains faster"
    tf32 = ", TF32 off" if device.type == "cuda" else ""
    return f"{devices.describe(device)}; precision {named}{tf32}"


def faster(loss: Callable[[], torch.Tensor], device: torch.device) -> tuple[str, float]:
    """bf16 if a training step is clearly faster in it than in fp32, else fp32; and how much faster.

    Args:
        loss: a forward pass, whose backward pass is timed, too.

    Returns the precision, and the time in fp32 over the time in bf16.
    """
    seconds = dict.fromkeys((FP32, BF16), math.inf)
    for _ in range(ROUNDS):
        for name in seconds:
            start = time.perf_counter()
            with autocast(device, name):
                value = loss()
            value.backward()
            seconds[name] = min(seconds[name], time.perf_counter() - start)
    ratio = seconds[FP32] / seconds[BF16]
    return BF16 if ratio >= CLEARLY_FASTER else FP32, ratio


def autocast(device: torch.device, precision: str) -> torch.autocast:
    """A reusable context in which convolutions and matrix products run in `precision`."""
    half = torch.float16 if precision == FP16 else torch.bfloat16
    return torch.autocast(device.type, dtype=half, enabled=precision != FP32)


def loss_scaler(device: torch.device, precision: str) -> torch.amp.GradScaler:
    """Scales losses in fp16, whose gradients would vanish. Does nothing in bf16 and fp32."""
    return torch.amp.GradScaler(device.type, enabled=precision == FP16)
