"""segmentation_models_pytorch, imported when a network is built."""

from types import ModuleType

from . import torchvision_ops


def load() -> ModuleType:
    """The segmentation_models_pytorch module."""
    torchvision_ops.load()  # first, because smp imports torchvision
    import segmentation_models_pytorch

    return segmentation_models_pytorch
