"""Prediction with onnxruntime on the CPU: single networks, cut out of the file that onnx_export.py wrote."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch

from pneumothorax.prediction.probability_maps import Predictor

# Of the exported graph: its input, its outputs, and the inner values between which the network of a fold lies.
IMAGES, PROBABILITY, CLASSIFICATION = "images", "probability", "classification"
PIXELS, LOGITS, CLASSIFICATION_LOGITS = "pixels", "logits_fold", "classification_logits_fold"


class OnnxNetwork:
    """What prediction.probabilities asks of a network, computed by onnxruntime."""

    def __init__(self, graph: bytes) -> None:
        """graph: an ONNX model, images (N, 1, S, S) float32 in [0, 1] -> logits (N, 1, S, S), and (N,) of classification."""
        self.session = session(graph)

    def outputs(self, images: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor | None]:
        logits, *classification = (
            torch.from_numpy(found) for found in self.session.run(None, {PIXELS: images.numpy()})
        )
        return logits, classification[0] if classification else None


def load(path: Path, folds: Sequence[int]) -> list[Predictor]:
    """The networks of these folds out of an exported file."""
    import onnx
    from onnx.utils import Extractor

    model = onnx.load(path)
    image_size = model.graph.input[0].type.tensor_type.shape.dim[3].dim_value
    whole = Extractor(model)
    found = []
    for fold in folds:
        ends = [
            name
            for name in (f"{LOGITS}{fold}", f"{CLASSIFICATION_LOGITS}{fold}")
            if name in whole.value_infos
        ]
        part = whole.extract_model([PIXELS], ends)
        found.append(Predictor(OnnxNetwork(part.SerializeToString()), image_size))
    return found


def session(graph: bytes) -> Any:
    """An onnxruntime session of an ONNX model, on as many CPU threads as PyTorch would take."""
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = torch.get_num_threads()
    # One session per fold, and processes that read images: threads that wait leave the cores to others, and a session
    # that has computed keeps no memory.
    options.add_session_config_entry("session.intra_op.allow_spinning", "0")
    options.enable_cpu_mem_arena = False
    return onnxruntime.InferenceSession(graph, options, providers=["CPUExecutionProvider"])
