"""An exported ONNX graph, run by onnxruntime on the CPU: grey images in, probability maps out.

Needs no PyTorch. onnx_graph.py writes such graphs.
"""

import os
from typing import Any

import numpy as np

from pneumothorax.errors import BadInput

# The graph's input, its outputs, and the inner values at both ends of each fold's network,
# whose names are those of `of_fold` but for PIXELS
IMAGES, PROBABILITY, CLASSIFICATION = "images", "probability", "classification"
PIXELS, LOGITS, CLASSIFICATION_LOGITS = "pixels", "logits", "classification_logits"
FLOATS = "tensor(float)"
INSTALL = "python -m pip install -r requirements-predict.txt"


def missing() -> str:
    """What to install before graphs can be run, "" where nothing is missing."""
    try:
        import onnxruntime  # noqa: F401
    except ImportError as error:
        return f"needs onnxruntime ({error}): {INSTALL}"
    return ""


def of_fold(name: str, fold: int) -> str:
    """The name of a value in the network of a fold."""
    return f"{name}_fold{fold}"


class ExportedNetworks:
    """The networks of a run, as predict_radiographs.py uses them (predicting.Networks)."""

    def __init__(self, graph: bytes) -> None:
        """graph: a serialised model of onnx_graph.export. ValueError for any other."""
        try:
            self.session = session(graph, threads=usable_cores(), keeps_memory=True)
        except Exception as error:  # onnxruntime raises many kinds
            raise ValueError(f"onnxruntime cannot run its networks: {_reason(error)}") from error
        taken, given = self.session.get_inputs(), self.session.get_outputs()
        names = [one.name for one in (*taken, *given)]
        if names not in ([IMAGES, PROBABILITY], [IMAGES, PROBABILITY, CLASSIFICATION]):
            raise ValueError(f"its networks take and give {', '.join(names)}")
        shape = taken[0].shape  # with a text in place of a size that is left open
        square = len(shape) == 4 and shape[1] == 1 and shape[2] == shape[3]
        if not square or not isinstance(shape[3], int) or taken[0].type != "tensor(uint8)":
            raise ValueError("its networks do not take square grey images of 8 bits")
        shapes = [one.shape[1:] for one in given]
        are_maps = shapes in ([shape[1:]], [shape[1:], []])
        if not are_maps or isinstance(shape[0], int) or {one.type for one in given} != {FLOATS}:
            raise ValueError("its networks do not give a map of any number of images")
        self.image_size = shape[3]

    def maps(self, images: np.ndarray) -> tuple[np.ndarray, np.ndarray | None]:
        """One image at a time, which takes less memory and no more time on a CPU.

        Raises BadInput where they cannot be computed, for example for want of memory.
        """
        try:
            found = [
                self.session.run(None, {IMAGES: image[np.newaxis, np.newaxis]}) for image in images
            ]
            maps, *classification = (np.concatenate(parts) for parts in zip(*found, strict=True))
            return maps[:, 0], classification[0] if classification else None
        except Exception as error:  # onnxruntime raises many kinds
            raise BadInput(f"onnxruntime cannot compute the networks: {_reason(error)}") from error


def _reason(error: Exception) -> str:
    """Its first line, or its kind if it says nothing."""
    return (str(error).splitlines() or [type(error).__name__])[0][:200]


def session(graph: bytes, *, threads: int, keeps_memory: bool = False) -> Any:
    """An onnxruntime session of a serialised ONNX model on the CPU.

    Args:
        keeps_memory: from one image to the next, which saves time. Not for many sessions,
            most of which are idle.
    """
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = threads
    # Threads and processes beside it read images: a waiting session leaves the cores to them.
    options.add_session_config_entry("session.intra_op.allow_spinning", "0")
    options.enable_cpu_mem_arena = keeps_memory
    options.log_severity_level = 4  # what is wrong with a graph is raised, too
    # Weights stored as int8 become fp32 once, while the session is made, not for each image.
    options.add_session_config_entry("session.disable_quant_qdq", "1")
    return onnxruntime.InferenceSession(graph, options, providers=["CPUExecutionProvider"])


def usable_cores() -> int:
    """The number of cores that this process may use."""
    if hasattr(os, "sched_getaffinity"):  # not on macOS and Windows
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1
