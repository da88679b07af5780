"""The device that a script computes on: chosen, tried with a real kernel, and named."""

import os
import platform
import re
import subprocess
import warnings
from pathlib import Path
from typing import NamedTuple

import torch
from torch.nn import functional

from pneumothorax.compute import runtime
from pneumothorax.errors import BadConfig

KINDS = ("cpu", "cuda", "mps")
DEVICE_FILES = Path("/dev")  # on Linux a card is nvidia0, also where nvidia-smi is missing
HIDDEN = ("", "-1", "NoDevFiles")  # CUDA_VISIBLE_DEVICES that hides all cards; Slurm's is the last
CUDA_FAILURES = (RuntimeError, AssertionError, torch.cuda.DeferredCudaCallError)

# PyTorch's own wheels (its RELEASE.md): CUDA 13 dropped all cards before Turing and needs driver
# 580. CUDA 12.6 runs from driver 525 on and ends with PyTorch 2.14 (pytorch#190385).
TURING, BLACKWELL = (7, 5), (10, 0)
DRIVER_OF_CUDA = {12: 525, 13: 580}
WHEELS = (
    "python -m pip install torch==2.13.0+{0} torchvision==0.28.0+{0} "
    "--index-url https://download.pytorch.org/whl/{0}"
)
OLD_WHEELS, NEW_WHEELS = WHEELS.format("cu126"), WHEELS.format("cu130")


class Card(NamedTuple):
    """An NVIDIA card as nvidia-smi lists it; `driver` "" and `capability` None if unknown."""

    name: str
    driver: str
    capability: tuple[int, int] | None


def choose(name: str = "auto", *, local_rank: int | None = None) -> torch.device:
    """The device `name`, tried; `auto` is a CUDA device if there is one, else the CPU.

    A CUDA device comes with its number, which some of PyTorch's functions insist on.
    Where a card is there but PyTorch cannot use it, `auto` does not fall back to the CPU, on
    which a training would take days unnoticed. fp32 is IEEE's on every device: TF32 is off.

    Raises BadConfig for a device that is unknown or absent, or fails to compute.

    Args:
        local_rank: this process's number on this machine, to give each process its own GPU.
    """
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # PyTorch's on old drivers and cards: see `repair`
        if name == "auto":
            name = "cuda" if torch.cuda.is_available() else _cpu_without_cards()
        if name == "cuda" and local_rank is not None:
            name = f"cuda:{local_rank}"
        device = _parsed(name)
        try:
            _try(device)
            return _current(device)
        except CUDA_FAILURES as error:
            reason = _reason(error, device)
            raise BadConfig(f"--device {name} cannot be used here: {reason}") from error


def describe(device: torch.device) -> str:
    """For a script's first line: the device with its card, memory and driver, or threads."""
    words = [device_name(device)]
    if device.type == "cuda":
        facts = torch.cuda.get_device_properties(device)
        words += [
            f"{facts.total_memory / 2**30:.0f} GiB",
            f"capability {facts.major}.{facts.minor}",
        ]
        words += [f"driver {card.driver}" for card in cards()[:1]]
        words.append(f"PyTorch {torch.__version__}")
    return f"device {device}: {', '.join(words)}"


def device_name(device: torch.device) -> str:
    """The GPU's name, or the CPU's architecture and the number of threads in use."""
    if device.type == "cuda":
        return torch.cuda.get_device_name(device)
    if device.type == "mps":
        return f"{platform.machine()} GPU (MPS)"
    return f"{platform.machine()} CPU, {torch.get_num_threads()} threads"


def memory_format(device: torch.device) -> torch.memory_format:
    """channels_last, in which convolutions are fastest, but for MPS.

    There the backward pass of batch norm gives wrong gradients in it (pytorch#175189).
    """
    return torch.contiguous_format if device.type == "mps" else torch.channels_last


def cards() -> list[Card]:
    """The NVIDIA cards of this machine, as far as nvidia-smi is there to list them."""
    for fields in ("name,driver_version,compute_cap", "name,driver_version"):  # before driver 510
        command = ["nvidia-smi", f"--query-gpu={fields}", "--format=csv,noheader"]
        try:
            done = subprocess.run(command, capture_output=True, text=True, timeout=60, check=False)  # noqa: S603
        except (OSError, subprocess.TimeoutExpired):
            return []
        if done.returncode == 0:
            return [_card(line) for line in done.stdout.splitlines() if "," in line]
    return []


def repair(
    capability: tuple[int, int] | None, driver: str, *, cuda: str | None, architectures: list[str]
) -> str:
    """What lets PyTorch compute on an NVIDIA card: the wheels, the driver, or both.

    Args:
        capability: the card's compute capability, such as (6, 1); None if unknown.
        driver: NVIDIA's driver, such as "535.104.05"; "" if unknown.
        cuda: torch.version.cuda; None if PyTorch is built without CUDA.
        architectures: torch.cuda.get_arch_list().
    """
    branch = int(found[0]) if (found := re.match(r"\d+", driver)) else None
    if capability is not None and capability < (5, 0):
        return f"PyTorch has no kernels for cards of capability {_dotted(capability)} any more"
    if branch is not None and branch < DRIVER_OF_CUDA[12]:
        return f"driver {driver} is too old: install NVIDIA driver 580"
    only_old = capability is not None and capability < TURING
    only_new = capability is not None and capability >= BLACKWELL
    too_old_for_new = branch is not None and branch < DRIVER_OF_CUDA[13]
    if only_new and too_old_for_new:
        return f"driver {driver} is too old for CUDA 13: install NVIDIA driver 580 or newer"
    wheels = OLD_WHEELS if only_old or too_old_for_new else NEW_WHEELS
    if cuda is None:
        return f"this PyTorch is built without CUDA: {wheels}"
    if architectures and capability is not None and not _has_kernels(capability, architectures):
        return (
            f"this PyTorch for CUDA {cuda} has no kernels for cards of capability "
            f"{_dotted(capability)}: {wheels}"
        )
    if too_old_for_new and int(cuda.split(".")[0]) >= 13:
        return (
            f"driver {driver} is too old for this PyTorch for CUDA {cuda}: install NVIDIA driver "
            f"580 or newer, or PyTorch for CUDA 12.6: {OLD_WHEELS}"
        )
    return "docs/gpu.md lists which PyTorch suits which card and driver"


def _cpu_without_cards() -> str:
    """`cpu`. Raises BadConfig where this machine has a card that PyTorch cannot use."""
    if os.environ.get("CUDA_VISIBLE_DEVICES") in HIDDEN:
        return "cpu"
    found = cards()
    if not found and not any(DEVICE_FILES.glob("nvidia[0-9]*")):
        return "cpu"
    card = found[0].name if found else "an NVIDIA card"
    raise BadConfig(
        f"--device auto: {card} is here, but PyTorch cannot use it: {_repair_here()}; "
        "or compute on the CPU with --device cpu"
    )


def _parsed(name: str) -> torch.device:
    """Raises BadConfig for a name that is no device, and for one that is not here."""
    try:
        device = torch.device(name)
    except RuntimeError as error:
        raise BadConfig(f"--device {name} is unknown: auto, cpu, cuda, cuda:1, mps") from error
    if device.type not in KINDS:
        raise BadConfig(f"--device {name} is not supported: auto, cpu, cuda, cuda:1, mps")
    if device.type == "cuda" and torch.cuda.is_available():
        n = torch.cuda.device_count()
        if (device.index or 0) >= n:
            raise BadConfig(f"--device {name} is not here: this process sees {n} CUDA devices")
    return device


def _current(device: torch.device) -> torch.device:
    """A CUDA device with its number, made the current one; fp32 is IEEE's, not cuDNN's TF32.

    torch.compile still reads these names; their successors, fp32_precision, break it.
    """
    if device.type != "cuda":
        return device
    torch.backends.cudnn.allow_tf32 = False
    torch.backends.cuda.matmul.allow_tf32 = False
    if device.index is None:
        return torch.device("cuda", torch.cuda.current_device())
    torch.cuda.set_device(device)
    return device


def _try(device: torch.device) -> None:
    """Forward and backward pass of a convolution and a matrix product, and wait for them.

    A tensor can be allocated on cards for which PyTorch has no kernels.
    """
    images = torch.ones(1, 4, 16, 16, device=device)
    weights = torch.ones(8, 4, 3, 3, device=device, requires_grad=True)
    features = functional.conv2d(images, weights, padding=1).flatten(2)  # (1, 8, 256)
    (features @ features.transpose(1, 2)).sum().backward()
    assert weights.grad is not None
    weights.grad.sum().item()


def _reason(error: BaseException, device: torch.device) -> str:
    """The first sentence of an error, and what to do about it."""
    sentence = (str(error) or type(error).__name__).splitlines()[0].split(". ")[0].rstrip(".")
    if runtime.is_out_of_memory(error):
        return f"{sentence}: end what else uses its memory, or choose another device"
    if device.type != "cuda":
        return f"{sentence}: --device cpu works everywhere"
    if not torch.cuda.is_available() and not cards():
        return f"{sentence}: no NVIDIA card is found here; --device cpu works everywhere"
    return f"{sentence}: {_repair_here(device)}; or compute on the CPU with --device cpu"


def _repair_here(device: torch.device | None = None) -> str:
    listed = cards()
    capability, driver = (listed[0].capability, listed[0].driver) if listed else (None, "")
    if torch.cuda.is_initialized():
        capability = torch.cuda.get_device_capability(device)
    architectures = torch.cuda.get_arch_list()
    return repair(capability, driver, cuda=torch.version.cuda, architectures=architectures)


def _has_kernels(capability: tuple[int, int], architectures: list[str]) -> bool:
    """Whether sm_XY of the same generation, or older code to translate (compute_XY), is there."""
    for name in architectures:
        kind, _, number = name.partition("_")
        version = int(re.sub(r"\D", "", number))  # sm_90a, sm_120f
        known = (version // 10, version % 10)
        if known <= capability and (kind == "compute" or known[0] == capability[0]):
            return True
    return False


def _card(line: str) -> Card:
    """A line of nvidia-smi's table."""
    name, driver, *rest = [cell.strip() for cell in line.split(",")]
    found = re.fullmatch(r"(\d+)\.(\d+)", rest[0]) if rest else None
    return Card(name, driver, (int(found[1]), int(found[2])) if found else None)


def _dotted(capability: tuple[int, int]) -> str:
    return f"{capability[0]}.{capability[1]}"
