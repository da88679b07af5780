"""CheXLocNet: a Mask R-CNN that detects each pneumothorax and outlines it within its box.

Wang, Gu, Qin, Wang: CheXLocNet: Automatic localization of pneumothorax in chest radiographs
using deep convolutional neural networks, PLoS ONE 15(11): e0242013, 2020.
Mask R-CNN: He, Gkioxari, Dollar, Girshick, arXiv:1703.06870; built from torchvision's parts.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import cv2
import numpy as np
import torch
from torch import nn

from . import encoder_weights as weights_of
from . import interpolation, smp_library, torchvision_ops
from .network import Criterion, SegmentationNetwork

if TYPE_CHECKING:
    from torchvision.models.detection.image_list import ImageList

ENCODERS = ("resnet18", "resnet34", "resnet50")
LEVELS = ("stride4", "stride8", "stride16", "stride32")
HEIGHT_PER_WIDTH = (0.5, 1.0, 2.0)  # of the anchors
BACKGROUND_OVERLAP = 0.3  # an anchor that overlaps every instance by less is a negative example
BOX_CELLS = 7  # a proposal is scored on 7 x 7 pooled features
MASK_CELLS = 28  # an instance's mask has 28 x 28 cells within its box
LEAST_PROBABILITY = 1e-6  # of a pixel outside every instance: logit -13.8


class CheXLocNet(SegmentationNetwork):
    """images (N, 1, H, W) float in [0, 1] -> logits (N, 1, H, W); H and W multiples of 32.

    The probability of a pixel is the highest score x mask value of all instances there. For
    training, every 8-connected component of a mask is one instance, all of the same class.

    Departures from the paper:
    - one probability map for all instances, because this project compares networks on
      probability maps;
    - images without pneumothorax are trained on too (the paper uses the 2079 that have one);
    - one grey channel.

    Departures from torchvision's maskrcnn_resnet50_fpn:
    - no resizing: images already have the network's size;
    - anchors scale with the image and start smaller, since crescents are small;
    - batch norm is trained, not frozen, because an encoder may start from random weights;
    - masks are pasted at the same coordinates at which they were cropped for training, without
      rounding boxes to pixels.

    Args:
        encoder: "resnet50" (the paper's), or "resnet18", "resnet34" for a smaller twin.
        encoder_weights: "imagenet" (downloaded), "none" or the path of a file or folder
            (encoder_weights.py).
        fpn_channels: channels of each level of the feature pyramid.
        representation_size: width of the two layers that score and refine a box.
        mask_channels, mask_layers: width and number of the 3x3 convolutions of the mask head.
        smallest_anchor: side of the stride-4 anchors as a share of the image's longer side;
            each coarser level doubles it.
        anchor_overlap: intersection over union with an instance from which an anchor is a
            positive example.
        proposals: boxes kept per image, and per level before non-maximum suppression.
        sampled_anchors, sampled_proposals: number per image that the losses are computed on.
        score_threshold: instances with a lower score are dropped.
        nms_threshold: an instance that overlaps a better one by a larger intersection over
            union is dropped.
        detections: instances kept per image.
    """

    has_idle_parameters = True  # the mask head's, in a batch without instances
    no_fixed_graph = (
        "Mask R-CNN chooses boxes, suppresses those that overlap and pastes one mask per remaining "
        "box, so the amount of work depends on the image"
    )

    def __init__(
        self,
        *,
        encoder: str = "resnet50",
        encoder_weights: str | Path = "imagenet",
        fpn_channels: int = 256,
        representation_size: int = 1024,
        mask_channels: int = 256,
        mask_layers: int = 4,
        smallest_anchor: float = 1 / 32,
        anchor_overlap: float = 0.7,
        proposals: int = 1000,
        sampled_anchors: int = 256,
        sampled_proposals: int = 512,
        score_threshold: float = 0.05,
        nms_threshold: float = 0.5,
        detections: int = 100,
    ) -> None:
        super().__init__()
        if encoder not in ENCODERS:
            raise ValueError(f"encoder must be one of {', '.join(ENCODERS)}, got {encoder!r}")
        torchvision_ops.load()
        self.encoder = smp_library.load().encoders.get_encoder(encoder, in_channels=1, weights=None)
        weights_of.load(self.encoder, encoder_weights, name=encoder)
        self.pyramid = feature_pyramid(self.encoder.out_channels[2:], fpn_channels)
        self.proposer = region_proposals(
            fpn_channels,
            smallest_anchor=smallest_anchor,
            anchor_overlap=anchor_overlap,
            proposals=proposals,
            sampled_anchors=sampled_anchors,
        )
        self.instance_heads = instance_heads(
            fpn_channels,
            representation_size=representation_size,
            mask_channels=mask_channels,
            mask_layers=mask_layers,
            sampled_proposals=sampled_proposals,
            score_threshold=score_threshold,
            nms_threshold=nms_threshold,
            detections=detections,
        )

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        instances, _ = self.detect(self.prepare(images), targets=None)
        height, width = images.shape[2:]
        probabilities = []
        for found in instances:
            masks = paste(found["masks"][:, 0], found["boxes"], height, width)  # (n, H, W)
            weighted = found["scores"][:, None, None] * masks
            background = masks.new_zeros(1, height, width)  # an image may have no instances
            probabilities.append(torch.cat([background, weighted]).amax(0))
        probability = torch.stack(probabilities).unsqueeze(1)  # (N, 1, H, W)
        return torch.logit(probability, eps=LEAST_PROBABILITY)

    def training_loss(
        self, images: torch.Tensor, masks: torch.Tensor, criterion: Criterion
    ) -> dict[str, torch.Tensor]:
        """`loss` is the sum of Mask R-CNN's five losses, which are returned too.

        `criterion` is not used: none of the five compares a probability map with a mask.
        """
        targets = [instances_of(mask[0]) for mask in masks]
        _, losses = self.detect(self.prepare(images), targets)
        return {"loss": torch.stack(list(losses.values())).sum(), **losses}

    def detect(
        self, pixels: torch.Tensor, targets: list[dict[str, torch.Tensor]] | None
    ) -> tuple[list[dict[str, torch.Tensor]], dict[str, torch.Tensor]]:
        """Normalised pixels (N, 1, H, W) -> the instances of each image, and the losses.

        With targets the instances are empty; without targets the losses are.
        """
        from torchvision.models.detection.image_list import ImageList

        levels = self.encoder(pixels)[2:]
        with interpolation.in_16_bits(pixels.device):
            features = self.pyramid(OrderedDict(zip(LEVELS, levels, strict=True)))
        # In these two parts the training flag decides between losses and instances, nothing else.
        self.proposer.train(targets is not None)
        self.instance_heads.train(targets is not None)
        # 16 bits are too coarse for box coordinates.
        with torch.autocast(pixels.device.type, enabled=False):
            features = OrderedDict((name, level.float()) for name, level in features.items())
            sizes = [tuple(pixels.shape[2:])] * len(pixels)
            proposals, proposal_losses = self.proposer(ImageList(pixels, sizes), features, targets)
            instances, instance_losses = self.instance_heads(features, proposals, sizes, targets)
        return instances, {**proposal_losses, **instance_losses}


def feature_pyramid(in_channels: Sequence[int], channels: int) -> nn.Module:
    """Encoder features at strides 4 to 32 -> the same levels and stride 64, all `channels` wide."""
    from torchvision.ops import FeaturePyramidNetwork
    from torchvision.ops.feature_pyramid_network import LastLevelMaxPool

    _check_counts(fpn_channels=channels)
    return FeaturePyramidNetwork(list(in_channels), channels, LastLevelMaxPool())


def region_proposals(
    channels: int,
    *,
    smallest_anchor: float,
    anchor_overlap: float,
    proposals: int,
    sampled_anchors: int,
) -> nn.Module:
    """The region proposal network; numbers without a setting are torchvision's defaults."""
    from torchvision.models.detection.rpn import RegionProposalNetwork, RPNHead

    _check_counts(proposals=proposals, sampled_anchors=sampled_anchors)
    if not 0 < smallest_anchor <= 1:
        raise ValueError(f"smallest_anchor must be above 0 and at most 1, got {smallest_anchor}")
    if not BACKGROUND_OVERLAP <= anchor_overlap <= 1:
        raise ValueError(
            f"anchor_overlap must be between {BACKGROUND_OVERLAP} and 1, got {anchor_overlap}"
        )
    return RegionProposalNetwork(
        Anchors(smallest_anchor),
        RPNHead(channels, len(HEIGHT_PER_WIDTH)),
        fg_iou_thresh=anchor_overlap,
        bg_iou_thresh=BACKGROUND_OVERLAP,
        batch_size_per_image=sampled_anchors,
        positive_fraction=0.5,
        pre_nms_top_n={"training": proposals, "testing": proposals},
        post_nms_top_n={"training": proposals, "testing": proposals},
        nms_thresh=0.7,
    )


def instance_heads(
    channels: int,
    *,
    representation_size: int,
    mask_channels: int,
    mask_layers: int,
    sampled_proposals: int,
    score_threshold: float,
    nms_threshold: float,
    detections: int,
) -> nn.Module:
    """The heads that score, refine and mask each proposal; other numbers are torchvision's."""
    from torchvision.models.detection import faster_rcnn, mask_rcnn
    from torchvision.models.detection.roi_heads import RoIHeads
    from torchvision.ops import MultiScaleRoIAlign

    _check_counts(
        representation_size=representation_size,
        mask_channels=mask_channels,
        mask_layers=mask_layers,
        sampled_proposals=sampled_proposals,
        detections=detections,
    )
    _check_shares(score_threshold=score_threshold, nms_threshold=nms_threshold)
    return RoIHeads(
        box_roi_pool=MultiScaleRoIAlign(LEVELS, output_size=BOX_CELLS, sampling_ratio=2),
        box_head=faster_rcnn.TwoMLPHead(channels * BOX_CELLS**2, representation_size),
        box_predictor=faster_rcnn.FastRCNNPredictor(representation_size, num_classes=2),
        fg_iou_thresh=0.5,
        bg_iou_thresh=0.5,
        batch_size_per_image=sampled_proposals,
        positive_fraction=0.25,
        bbox_reg_weights=None,
        score_thresh=score_threshold,
        nms_thresh=nms_threshold,
        detections_per_img=detections,
        mask_roi_pool=MultiScaleRoIAlign(LEVELS, output_size=MASK_CELLS // 2, sampling_ratio=2),
        mask_head=mask_rcnn.MaskRCNNHeads(channels, (mask_channels,) * mask_layers, dilation=1),
        mask_predictor=mask_rcnn.MaskRCNNPredictor(mask_channels, mask_channels, num_classes=2),
    )


class Anchors(nn.Module):
    """images, features -> anchors (A, 4) of each image, sized relative to the image."""

    def __init__(self, smallest: float) -> None:
        super().__init__()
        self.smallest = smallest

    def forward(self, images: ImageList, features: Sequence[torch.Tensor]) -> list[torch.Tensor]:
        from torchvision.models.detection.anchor_utils import AnchorGenerator

        side = self.smallest * max(images.tensors.shape[-2:])
        sizes = tuple((side * 2**level,) for level in range(len(features)))
        return AnchorGenerator(sizes, (HEIGHT_PER_WIDTH,) * len(sizes))(images, features)


def instances_of(mask: torch.Tensor) -> dict[str, torch.Tensor]:
    """mask (H, W) of 0 and 1 -> its n connected components as torchvision's target, on its device.

    boxes (n, 4) float32 x1, y1, x2, y2 with exclusive ends, so that a single pixel has an area;
    labels (n,), all 1; masks (n, H, W) uint8.
    """
    binary = (mask > 0.5).to("cpu", torch.uint8).numpy()
    n_labels, numbers, statistics, _ = cv2.connectedComponentsWithStats(binary, connectivity=8)
    x, y, width, height = statistics[1:, :4].T  # row 0 is the background
    boxes = np.stack([x, y, x + width, y + height], axis=1).astype(np.float32)
    masks = numbers == np.arange(1, n_labels)[:, None, None]
    return {
        "boxes": torch.from_numpy(boxes).to(mask.device),
        "labels": torch.ones(n_labels - 1, dtype=torch.int64, device=mask.device),
        "masks": torch.from_numpy(masks.astype(np.uint8)).to(mask.device),
    }


def paste(masks: torch.Tensor, boxes: torch.Tensor, height: int, width: int) -> torch.Tensor:
    """masks (n, M, M), each filling its box (n, 4) -> (n, height, width).

    Bilinear; 0 where the centre of a pixel is outside the box. The inverse of the crop with which
    torchvision makes the targets (roi_align with aligned=False, where pixel j lies at j).
    """
    x1, y1, x2, y2 = boxes.unbind(1)
    rows = _paste_weights(y1, y2, height, masks.shape[1])
    cols = _paste_weights(x1, x2, width, masks.shape[2])
    return rows @ masks @ cols.transpose(1, 2)


def _paste_weights(start: torch.Tensor, end: torch.Tensor, length: int, cells: int) -> torch.Tensor:
    """Box edges (n,) along one axis -> weight of each mask cell per pixel (n, length, cells)."""
    pixel = torch.arange(length, device=start.device, dtype=start.dtype)
    start, end = start[:, None], end[:, None]
    place = ((pixel - start) * cells / (end - start) - 0.5).clamp(0, cells - 1)  # (n, length)
    tent = 1 - (place[..., None] - torch.arange(cells, device=start.device)).abs()
    inside = (pixel + 0.5 >= start) & (pixel + 0.5 < end)
    return tent.clamp(min=0) * inside[..., None]


def _check_counts(**counts: int) -> None:
    for name, count in counts.items():
        if count < 1:
            raise ValueError(f"{name} must be at least 1, got {count}")


def _check_shares(**shares: float) -> None:
    for name, share in shares.items():
        if not 0 <= share <= 1:
            raise ValueError(f"{name} must be between 0 and 1, got {share}")
