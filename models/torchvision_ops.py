"""torchvision's operators for a PyTorch build without compiled ones."""

import importlib
from functools import cache, partial
from types import ModuleType

import numpy as np
import torch

# torchvision registers Python descriptions of nms and qnms at import, and fails if its compiled
# library has not declared them. Its detection networks call nms and roi_align; qnms gets no
# implementation.
NMS_SCHEMA = "(Tensor dets, Tensor scores, float iou_threshold) -> Tensor"
SCHEMAS = {
    "nms": NMS_SCHEMA,
    "qnms": NMS_SCHEMA,
    "roi_align": "(Tensor input, Tensor rois, float spatial_scale, int pooled_height, "
    "int pooled_width, int sampling_ratio, bool aligned) -> Tensor",
}
ROWS_AT_ONCE = 256  # of the overlap table in `nms`, to bound its memory


def load() -> ModuleType:
    """The torchvision module, even if PyTorch is a CPU build and torchvision was built for CUDA.

    In that case `import torchvision` raises "operator torchvision::nms does not exist". Once the
    operators are declared it imports, and its detection networks use `nms` and `roi_align` below.
    If compiled operators exist, nothing is changed.
    """
    try:
        import torchvision
    except RuntimeError as error:
        if "operator torchvision::nms does not exist" not in str(error):
            raise
        _declare()
        import torchvision

        # torchvision checks this before it calls an operator. For operators other than ours the
        # answer is wrong, and the call fails with the operator's name.
        for name in ("torchvision.extension", "torchvision.ops.roi_align"):
            vars(importlib.import_module(name))["_has_ops"] = lambda: True
    return torchvision


@cache  # the registrations live as long as the Library object
def _declare() -> torch.library.Library:
    library = torch.library.Library("torchvision", "FRAGMENT")
    for name, schema in SCHEMAS.items():
        library.define(name + schema)
    library.impl("nms", nms, "CompositeExplicitAutograd")
    # Implicit: autograd derives the gradient.
    library.impl("roi_align", roi_align, "CompositeImplicitAutograd")
    return library


def nms(boxes: torch.Tensor, scores: torch.Tensor, iou_threshold: float) -> torch.Tensor:
    """boxes (N, 4) as x1, y1, x2, y2, scores (N,) -> indices of the boxes kept, best first.

    Each kept box drops every worse one that overlaps it by more than the threshold. Of two equal
    scores the first is the better one.
    """
    order = scores.sort(descending=True, stable=True).indices
    wide = torch.promote_types(boxes.dtype, torch.float32)
    best_first = boxes.detach()[order].to("cpu", wide).numpy()
    x1, y1, x2, y2 = best_first.T
    areas = (x2 - x1) * (y2 - y1)
    kept = np.ones(len(best_first), dtype=bool)
    for start in range(0, len(best_first), ROWS_AT_ONCE):
        rows = start + np.flatnonzero(kept[start : start + ROWS_AT_ONCE])
        widths = np.minimum(x2[rows, None], x2[start:]) - np.maximum(x1[rows, None], x1[start:])
        heights = np.minimum(y2[rows, None], y2[start:]) - np.maximum(y1[rows, None], y1[start:])
        shared = widths.clip(min=0) * heights.clip(min=0)
        with np.errstate(invalid="ignore"):  # for two boxes without area, 0 / 0 drops neither
            drops = shared / (areas[rows, None] + areas[start:] - shared) > iou_threshold
        for row, dropped in zip(rows, drops, strict=True):
            if kept[row]:
                kept[row + 1 :] &= ~dropped[row + 1 - start :]
    return order[torch.from_numpy(np.flatnonzero(kept)).to(order.device)]


def roi_align(  # noqa: PLR0917 - the operator's arguments
    images: torch.Tensor,
    rois: torch.Tensor,
    spatial_scale: float,
    pooled_height: int,
    pooled_width: int,
    sampling_ratio: int,
    aligned: bool,
) -> torch.Tensor:
    """images (N, C, H, W), rois (K, 5) as image, x1, y1, x2, y2 -> (K, C, pooled H, pooled W).

    Each output cell is the mean of bilinear samples on a grid within its part of the box
    (He et al.: Mask R-CNN, section 3). This mean is separable: rows @ image @ columns with two
    small matrices per box, which BLAS computes fast and autograd can differentiate. Like the
    compiled operator it has no gradient for the boxes and computes half precision in float32.
    """
    height, width = images.shape[2:]
    wide = torch.promote_types(images.dtype, torch.float32)
    pooled = images.new_zeros(len(rois), images.shape[1], pooled_height, pooled_width, dtype=wide)
    owners = rois[:, 0].long()
    boxes = rois[:, 1:].detach().to(wide) * spatial_scale - (0.5 if aligned else 0.0)
    weights = partial(
        _sampling_weights, sampling_ratio=sampling_ratio, at_least=-torch.inf if aligned else 1.0
    )
    with torch.autocast(images.device.type, enabled=False):
        for image in owners.unique().tolist():
            chosen = torch.where(owners == image)[0]
            x1, y1, x2, y2 = boxes[chosen].unbind(1)
            rows = weights(y1, y2, pooled_height, height)  # (k, pooled_height, H)
            cols = weights(x1, x2, pooled_width, width)  # (k, pooled_width, W)
            pixels = images[image].to(wide).permute(1, 2, 0)  # (H, W, C)
            by_row = (rows.flatten(0, 1) @ pixels.flatten(1)).unflatten(1, (width, -1))
            by_row = by_row.unflatten(0, (-1, pooled_height))  # (k, pooled_height, W, C)
            pooled[chosen] = (cols.unsqueeze(1) @ by_row).permute(0, 3, 1, 2)
    return pooled.to(images.dtype)


def _sampling_weights(
    start: torch.Tensor,
    end: torch.Tensor,
    cells: int,
    length: int,
    *,
    sampling_ratio: int,
    at_least: float,
) -> torch.Tensor:
    """Box edges (k,) along `length` pixels -> the weight of each pixel (k, cells, length)."""
    cell = (end - start).clamp(min=at_least) / cells  # (k,)
    samples = (
        torch.full_like(cell, sampling_ratio) if sampling_ratio > 0 else cell.ceil().clamp(min=1)
    )
    n_samples = int(samples.max())
    sample = torch.arange(n_samples, device=cell.device, dtype=cell.dtype)
    within = (sample + 0.5) / samples[:, None]  # (k, samples), above 1 if a box needs fewer
    number = torch.arange(cells, device=cell.device, dtype=cell.dtype)
    place = start[:, None, None] + cell[:, None, None] * (
        number[:, None] + within[:, None]
    )  # (k, cells, samples)
    counts = (within[:, None] < 1) & (place >= -1) & (place <= length)
    pixel = torch.arange(length, device=cell.device, dtype=cell.dtype)
    tent = 1 - (place.clamp(0, length - 1)[..., None] - pixel).abs()  # (k, cells, samples, length)
    return (tent.clamp(min=0) * counts[..., None]).sum(2) / samples[:, None, None]
