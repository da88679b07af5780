"""A bundle against PyTorch on the CPU: predict_radiographs.py, in ms per radiograph.

From reading the file to writing mask and overlay, with image and mirror image and all
folds. Goal: at least 3 times eager fp32 from PyTorch. OpenVINO is tried on the same graph
if it is installed: about as fast as onnxruntime, but 181 instead of 78 MB, too much for
requirements-predict.txt. Weights are random.

    python -m benchmarks.bundle --folds 5 --size 512 --images 4
    python -m benchmarks.bundle --model smp/FPN --set encoder=timm-tf_efficientnet_lite0 \\
        --set decoder_pyramid_channels=64 --set decoder_segmentation_channels=32
"""

import tempfile
from pathlib import Path
from typing import Any

import numpy as np
import torch
import yaml

import models
from benchmarks import timing
from pneumothorax.inference import predicting, reading
from pneumothorax.inference.pytorch_run import TorchNetworks
from pneumothorax.inference.settled import Settled, WeightedRun
from pneumothorax.masks.calibration import Calibration
from pneumothorax.masks.postprocess import Triplet
from pneumothorax.phantom import writing
from pneumothorax.prediction import exported, onnx_graph
from pneumothorax.prediction.exported import ExportedNetworks
from pneumothorax.prediction.probability_maps import Predictor

EAGER, BUNDLE = "PyTorch, eager fp32", "bundle, onnxruntime"


class OpenVinoNetworks:
    """The same graph, computed by OpenVINO."""

    def __init__(self, graph: bytes, image_size: int) -> None:
        import openvino

        model = openvino.Core().read_model(graph)
        threads = exported.usable_cores()
        hints = {"INFERENCE_PRECISION_HINT": "f32", "INFERENCE_NUM_THREADS": threads}
        self.compiled = openvino.compile_model(model, "CPU", hints)
        self.image_size = image_size

    def maps(self, images: np.ndarray) -> tuple[np.ndarray, None]:
        found = [self.compiled(image[np.newaxis, np.newaxis])[0] for image in images]
        return np.concatenate(found)[:, 0], None


def main() -> None:
    parser = timing.bare_parser(__doc__)
    parser.add_argument("--model", default="ica_resunet")
    parser.add_argument("--set", action="append", default=[], metavar="KEY=VALUE")
    parser.add_argument("--size", type=int, default=512)
    parser.add_argument("--folds", type=int, default=5)
    parser.add_argument("--images", type=int, default=4)
    parser.add_argument("--repeats", type=int, default=3)
    args = parser.parse_args()
    timing.machine("torch", "onnxruntime")
    torch.set_num_threads(exported.usable_cores())
    settings: dict[str, Any] = {"encoder_weights": "none"}
    settings |= {
        key: yaml.safe_load(value) for key, _, value in (one.partition("=") for one in args.set)
    }
    networks = {}
    for fold in range(args.folds):
        torch.manual_seed(fold)
        networks[fold] = models.build(args.model, **settings).eval()
    graph = onnx_graph.export(networks, image_size=args.size, facts={})
    print(f"{args.folds} networks in one graph: {len(graph) / 2**20:.0f} MiB")
    folds = [Predictor(network, args.size) for network in networks.values()]
    found: dict[str, predicting.Networks] = {
        EAGER: TorchNetworks(folds, torch.device("cpu"), "fp32"),
        BUNDLE: ExportedNetworks(graph),
        **of_openvino(graph, args.size),
    }
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(temporary)
        writing.write_dataset(
            folder / "in", train_images=args.images, test_images=1, unlabelled_images=0
        )
        listed = reading.search(folder / "in")
        listed.files = listed.files[: args.images]
        measure(found, listed, folder, args)


def of_openvino(graph: bytes, size: int) -> dict[str, predicting.Networks]:
    """Nothing unless OpenVINO is installed."""
    try:
        import openvino  # noqa: F401
    except ImportError:
        return {}
    return {"OpenVINO, fp32": OpenVinoNetworks(graph, size)}


def measure(
    found: dict[str, predicting.Networks], listed: reading.Listed, folder: Path, args: Any
) -> None:
    """Print the differences from eager PyTorch, the times and the ratios."""
    settled = Settled(
        "random",
        (WeightedRun("random", 1.0, tuple(range(args.folds))),),
        Triplet(top=0.5, min_area=0, bottom=0.5),
        Calibration(1.0, 0.0),
        args.size,
        version="random",
        phantoms=True,
    )
    image = np.random.default_rng(0).integers(0, 256, (1, args.size, args.size), dtype=np.uint8)
    reference, _ = found[EAGER].maps(image)

    def predict(name: str) -> None:
        with tempfile.TemporaryDirectory(dir=folder) as to:
            task = predicting.FolderTask(Path(to), settled, False, 16, name)
            predicting.predict(listed, task, lambda: [found[name]])

    for name, networks in found.items():
        difference = np.abs(networks.maps(image)[0] - reference).max()
        print(f"{name:24s} differs by at most {255 * difference:.3f} of 255")
    ways = {name: lambda name=name: predict(name) for name in found}
    medians = timing.compare(ways, repeats=args.repeats, per=len(listed.files), unit="radiograph")
    for name in list(found)[1:]:
        timing.ratio(medians, EAGER, name, "at least 3")


if __name__ == "__main__":
    main()
