"""Alternating timings and their ratios: machines drift, so ways take turns."""

import argparse
import os
import platform
import statistics
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from importlib.metadata import version
from pathlib import Path

from pneumothorax.data import discovery
from pneumothorax.data.layouts import choose
from pneumothorax.phantom import writing


def bare_parser(manual: str) -> argparse.ArgumentParser:
    """A parser without flags; the benchmark's docstring is its manual."""
    return argparse.ArgumentParser(
        description=manual, formatter_class=argparse.RawDescriptionHelpFormatter
    )


def parser(manual: str) -> argparse.ArgumentParser:
    """A parser with the flags that `material` and `compare` need."""
    made = bare_parser(manual)
    made.add_argument(
        "--input",
        type=Path,
        metavar="DIR",
        help="folder of real DICOM files and labels (default: phantoms, made first)",
    )
    made.add_argument(
        "--images", type=int, default=40, help="use at most N images (default: %(default)s)"
    )
    made.add_argument("--repeats", type=int, default=5, help="timed rounds (default: %(default)s)")
    return made


@contextmanager
def material(args: argparse.Namespace) -> Iterator[tuple[list[Path], Path]]:
    """(DICOM paths, label CSV): from --input, or phantoms in a temporary folder."""
    with tempfile.TemporaryDirectory() as temporary:
        folder = args.input
        if folder is None:
            folder = Path(temporary) / "phantoms"
            writing.write_dataset(
                folder, train_images=args.images, test_images=1, unlabelled_images=0
            )
        found = discovery.search(folder)
        tables = choose.choose(found, choose.Given()).tables
        yield list(found.dicoms)[: args.images], tables["label file"]


def alternate(
    ways: dict[str, Callable[[], object]], *, repeats: int, warmup: int = 1
) -> dict[str, list[float]]:
    """Seconds of each way in `repeats` rounds, in which all ways take turns.

    The `warmup` rounds before them do not count.
    """
    seconds: dict[str, list[float]] = {name: [] for name in ways}
    for round_number in range(warmup + repeats):
        for name, way in ways.items():
            started = time.perf_counter()
            way()
            if round_number >= warmup:
                seconds[name].append(time.perf_counter() - started)
    return seconds


def compare(
    ways: dict[str, Callable[[], object]], *, repeats: int, per: int, unit: str
) -> dict[str, float]:
    """Print and return each way's median ms per unit; a call does `per` units."""
    medians = {}
    for name, seconds in alternate(ways, repeats=repeats).items():
        low, medians[name], high = (
            1000 / per * pick(seconds) for pick in (min, statistics.median, max)
        )
        print(
            f"{name:24s} {medians[name]:10.3f} ms per {unit}   ({low:.3f} to {high:.3f})",
            flush=True,
        )
    return medians


def ratio(medians: dict[str, float], upper: str, lower: str, goal: str) -> None:
    """Print how many times longer `upper` takes than `lower`."""
    print(f"{upper} / {lower} = {medians[upper] / medians[lower]:.2f}   (goal: {goal})")


def machine(*packages: str) -> None:
    """Print what the numbers are measured on."""
    print(described(*packages))


def described(*packages: str) -> str:
    """The processor, the system, and the versions of Python and some packages."""
    names = ", ".join(f"{name} {version(name)}" for name in packages)
    python = f"Python {platform.python_version()}"
    return f"{_processor()}, {os.cpu_count()} cores, {platform.system()}, {python}, {names}"


def _processor() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
        return next(
            line.split(":", 1)[1].strip() for line in lines if line.startswith("model name")
        )
    except (OSError, StopIteration):
        return platform.processor() or platform.machine()
