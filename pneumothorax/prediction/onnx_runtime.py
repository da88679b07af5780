"""Prediction with onnxruntime on the CPU, from the file that onnx_export wrote."""

from collections.abc import Sequence
from pathlib import Path

import torch

from pneumothorax.prediction import exported
from pneumothorax.prediction.exported import CLASSIFICATION_LOGITS, LOGITS, PIXELS, of_fold
from pneumothorax.prediction.probability_maps import Predictor


class OnnxNetwork:
    """A network as probability_maps.probabilities needs it, computed by onnxruntime."""

    def __init__(self, graph: bytes) -> None:
        """graph: an ONNX model from `pixels` (N, 1, S, S) float32 in [0, 1] to logits.

        The first output has the shape of `pixels`; a second one (N,) holds the logits of
        the classification head, if there is one.
        """
        self.session = exported.session(graph, threads=torch.get_num_threads())

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
        names = [of_fold(name, fold) for name in (LOGITS, CLASSIFICATION_LOGITS)]
        ends = [name for name in names if name in whole.value_infos]
        part = whole.extract_model([PIXELS], ends)
        networks[fold] = Predictor(OnnxNetwork(part.SerializeToString()), image_size)
    return networks
