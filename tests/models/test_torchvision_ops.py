"""Our nms and roi_align: by hand, against plain loops, and behind torchvision's functions."""

import importlib
import itertools
import math
import sys

import numpy as np
import pytest
import torch

from models import torchvision_ops
from models.torchvision_ops import nms, roi_align

MODES = list(itertools.product([2, -1], [False, True]))  # (sampling_ratio, aligned)


@pytest.fixture(scope="module")
def torchvision():
    return torchvision_ops.load()


def random_boxes(n, *, seed=0, side=20.0):
    """(n, 4) float32 within a square of `side` pixels."""
    random = np.random.default_rng(seed)
    corners = random.uniform(0, side, size=(n, 2, 2))
    boxes = np.concatenate([corners.min(axis=1), corners.max(axis=1)], axis=1)
    return torch.from_numpy(boxes.astype(np.float32))


def intersection_over_union(one, other):
    width = max(0.0, min(one[2], other[2]) - max(one[0], other[0]))
    height = max(0.0, min(one[3], other[3]) - max(one[1], other[1]))
    areas = [(box[2] - box[0]) * (box[3] - box[1]) for box in (one, other)]
    return width * height / (sum(areas) - width * height)


def kept_by_loop(boxes, scores, threshold):
    """Greedy suppression by its definition, box by box."""
    kept = []
    for index in sorted(range(len(boxes)), key=lambda index: -scores[index]):  # stable
        if all(
            intersection_over_union(boxes[index], boxes[better]) <= threshold for better in kept
        ):
            kept.append(index)
    return kept


@pytest.mark.parametrize("threshold", [0.0, 0.3, 0.7])
@pytest.mark.parametrize("rows_at_once", [7, 256])
def test_nms_keeps_what_a_loop_keeps(monkeypatch, threshold, rows_at_once):
    monkeypatch.setattr(torchvision_ops, "ROWS_AT_ONCE", rows_at_once)
    boxes = random_boxes(60).double()
    scores = torch.from_numpy(np.random.default_rng(1).integers(0, 20, size=60) / 20)  # with ties
    expected = kept_by_loop(boxes.tolist(), scores.tolist(), threshold)
    assert nms(boxes, scores, threshold).tolist() == expected
    assert 1 < len(expected) < 60


def test_nms_by_hand():
    # Boxes 0 and 1 share 2 of 4 square pixels: IoU 0.5, not above the threshold. Box 2 fills 0.9
    # of box 1 and 0.45 of box 0.
    boxes = torch.tensor([[0, 0, 2, 2], [0, 0, 1, 2], [0, 0, 0.9, 2]])
    assert nms(boxes, torch.tensor([0.9, 0.8, 0.7]), 0.5).tolist() == [0, 1]
    assert nms(boxes, torch.tensor([0.7, 0.8, 0.9]), 0.5).tolist() == [2, 0]  # best first
    assert nms(boxes[[0, 0]], torch.tensor([0.5, 0.5]), 0.5).tolist() == [0]


def test_nms_keeps_boxes_without_area():
    assert nms(torch.ones(2, 4), torch.tensor([0.1, 0.2]), 0.5).tolist() == [1, 0]


def test_nms_of_no_boxes_is_empty():
    kept = nms(torch.zeros(0, 4), torch.zeros(0), 0.5)
    assert kept.shape == (0,)
    assert kept.dtype == torch.int64


def pooled_by_loop(image, box, *, cells, sampling_ratio, aligned):
    """RoIAlign of one (H, W) image, sample by sample, like Detectron's published kernel."""
    height, width = image.shape
    x1, y1, x2, y2 = (edge - (0.5 if aligned else 0.0) for edge in box)
    box_height, box_width = y2 - y1, x2 - x1
    if not aligned:
        box_height, box_width = max(box_height, 1.0), max(box_width, 1.0)
    cell_height, cell_width = box_height / cells, box_width / cells
    n_rows = sampling_ratio if sampling_ratio > 0 else math.ceil(cell_height)
    n_cols = sampling_ratio if sampling_ratio > 0 else math.ceil(cell_width)

    def sample(y, x):
        if y < -1 or y > height or x < -1 or x > width:
            return 0.0
        y, x = min(max(y, 0.0), height - 1.0), min(max(x, 0.0), width - 1.0)
        top, left = int(y), int(x)
        bottom, right = min(top + 1, height - 1), min(left + 1, width - 1)
        down, across = y - top, x - left
        upper = image[top, left] * (1 - across) + image[top, right] * across
        lower = image[bottom, left] * (1 - across) + image[bottom, right] * across
        return upper * (1 - down) + lower * down

    pooled = np.zeros((cells, cells))
    for row, col in np.ndindex(cells, cells):
        samples = [
            sample(
                y1 + (row + (down + 0.5) / n_rows) * cell_height,
                x1 + (col + (across + 0.5) / n_cols) * cell_width,
            )
            for down, across in itertools.product(range(n_rows), range(n_cols))
        ]
        pooled[row, col] = sum(samples) / len(samples)
    return pooled


@pytest.mark.parametrize("sampling_ratio, aligned", MODES)
def test_roi_align_pools_what_a_loop_over_samples_pools(sampling_ratio, aligned):
    images = torch.rand(
        3, 2, 10, 12, generator=torch.Generator().manual_seed(0), dtype=torch.float64
    )
    boxes = torch.tensor(
        [
            [2, 3.2, 1.1, 9.7, 8.4],  # images in any order; image 1 has no box
            [0, 0.0, 0.0, 12.0, 10.0],  # the whole image
            [2, 4.3, 4.6, 4.7, 5.1],  # less than a pixel
            [0, -3.0, -2.5, 5.0, 14.0],  # beyond three edges
            [0, 11.0, 9.0, 12.0, 10.0],  # the last pixel
        ],
        dtype=torch.float64,
    )
    pooled = roi_align(images, boxes, 1.0, 3, 3, sampling_ratio, aligned)
    for box, values in zip(boxes.tolist(), pooled, strict=True):
        for image, value in zip(images[int(box[0])].numpy(), values.numpy(), strict=True):
            expected = pooled_by_loop(
                image, box[1:], cells=3, sampling_ratio=sampling_ratio, aligned=aligned
            )
            np.testing.assert_allclose(value, expected, rtol=0, atol=1e-12)


@pytest.mark.parametrize("sampling_ratio, aligned", MODES)
def test_roi_align_pools_what_torchvisions_python_version_pools(
    torchvision, sampling_ratio, aligned
):
    reference = importlib.import_module("torchvision.ops.roi_align")._roi_align.__wrapped__
    images = torch.rand(2, 3, 8, 10, generator=torch.Generator().manual_seed(0))
    boxes = torch.cat([torch.tensor([[1.0], [0.0], [1.0]]), random_boxes(3, side=32)], dim=1)
    arguments = (images, boxes, 0.25, 4, 5, sampling_ratio, aligned)
    torch.testing.assert_close(roi_align(*arguments), reference(*arguments), rtol=0, atol=1e-5)


def test_roi_align_of_a_ramp_by_hand():
    # Pixel j holds j. From 2 to 10 in four cells: centres 3, 5, 7, 9. At half scale from 1 to 5:
    # 1.5, 2.5, 3.5, 4.5.
    ramp = torch.arange(16.0).expand(1, 1, 16, 16)
    box = torch.tensor([[0.0, 2.0, 2.0, 10.0, 10.0]])
    assert roi_align(ramp, box, 1.0, 4, 4, 2, False)[0, 0, 0].tolist() == [3, 5, 7, 9]
    assert roi_align(ramp, box, 0.5, 4, 4, 2, False)[0, 0, 0].tolist() == [1.5, 2.5, 3.5, 4.5]
    assert roi_align(ramp, box, 1.0, 4, 4, 2, True)[0, 0, 0].tolist() == [2.5, 4.5, 6.5, 8.5]


@pytest.mark.parametrize("sampling_ratio, aligned", MODES)
def test_roi_align_has_the_correct_gradient(torchvision, sampling_ratio, aligned):
    images = torch.rand(
        2,
        2,
        4,
        5,
        generator=torch.Generator().manual_seed(0),
        dtype=torch.float64,
        requires_grad=True,
    )
    boxes = torch.tensor([[1, 0.3, 0.6, 4.2, 3.1], [0, 1.0, 1.0, 2.0, 2.0]], dtype=torch.float64)
    pool = torchvision.ops.RoIAlign(2, 1.0, sampling_ratio, aligned)
    assert torch.autograd.gradcheck(lambda images: pool(images, boxes), images)


def test_roi_align_of_no_boxes_is_empty():
    pooled = roi_align(torch.rand(2, 3, 8, 8), torch.zeros(0, 5), 1.0, 7, 6, 2, False)
    assert pooled.shape == (0, 3, 7, 6)


def test_roi_align_computes_in_32_bits_in_mixed_precision():
    images, box = torch.rand(1, 1, 8, 8), torch.tensor([[0.0, 1.3, 1.7, 6.1, 5.9]])
    with torch.autocast("cpu", dtype=torch.bfloat16):
        mixed = roi_align(images, box, 1.0, 3, 3, 2, False)
    assert torch.equal(mixed, roi_align(images, box, 1.0, 3, 3, 2, False))


def test_functions_of_torchvision_use_ours(torchvision):
    boxes, scores = random_boxes(40), torch.rand(40, generator=torch.Generator().manual_seed(0))
    assert torchvision.ops.nms(boxes, scores, 0.3).tolist() == nms(boxes, scores, 0.3).tolist()
    images = torch.rand(1, 3, 20, 20)
    rois = torch.cat([torch.zeros(40, 1), boxes], dim=1)
    torch.testing.assert_close(
        torchvision.ops.roi_align(images, [boxes], (7, 7), 1.0, 2),
        roi_align(images, rois, 1.0, 7, 7, 2, False),
    )


def test_nms_by_class_spares_boxes_of_other_classes(torchvision):
    boxes, scores = torch.tensor([[0.0, 0.0, 2.0, 2.0]] * 3), torch.tensor([0.1, 0.3, 0.2])
    kept = torchvision.ops.batched_nms(boxes, scores, torch.tensor([0, 1, 0]), 0.5)
    assert kept.tolist() == [1, 2]


def test_compiled_operators_are_left_alone(tmp_path, monkeypatch):
    (tmp_path / "torchvision.py").write_text("compiled = True\n")
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.delitem(sys.modules, "torchvision", raising=False)
    monkeypatch.setattr(torchvision_ops, "_declare", lambda: pytest.fail("operators declared"))
    assert torchvision_ops.load().compiled
