"""A model bundle: one file that predicts on machines without PyTorch.

It is a zip file, so that anybody can look inside:

    model.json       what prediction needs, the card's facts, size and hash of each other member
    MODEL_CARD.md    the model for people
    network.onnx     the networks; of a blend network-<run>.onnx for each run

Equal content gives equal bytes. A bundle holds no radiograph and no image id. Opening one
executes nothing and writes nothing, and checks every byte. That finds damage, and keeps a
forged bundle from doing more than predicting nonsense and wasting time and memory; it does
not say who made it.
"""

import hashlib
import json
import math
import re
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO, NoReturn

from pneumothorax.errors import BadInput
from pneumothorax.inference import sealed_zip
from pneumothorax.inference.predicting import Source
from pneumothorax.inference.settled import Settled, WeightedRun
from pneumothorax.masks.calibration import Calibration
from pneumothorax.masks.postprocess import Triplet
from pneumothorax.pipeline import atomic
from pneumothorax.prediction import exported, onnx_check
from pneumothorax.prediction.exported import ExportedNetworks

FORMAT = 1  # raise it when earlier versions of this project would misread a bundle
MODEL, CARD = "model.json", "MODEL_CARD.md"
MAKE = "python export_model.py --run RUN --bundle FILE"

MOST_GRAPH_BYTES = 3 * 2**28  # of the networks of a run, which are read at once
MOST_TEXT_BYTES = 2**22  # of model.json and of the card
MOST_PIXELS = 8192  # height and width of images


@dataclass(frozen=True)
class Bundle:
    """An opened bundle."""

    path: Path
    settled: Settled
    graphs: tuple[str, ...]  # the member with the networks of each run
    image_sizes: tuple[int, ...]  # of each run
    facts: dict[str, Any]  # of the card

    def networks(self) -> list[ExportedNetworks]:
        """Of each run. Raises BadInput where a graph cannot be run."""
        loaded = []
        with _refusals(self.path), open(self.path, "rb") as file:
            contents = _Contents(file)
            for name, image_size in zip(self.graphs, self.image_sizes, strict=True):
                networks = ExportedNetworks(contents.read(name))
                if networks.image_size != image_size:
                    raise ValueError(f"{name} takes images of another size")
                loaded.append(networks)
        return loaded


def write(
    path: Path,
    settled: Settled,
    graphs: Mapping[str, bytes],
    *,
    facts: Mapping[str, Any],
    card: str,
) -> None:
    """Write a bundle.

    Args:
        graphs: ONNX models of onnx_graph.export, by run.
        facts: for model.json; JSON types alone.
        card: MODEL_CARD.md.

    Raises BadInput where it would be too large.
    """
    names = {run.name: _graph_name(run.name, len(settled.runs)) for run in settled.runs}
    members = {CARD: card.encode()} | {name: graphs[run] for run, name in names.items()}
    for graph in graphs.values():
        onnx_check.check(graph)
    sizes = {run: ExportedNetworks(graph).image_size for run, graph in graphs.items()}
    runs = [{**run._asdict(), "image_size": sizes[run.name]} for run in settled.runs]
    body = {
        "format": FORMAT,
        "name": settled.name,
        "version": settled.version,
        "phantoms": settled.phantoms,
        "cache_size": settled.cache_size,
        "thresholds": vars(settled.triplet),
        "calibration": vars(settled.calibration),
        "runs": runs,
        "members": {name: _listing(data) for name, data in members.items()},
        "card": dict(facts),
    }
    text = json.dumps(body, indent=2, sort_keys=True, ensure_ascii=False, allow_nan=False)
    data = sealed_zip.pack({MODEL: text.encode(), **members})
    largest = max(map(len, graphs.values()))
    if len(data) > sealed_zip.MOST_BYTES or largest > MOST_GRAPH_BYTES:
        raise BadInput(
            f"{path} was not written: the networks take {len(data) >> 20} MiB, those of one run "
            f"{largest >> 20}, and a bundle holds at most {sealed_zip.MOST_BYTES >> 20} and "
            f"{MOST_GRAPH_BYTES >> 20}: predict with fewer folds, or blend fewer runs"
        )
    atomic.write_bytes(path, data)


def source(path: Path) -> Source:
    """The networks of a bundle, to predict with; prints what they are computed with.

    Raises BadInput for anything but a whole bundle of this version or an earlier one.
    """
    import onnxruntime

    bundle = read(path)
    print(
        f"{bundle.settled.name}, computed by onnxruntime {onnxruntime.__version__} on "
        f"{exported.usable_cores()} cores of the CPU; precision fp32",
        flush=True,
    )
    return Source(bundle.settled, "fp32 onnxruntime", bundle.networks, nullcontext())


def read(path: Path) -> Bundle:
    """Check every byte of a bundle. Raises BadInput as `source`."""
    if not path.is_file():
        raise BadInput(f"{path} does not exist, or is not a file")
    with _refusals(path), open(path, "rb") as file:
        sealed_zip.check_seal(file)
        contents = _Contents(file)
        bundle = _bundle(path, contents.body)
        listed = {CARD, *bundle.graphs}
        if set(contents.listed) != listed or set(contents.members) != {MODEL, *listed}:
            raise ValueError(f"it does not hold exactly the members that {MODEL} lists")
        contents.read(CARD)
        for name in bundle.graphs:
            onnx_check.check(contents.read(name))
    return bundle


def _graph_name(run: str, n_runs: int) -> str:
    return "network.onnx" if n_runs == 1 else f"network-{run}.onnx"


@contextmanager
def _refusals(path: Path) -> Iterator[None]:
    """Turn whatever the content of a file leads to into a BadInput."""
    try:
        yield
    except BadInput:
        raise
    except (
        ValueError,
        LookupError,
        TypeError,
        AttributeError,
        ArithmeticError,
        RecursionError,
    ) as error:
        reason = str(error) if isinstance(error, ValueError) else f"{MODEL} is damaged ({error})"
        raise BadInput(
            f"{path} cannot be used as a model bundle: {reason:.200}. Get it again, or write it "
            f"with {MAKE}"
        ) from error


class _Contents:
    """What is in a file, by its directory and by its model.json."""

    def __init__(self, file: BinaryIO) -> None:
        self.file = file
        self.members = sealed_zip.members(file)
        text = sealed_zip.content(file, self.members[MODEL], most_bytes=MOST_TEXT_BYTES)
        self.body: dict[str, Any] = json.loads(text, parse_constant=_no_number, parse_float=_finite)
        found = self.body["format"]
        if isinstance(found, int) and found > FORMAT:
            raise BadInput(
                f"{file.name} has format {found!r:.20}, and this version of the project reads "
                f"formats up to {FORMAT}: install a newer version"
            )
        if found != FORMAT or type(found) is not int:
            raise ValueError(f"{MODEL} has the unknown format {found!r:.20}")
        self.listed: dict[str, Any] = self.body["members"]

    def read(self, name: str) -> bytes:
        """A member's content. ValueError unless it is what model.json lists."""
        most = MOST_TEXT_BYTES if name == CARD else MOST_GRAPH_BYTES
        data = sealed_zip.content(self.file, self.members[name], most_bytes=most)
        if self.listed[name] != _listing(data):
            raise ValueError(f"{name} is not the member that {MODEL} lists")
        return data


def _listing(data: bytes) -> dict[str, Any]:
    """What model.json says of a member."""
    return {"bytes": len(data), "sha256": hashlib.sha256(data).hexdigest()}


def _bundle(path: Path, body: dict[str, Any]) -> Bundle:
    """What model.json says. ValueError, KeyError or TypeError where that makes no sense."""
    runs = body["runs"]
    weighted = tuple(
        WeightedRun(_name(run["name"]), _number(run["weight"]), tuple(map(_whole, run["folds"])))
        for run in runs
    )
    weights = [run.weight for run in weighted]
    if not weights or min(weights) <= 0 or not math.isclose(sum(weights), 1, abs_tol=1e-6):
        raise ValueError("the weights of its runs are not above 0 with a sum of 1")
    if not all(run.folds for run in weighted):
        raise ValueError("a run in it has no folds")
    sizes = [_whole(body["cache_size"]), *(_whole(run["image_size"]) for run in runs)]
    if not all(1 <= size <= MOST_PIXELS for size in sizes):
        raise ValueError(f"{MODEL} asks for images of {sizes} pixels")
    if not isinstance(body["phantoms"], bool):
        raise ValueError(f"{MODEL} does not say whether it was trained on phantoms")
    if not isinstance(body["card"], dict):
        raise ValueError(f"{MODEL} has no facts of the card")
    curve = {name: _number(value) for name, value in body["calibration"].items()}
    settled = Settled(
        _name(body["name"]),
        weighted,
        _triplet(**body["thresholds"]),
        Calibration(**curve),
        sizes[0],
        version=_name(body["version"]),
        phantoms=body["phantoms"],
    )
    graphs = tuple(_graph_name(run.name, len(runs)) for run in weighted)
    return Bundle(path, settled, graphs, tuple(sizes[1:]), body["card"])


def _triplet(*, fill_holes: Any, **numbers: Any) -> Triplet:
    if not isinstance(fill_holes, bool):
        raise ValueError(f"{MODEL} does not say whether holes are filled")
    checked = {name: _number(value) for name, value in numbers.items()}
    return Triplet(**checked, fill_holes=fill_holes)


def _number(value: Any) -> float:
    """Of JSON: no text and no truth value, which Python would take for numbers."""
    if isinstance(value, bool) or not isinstance(value, int | float):
        raise ValueError(f"{value!r:.20} in {MODEL} is not a number")
    return float(value)


def _whole(value: Any) -> int:
    if isinstance(value, bool) or not isinstance(value, int) or value < 0:
        raise ValueError(f"{value!r:.20} in {MODEL} is not a whole number")
    return value


def _name(value: Any) -> str:
    """Of a run or version, which go into DICOM files."""
    if not isinstance(value, str) or not re.fullmatch(r"[A-Za-z0-9][A-Za-z0-9._-]{0,63}", value):
        raise ValueError("a name in it is not one of this project")
    return value


def _no_number(text: str) -> NoReturn:
    raise ValueError(f"{text} in {MODEL}")


def _finite(text: str) -> float:
    """1e999 is a number of JSON, and infinite in Python."""
    if not math.isfinite(number := float(text)):
        _no_number(text)
    return number
