"""Interpolation in the 16 bits of autocast, as convolutions are computed.

CUDA's autocast computes every interpolation in fp32, and `cat` and `+` then widen all that
follows to fp32: a U-Net's decoder would move twice the bytes.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from typing import Any

import torch
from torch.nn import functional
from torch.overrides import TorchFunctionMode


def in_16_bits(device: torch.device) -> AbstractContextManager[Any]:
    """A context in which interpolations take and return autocast's 16-bit type.

    It also reaches code of libraries, such as segmentation_models_pytorch's decoders.
    Outside of autocast nothing changes.
    """
    return _In16Bits() if torch.is_autocast_enabled(device.type) else nullcontext()


class _In16Bits(TorchFunctionMode):
    """Interpolations with `antialias` stay as they are.

    Vision transformers fit their position weights to the image in this way, and CPUs cannot
    do it in 16 bits.
    """

    def __torch_function__(
        self,
        function: Callable[..., Any],
        types: Sequence[type],
        args: Sequence[Any] = (),
        kwargs: Mapping[str, Any] | None = None,
    ) -> Any:
        settings = kwargs or {}
        if function is not functional.interpolate or settings.get("antialias"):
            return function(*args, **settings)
        x, *others = args
        kind = x.device.type
        with torch.autocast(kind, enabled=False):
            return function(x.to(torch.get_autocast_dtype(kind)), *others, **settings)
