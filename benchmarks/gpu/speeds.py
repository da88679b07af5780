"""Images per second of training, validation and prediction, with each measure and without it."""

import gc
import statistics
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass
from typing import Any
from unittest.mock import patch

import torch

from benchmarks.gpu.findings import Speed
from benchmarks.gpu.material import RUN, Material, first_batch, synchronise
from pneumothorax.compute import beside, devices, precisions
from pneumothorax.pipeline import artifacts
from pneumothorax.prediction import splits
from pneumothorax.training.fold_state import Progress
from pneumothorax.training.loop import Stopwatch
from pneumothorax.training.validation import validate

EMA_DECAY = 0.999  # so that the moving average is part of a step
OTHER_PARTS = 2

Work = Callable[[], int]  # does something and returns the number of its images


@dataclass(frozen=True)
class Way:
    """How something is computed: as stages 02 and 03 do it, but for what is changed."""

    precision: str = precisions.AUTO
    memory_format: torch.memory_format | None = None  # None: the device's
    cudnn_benchmark: bool | None = None  # None: as the stage sets it
    inside: Callable[[], AbstractContextManager[Any]] = nullcontext
    accumulation_steps: int = 1
    workers: int | None = None  # None: as many as the material has


USUAL = Way()
Measures = dict[str, tuple[Way, Way]]  # by name: the way with it and the way without it


@dataclass(frozen=True)
class Comparison:
    """A measure: work as it is done with it, and as it would be done without it."""

    work: str
    measure: str
    make: Callable[[Material, Way], Work]
    with_it: Way
    without_it: Way


def comparisons(material: Material) -> list[Comparison]:
    """Every measure that this device knows, for every work that it is meant for."""
    of_device = measures_of(material.device)
    cudnn = {"cudnn.benchmark": (Way(cudnn_benchmark=True), Way(cudnn_benchmark=False))}
    if material.device.type != "cuda":
        cudnn = {}
    unused = {f"{name}, not in use there": pair for name, pair in cudnn.items()}
    threads = {"threads beside the device": (USUAL, Way(inside=one_thread))}
    steps = {
        "foreach copies": (USUAL, Way(inside=one_by_one)),
        f"one part, not {OTHER_PARTS}": (USUAL, Way(accumulation_steps=OTHER_PARTS)),
    }
    loading = {f"{material.workers} loader workers": (USUAL, Way(workers=0))}
    of_work: list[tuple[str, Callable[[Material, Way], Work], Measures]] = [
        ("training step", training_step, {**of_device, **cudnn, **steps}),
        ("training epoch", training_epoch, loading if material.workers else {}),
        ("validation", validation, {**of_device, **cudnn, **threads}),
        ("prediction, mirrored", prediction, {**of_device, **unused, **threads}),
    ]
    return [
        Comparison(work, measure, make, *pair)
        for work, make, chosen in of_work
        for measure, pair in chosen.items()
    ]


def measures_of(device: torch.device) -> Measures:
    """16 bits and the memory format, where the device has more than one of them."""
    half, found = precisions.half(device), Measures()
    if half is not None:
        is_usual = precisions.resolve(precisions.AUTO, device) == half
        name = half if is_usual else f"{half}, not the default here"
        found[name] = (Way(half), Way(precisions.FP32))
    if devices.memory_format(device) == torch.channels_last:
        found["channels_last"] = (USUAL, Way(memory_format=torch.contiguous_format))
    return found


def measure(material: Material, comparison: Comparison, *, seconds: float) -> Speed:
    """The medians of rounds in which both ways take turns, for about this long, after a warm-up."""
    gc.collect()  # networks and loaders of the comparison before: their memory is needed
    works = [comparison.make(material, way) for way in (comparison.with_it, comparison.without_it)]
    rates: list[list[float]] = [[], []]
    end = None
    while end is None or time.monotonic() < end or not rates[0]:
        for work, own in zip(works, rates, strict=True):
            started = time.perf_counter()
            n_images = work()
            synchronise(material.device)
            if end is not None:
                own.append(n_images / (time.perf_counter() - started))
        end = time.monotonic() + seconds if end is None else end
    return Speed(comparison.work, comparison.measure, *map(statistics.median, rates))


def training_step(material: Material, way: Way) -> Work:
    """Optimization.step on a batch that is on the device."""
    training = trained(material, way, workers=0)
    batch = first_batch(training)
    return lambda: step(training, batch, way)


def step(training: Any, batch: tuple[Any, int, int], way: Way) -> int:
    with as_in(way):
        training.optimization.step(*batch)
    return batch[2]


def training_epoch(material: Material, way: Way) -> Work:
    """EpochSteps.run: an epoch with its loading, augmentation and copies."""
    workers = material.workers if way.workers is None else way.workers
    training = trained(material, way, workers=workers)
    loaders = training.loaders()

    def run() -> int:
        training.state.progress = Progress()
        with as_in(way):
            training.steps.run(loaders, Stopwatch())
        return training.state.progress.images

    return run


def validation(material: Material, way: Way) -> Work:
    """validate on the held-out fold."""
    workers = material.workers if way.workers is None else way.workers
    training = trained(material, way, workers=workers)
    loaders = training.loaders()

    def run() -> int:
        with as_in(way):
            validate(
                training.network,
                loaders.validation,
                training.data.validation,
                training.data.labels,
                autocast=training.optimization.autocast,
                device=material.device,
                stop=training.stop,
            )
        return len(training.data.validation)

    return run


def prediction(material: Material, way: Way) -> Work:
    """splits.predict: probability maps of a fold, written."""
    precision = precisions.resolve(way.precision, material.device)
    predictor = material.predictor()
    arrange(predictor.network, way)
    rows, task = material.prediction(precision)

    def run() -> int:
        splits.forget(material.output, RUN)
        with as_in(way, cudnn_benchmark=False):
            splits.predict({0: predictor}, {artifacts.OOF: rows}, task=task, weights={0: "random"})
        return len(rows)

    return run


def trained(material: Material, way: Way, *, workers: int) -> Any:
    """A training with the way's precision and memory format, before its first step."""
    training = material.training(
        precision=way.precision,
        accumulation_steps=way.accumulation_steps,
        ema_decay=EMA_DECAY,
        workers=workers,
    )
    arrange(training.network, way)
    arrange(training.optimization.result, way)  # the moving average
    training.optimization.start_epoch(0)
    return training


def arrange(network: torch.nn.Module, way: Way) -> None:
    if way.memory_format is not None:
        network.to(memory_format=way.memory_format)  # type: ignore[call-overload]


@contextmanager
def as_in(way: Way, *, cudnn_benchmark: bool = True) -> Iterator[None]:
    """The patches of a way, and cuDNN's setting: the way's, or that of the stage."""
    own = way.cudnn_benchmark
    torch.backends.cudnn.benchmark = cudnn_benchmark if own is None else own
    with way.inside():
        yield


def one_thread() -> AbstractContextManager[Any]:
    """Profiles, masks and PNGs on the main thread."""
    return patch.object(beside, "in_order", map)


@contextmanager
def one_by_one() -> Iterator[None]:
    """A kernel for each tensor instead of one for many."""

    def copy(targets: Sequence[torch.Tensor], sources: Sequence[torch.Tensor]) -> None:
        for target, source in zip(targets, sources, strict=True):
            target.copy_(source)

    def move(
        targets: Sequence[torch.Tensor], sources: Sequence[torch.Tensor], share: float
    ) -> None:
        for target, source in zip(targets, sources, strict=True):
            target.lerp_(source, share)

    with patch.object(torch, "_foreach_copy_", copy), patch.object(torch, "_foreach_lerp_", move):
        yield
