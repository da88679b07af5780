"""Prediction with onnxruntime on the CPU, from the file that onnx_export wrote."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch

from pneumothorax.prediction.onnx_graph import CLASSIFICATION_LOGITS, LOGITS, PIXELS
from pneumothorax.prediction.probability_maps import Predictor


class OnnxNetwork:
    """A network as probability_maps.probabilities needs it, computed by onnxruntime."""

    def __init__(self, graph: bytes) -> None:
        """graph: an ONNX model from `pixels` (N, 1, S, S) float32 in [0, 1] to logits.

        The first output has the shape of `pixels`; a second one (N,) holds the logits of
        the classification head, if there is one.
        """
        self.session = session(graph)

    def outputs(self, images: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor | None]:
        logits, *classification = (
            torch.from_numpy(found) for found in self.session.run(None, {PIXELS: images.numpy()})
        )
        return logits, classification[0] if classification else None


def load(path: Path, folds: Sequence[int]) -> dict[int, Predictor]:
    """The networks of these folds, cut out of an exported file."""
    import onnx
    from onnx.utils import Extractor

    model = onnx.load(path)
    image_size = model.graph.input[0].type.tensor_type.shape.dim[3].dim_value
    whole = Extractor(model)
    networks = {}
    for fold in folds:
        names = f"{LOGITS}{fold}", f"{CLASSIFICATION_LOGITS}{fold}"
        ends = [name for name in names if name in whole.value_infos]
        part = whole.extract_model([PIXELS], ends)
        networks[fold] = Predictor(OnnxNetwork(part.SerializeToString()), image_size)
    return networks


def session(graph: bytes) -> Any:
    """An onnxruntime session of an ONNX model, with PyTorch's number of CPU threads."""
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = torch.get_num_threads()
    # There is a session per fold, and processes that read images: a waiting session must
    # leave the cores to them, and an idle one must not keep memory.
    options.add_session_config_entry("session.intra_op.allow_spinning", "0")
    options.enable_cpu_mem_arena = False
    return onnxruntime.InferenceSession(graph, options, providers=["CPUExecutionProvider"])
