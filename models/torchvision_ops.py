"""torchvision's operators on a PyTorch build for which it has no compiled ones."""

from types import ModuleType

import torch

# torchvision describes these two at import, in Python, and fails where its compiled library has not declared them.
SCHEMA = "(Tensor dets, Tensor scores, float iou_threshold) -> Tensor"
OPERATORS = ("nms", "qnms")


def load() -> ModuleType:
    """The torchvision module, also where PyTorch is a CPU build and torchvision the index's one built for CUDA.

    There `import torchvision` raises "operator torchvision::nms does not exist". Declaring the operators, without
    an implementation, lets it import; its networks without detection heads need none of them.
    """
    try:
        import torchvision
    except RuntimeError as error:
        if "operator torchvision::nms does not exist" not in str(error):
            raise
        for operator in OPERATORS:
            torch.library.define(f"torchvision::{operator}", SCHEMA)
        import torchvision
    return torchvision
