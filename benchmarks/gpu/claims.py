"""The claims, one function each: it returns what it found, or raises Broken or NotHere."""

import gc
import math
import subprocess
import sys
import warnings
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any
from unittest.mock import patch

import torch
from torch import nn
from torch.utils._pytree import tree_leaves

import models
from benchmarks.gpu.findings import NotHere, one_line, require
from benchmarks.gpu.material import Material, first_batch
from pneumothorax.compute import devices, precisions, runtime
from pneumothorax.compute.interruption import StopRequest
from pneumothorax.errors import Stopped
from pneumothorax.pipeline import artifacts
from pneumothorax.training import losses
from pneumothorax.training.loop import Training

CARD_GB = 11
MOST_TRAFFIC_MIB, MOST_KEPT_MIB = 700, 199  # a forward pass, per image at 512 x 512
DTYPES = {
    precisions.FP32: torch.float32,
    precisions.BF16: torch.bfloat16,
    precisions.FP16: torch.float16,
}


def computes(material: Material) -> str:
    """Every CUDA device that is visible, or the device in use."""
    names = [str(material.device)]
    if material.device.type == "cuda":
        names = [f"cuda:{number}" for number in range(torch.cuda.device_count())]
    for name in names:
        devices.choose(name)
    devices.choose(str(material.device))  # what is chosen last is the current one
    return f"a convolution's forward and backward pass on {', '.join(names)}"


def computes_in_what_it_says(material: Material) -> str:
    """In every precision that the device has, and in `auto`."""
    found = []
    half = precisions.half(material.device) or precisions.FP32
    for asked in dict.fromkeys((precisions.AUTO, half, precisions.FP32)):
        training = material.training(precision=asked)
        seen = dtypes_of_convolutions(training)
        precision = training.optimization.precision
        found.append(f"{asked} is {precision}")
        require(seen == {DTYPES[precision]}, f"{found[-1]}, but convolutions gave {seen}")
        scales = training.optimization.scaler.is_enabled()
        require(scales == (precision == precisions.FP16), f"{found[-1]}: loss scaling is {scales}")
    return ", ".join(found)


def dtypes_of_convolutions(training: Training) -> set[torch.dtype]:
    """The types of all convolutions' outputs in a training step."""
    seen: set[torch.dtype] = set()
    for module in training.network.modules():
        if isinstance(module, nn.Conv2d):
            module.register_forward_hook(lambda _, __, output: seen.add(output.dtype))
    take_step(training)
    return seen


def fp32_is_ieee(material: Material) -> str:
    """1 + 2^-12 times 1: TF32 has 10 bits after the point and would give 1."""
    if material.device.type == "cpu":
        raise NotHere("a CPU has no TF32")
    x = torch.full((1, 64, 32, 32), 1 + 2**-12, device=material.device)
    identity = torch.eye(64, device=material.device)
    products = {
        "convolution": nn.functional.conv2d(x, identity[:, :, None, None]),
        "matrix product": x[0].flatten(1).T @ identity,
    }
    errors = {name: (y - x.flatten()[0]).abs().max().item() for name, y in products.items()}
    found = ", ".join(f"{name} off by {error:.1e}" for name, error in errors.items())
    return require(max(errors.values()) < 2**-14, found)


def stays_in_16_bits(material: Material) -> str:
    """Bytes that a forward pass moves and keeps per image, at 512 x 512 on any device.

    Counted on tensors without values, under CUDA's rules of autocast.
    """
    try:
        from tests.helpers import fake_cuda
    except ModuleNotFoundError as error:
        raise NotHere(f"{error.name} is missing: install requirements-dev.txt") from error
    found = []
    for dtype in (torch.float16, torch.bfloat16):
        few, many = (
            fake_cuda.forward(
                _Loss(),
                *torch.empty(2, n_images, 1, 512, 512, device="meta").unbind(),
                dtype=dtype,
            )
            for n_images in (2, 8)
        )
        traffic, kept = many.traffic / 8 / 2**20, (many.kept - few.kept) / 6 / 2**20
        found.append(
            f"{str(dtype).removeprefix('torch.')} moves {traffic:.0f} and keeps {kept:.0f} MiB"
        )
        wide = {
            kernel.name
            for kernel in many.kernels
            if "upsample" in kernel.name and kernel.outputs[0].dtype != dtype
        }
        require(not wide, f"{dtype}: {wide} in fp32")
        require(traffic <= MOST_TRAFFIC_MIB and kept <= MOST_KEPT_MIB, found[-1])
    return ", ".join(found)


class _Loss(nn.Module):
    """Images, masks -> the training loss of configs/ica_resunet.yaml."""

    def __init__(self) -> None:
        super().__init__()
        with torch.device("meta"):
            self.network = models.build("ica_resunet", encoder_weights="none")

    def forward(self, images: torch.Tensor, masks: torch.Tensor) -> torch.Tensor:
        return self.network.training_loss(images, masks, losses.CRITERIA["bce_dice"])["loss"]


def fits(material: Material, *, times: int, precision: str, parts: int | str = 1) -> str:
    """Two steps with `times` the batch that has to fit, in a card of CARD_GB at most."""
    batch = times * material.sizes.fitting
    with card_of(CARD_GB * 10**9, material.device):
        training = material.training(batch=batch, precision=precision, accumulation_steps=parts)
        for _ in range(2):
            take_step(training)
        peak = runtime.peak_memory_mib(material.device)
    found = f"batch {batch} in {training.parts} parts, {training.optimization.precision}"
    if material.device.type != "cuda":
        raise NotHere(f"{found}: only the memory of a CUDA device can be limited")
    return f"{found}: {peak / 1024:.1f} GiB at most"


def out_of_memory_is_recognised(material: Material) -> str:
    """Twice the card's memory; elsewhere an exbibyte, which no system promises."""
    device, size = material.device, 2**60
    if device.type == "cuda":
        size = 2 * torch.cuda.get_device_properties(device).total_memory
    try:
        torch.empty(size, dtype=torch.uint8, device=device)
    except (RuntimeError, MemoryError) as error:
        return require(runtime.is_out_of_memory(error), one_line(error))
    return require(False, f"{size} bytes were allocated")


def waits_once(material: Material) -> str:
    """The host's waits for the device in one step, its loading of images included."""
    if material.device.type != "cuda":
        raise NotHere("only CUDA counts them")
    training = material.training()
    training.optimization.start_epoch(0)
    first, second, *_ = training.loaders().epoch(0, done=0)
    training.optimization.step(first.parts, first.n_parts, first.n_images)
    torch.cuda.set_sync_debug_mode("warn")
    try:
        with warnings.catch_warnings(record=True) as noted:
            warnings.simplefilter("always")
            training.optimization.step(second.parts, second.n_parts, second.n_images)
    finally:
        torch.cuda.set_sync_debug_mode("default")
    waits = [one for one in noted if "called a synchronizing" in str(one.message)]
    places = ", ".join(f"{Path(one.filename).name}, line {one.lineno}" for one in waits)
    return require(len(waits) <= 1, f"{len(waits)} in a step: {places}")


def resumes(material: Material) -> str:
    """Stopped after a step, resumed for another, and finished in another precision and parts."""
    same = {"run": "resumed", "image_size": material.sizes.resumed_image}
    first = material.training(**same, stop=_StopAfter(1))
    run_until_stopped(first)
    second = material.training(**same, stop=_StopAfter(1))
    second.resume()
    require(all_equal(state(first), state(second)), "the state differs from what was saved")
    run_until_stopped(second)
    precision = second.optimization.precision
    half = precisions.half(material.device) or precisions.FP32
    other = precisions.FP32 if precision != precisions.FP32 else half
    third = material.training(**same, precision=other, accumulation_steps=2)
    third.resume()
    require(third.state.progress.step == 2, f"{third.state.progress.step} steps instead of 2")
    third.run()
    progress = third.state.progress
    wanted = third.config.epochs
    require(progress.epoch == wanted, f"ended after {progress.epoch} of {wanted} epochs")
    finite = all(math.isfinite(row["train_loss"]) for row in progress.history)
    return require(finite, f"the same state in {precision}; finished in {other} and two parts")


def trains_a_fold_on_each(material: Material) -> str:
    """`02_train.py --device cuda:0,cuda:1`, for an epoch at a small size."""
    n_cards = torch.cuda.device_count() if material.device.type == "cuda" else 0
    if n_cards < 2:
        raise NotHere(f"{n_cards} CUDA devices are visible")
    changes = [f"image_size={material.sizes.resumed_image}", "epochs=1"]
    changes += ["model_settings.encoder_weights=none"]
    command = [sys.executable, "02_train.py", "--config", str(material.sizes.config)]
    command += ["--run", "each", "--device", "cuda:0,cuda:1", "--output", str(material.output)]
    command += ["--max-time", "2", *(word for change in changes for word in ("--set", change))]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    last = (done.stdout + done.stderr).strip().splitlines()[-1:]
    records = [material.output / artifacts.Run("each").fold(fold).trained.path for fold in (0, 1)]
    finished = sum(path.is_file() for path in records)
    return require(finished == 2, f"{finished} of 2 folds, exit code {done.returncode}: {last}")


@contextmanager
def card_of(size_bytes: int, device: torch.device) -> Iterator[None]:
    """Limits a CUDA device to this much memory. Elsewhere nothing is limited."""
    if device.type != "cuda":
        yield
        return

    total = torch.cuda.get_device_properties(device).total_memory
    limit = min(size_bytes, total)

    def mem_get_info(device: torch.device) -> tuple[int, int]:
        """Free and total memory, as `accumulation_steps: auto` asks for them."""
        return limit - torch.cuda.memory_reserved(device), limit

    gc.collect()  # the networks of earlier checks
    torch.cuda.empty_cache()
    torch.cuda.reset_peak_memory_stats(device)
    torch.cuda.set_per_process_memory_fraction(limit / total, device)
    try:
        with patch.object(torch.cuda, "mem_get_info", mem_get_info):
            yield
    finally:
        torch.cuda.set_per_process_memory_fraction(1.0, device)


def take_step(training: Training) -> None:
    training.optimization.start_epoch(0)
    training.optimization.step(*first_batch(training))


def run_until_stopped(training: Training) -> None:
    with suppress(Stopped):
        training.run()


def state(training: Training) -> list[Any]:
    """Everything that a resumed training continues from, but random generators."""
    progress = training.state.progress
    whole = [training.network.state_dict(), training.optimization.state(), vars(progress)]
    return tree_leaves(whole)


def all_equal(ones: list[Any], others: list[Any]) -> bool:
    """Whether two states are the same, tensors bit for bit."""
    return len(ones) == len(others) and all(
        torch.equal(one.cpu(), other.cpu()) if isinstance(one, torch.Tensor) else one == other
        for one, other in zip(ones, others, strict=True)
    )


class _StopAfter(StopRequest):
    """Due after this many steps."""

    def __init__(self, steps: int) -> None:
        super().__init__()
        self.steps = steps

    def is_due(self) -> bool:
        self.steps -= 1
        return self.steps <= 0
