"""CheXLocNet: Mask R-CNN that finds each pneumothorax as an object and outlines it within its box.

Wang, Gu, Qin, Wang: CheXLocNet: Automatic localization of pneumothorax in chest radiographs using deep convolutional
neural networks, PLoS ONE 15(11): e0242013, 2020. Mask R-CNN: He, Gkioxari, Dollar, Girshick, arXiv:1703.06870; its
parts are torchvision's.
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
from . import smp_library, torchvision_ops
from .network import Criterion, SegmentationNetwork

if TYPE_CHECKING:
    from torchvision.models.detection.image_list import ImageList

ENCODERS = ("resnet18", "resnet34", "resnet50")
LEVELS = ("stride4", "stride8", "stride16", "stride32")
HEIGHT_PER_WIDTH = (0.5, 1.0, 2.0)  # of the anchors
BACKGROUND_OVERLAP = (
    0.3  # an anchor that overlaps every instance by less is trained to propose none
)
MASK_SIZE = 28  # pixels of an instance's mask within its box
LEAST_PROBABILITY = 1e-6  # of a pixel in no instance: logit -13.8


class CheXLocNet(SegmentationNetwork):
    """images (N, 1, H, W) float in [0, 1] -> logits (N, 1, H, W); H and W multiples of 32.

    A pixel's probability is the highest score x mask value of the instances found there. For training, every
    8-connected component of a mask is one instance of the one class.

    Departures from the paper: one probability map for all instances, because here networks are compared on maps; images
    without pneumothorax are trained on (the paper trains on the 2079 with one); one grey channel. Departures from
    torchvision's maskrcnn_resnet50_fpn: no resizing, images come in the network's size; anchors follow the image's size
    and start smaller, since crescents are small; batch norms are trained, not frozen, as random weights need it; masks
    are pasted by the coordinates by which they were cropped for training, without rounding boxes to pixels.

    Args:
        encoder: "resnet50" (the paper's), or "resnet18", "resnet34" for a smaller twin.
        encoder_weights: "imagenet" (downloaded), "none" or the path of a .pth or .safetensors file.
        fpn_channels: of each level of the feature pyramid.
        representation_size: width of the two layers that score a box and correct it.
        mask_channels, mask_layers: width and number of the 3x3 convolutions before an instance's mask.
        smallest_anchor: side as a share of the image's longer side, at stride 4; each coarser level doubles it.
        anchor_overlap: intersection over union with an instance from which an anchor is trained to propose it.
        proposals: boxes handed on per image, and at most so many per level before overlapping ones are dropped.
        sampled_anchors, sampled_proposals: per image, those the losses are computed on.
        score_threshold: instances that score less are dropped.
        nms_threshold: and those that overlap a better one by more than this intersection over union.
        detections: instances kept per image.
    """

    has_idle_parameters = True  # the mask head's, in a batch without instances
    no_fixed_graph = (
        "Mask R-CNN chooses boxes, drops those that overlap and pastes a mask into each that is left: "
        "how many there are, and so the work to do, depends on what is in the image"
    )

    # The smallest settings, for tests: encoder="resnet18", encoder_weights="none", fpn_channels=8,
    # representation_size=16, mask_channels=8, mask_layers=1, proposals=20.

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
            raise ValueError(f"encoder is one of {', '.join(ENCODERS)}, got {encoder!r}")
        _check_counts(
            fpn_channels=fpn_channels,
            representation_size=representation_size,
            mask_channels=mask_channels,
            mask_layers=mask_layers,
            proposals=proposals,
            sampled_anchors=sampled_anchors,
            sampled_proposals=sampled_proposals,
            detections=detections,
        )
        _check_shares(
            smallest_anchor=smallest_anchor,
            score_threshold=score_threshold,
            nms_threshold=nms_threshold,
        )
        if smallest_anchor == 0:
            raise ValueError("smallest_anchor is above 0")
        if not BACKGROUND_OVERLAP <= anchor_overlap <= 1:
            raise ValueError(
                f"anchor_overlap is between {BACKGROUND_OVERLAP} and 1, got {anchor_overlap}"
            )
        torchvision_ops.load()
        from torchvision.models import detection
        from torchvision.ops import FeaturePyramidNetwork, MultiScaleRoIAlign
        from torchvision.ops.feature_pyramid_network import LastLevelMaxPool

        self.encoder = smp_library.load().encoders.get_encoder(encoder, in_channels=1, weights=None)
        weights_of.load(self.encoder, encoder_weights, name=encoder)
        self.pyramid = FeaturePyramidNetwork(
            self.encoder.out_channels[2:], fpn_channels, LastLevelMaxPool()
        )

        # The numbers not named are the defaults of torchvision's MaskRCNN.
        self.proposer = detection.rpn.RegionProposalNetwork(
            Anchors(smallest_anchor),
            detection.rpn.RPNHead(fpn_channels, len(HEIGHT_PER_WIDTH)),
            fg_iou_thresh=anchor_overlap,
            bg_iou_thresh=BACKGROUND_OVERLAP,
            batch_size_per_image=sampled_anchors,
            positive_fraction=0.5,
            pre_nms_top_n={"training": proposals, "testing": proposals},
            post_nms_top_n={"training": proposals, "testing": proposals},
            nms_thresh=0.7,
        )
        self.instance_heads = detection.roi_heads.RoIHeads(
            box_roi_pool=MultiScaleRoIAlign(LEVELS, output_size=7, sampling_ratio=2),
            box_head=detection.faster_rcnn.TwoMLPHead(fpn_channels * 7 * 7, representation_size),
            box_predictor=detection.faster_rcnn.FastRCNNPredictor(
                representation_size, num_classes=2
            ),
            fg_iou_thresh=0.5,
            bg_iou_thresh=0.5,
            batch_size_per_image=sampled_proposals,
            positive_fraction=0.25,
            bbox_reg_weights=None,
            score_thresh=score_threshold,
            nms_thresh=nms_threshold,
            detections_per_img=detections,
            mask_roi_pool=MultiScaleRoIAlign(LEVELS, output_size=MASK_SIZE // 2, sampling_ratio=2),
            mask_head=detection.mask_rcnn.MaskRCNNHeads(
                fpn_channels, (mask_channels,) * mask_layers, dilation=1
            ),
            mask_predictor=detection.mask_rcnn.MaskRCNNPredictor(
                mask_channels, mask_channels, num_classes=2
            ),
        )

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        instances, _ = self._instances(self.prepare(images), targets=None)
        height, width = images.shape[2:]
        maps = []
        for found in instances:
            masks = paste(found["masks"][:, 0], found["boxes"], height, width)  # (n, H, W)
            weighted = found["scores"][:, None, None] * masks
            nothing = masks.new_zeros(1, height, width)
            maps.append(torch.cat([nothing, weighted]).amax(0))
        probability = torch.stack(maps).unsqueeze(1)  # (N, 1, H, W)
        return torch.logit(probability, eps=LEAST_PROBABILITY)

    def training_loss(
        self, images: torch.Tensor, masks: torch.Tensor, criterion: Criterion
    ) -> dict[str, torch.Tensor]:
        """The sum of Mask R-CNN's five losses, and each; `criterion` is not used, since none of them is on a map."""
        targets = [instances_of(mask[0]) for mask in masks]
        _, losses = self._instances(self.prepare(images), targets)
        return {"loss": torch.stack(list(losses.values())).sum(), **losses}

    def _instances(
        self, pixels: torch.Tensor, targets: list[dict[str, torch.Tensor]] | None
    ) -> tuple[list[dict[str, torch.Tensor]], dict[str, torch.Tensor]]:
        """Normalised pixels (N, 1, H, W) -> what is found on each image without targets, the losses with them."""
        from torchvision.models.detection.image_list import ImageList

        features = self.pyramid(OrderedDict(zip(LEVELS, self.encoder(pixels)[2:], strict=True)))
        # These two choose by their training flag between losses and results, and do nothing else with it.
        self.proposer.train(targets is not None)
        self.instance_heads.train(targets is not None)
        # 16 bits cannot hold the coordinates of boxes.
        with torch.autocast(pixels.device.type, enabled=False):
            features = OrderedDict((name, level.float()) for name, level in features.items())
            sizes = [tuple(pixels.shape[2:])] * len(pixels)
            proposals, proposal_losses = self.proposer(ImageList(pixels, sizes), features, targets)
            instances, instance_losses = self.instance_heads(features, proposals, sizes, targets)
        return instances, {**proposal_losses, **instance_losses}


class Anchors(nn.Module):
    """torchvision's anchors, in sizes relative to the image: images, feature maps -> boxes of each image (A, 4)."""

    def __init__(self, smallest: float) -> None:
        super().__init__()
        self.smallest = smallest

    def forward(self, images: ImageList, features: Sequence[torch.Tensor]) -> list[torch.Tensor]:
        from torchvision.models.detection.anchor_utils import AnchorGenerator

        side = self.smallest * max(images.tensors.shape[-2:])
        sizes = tuple((side * 2**level,) for level in range(len(features)))
        return AnchorGenerator(sizes, (HEIGHT_PER_WIDTH,) * len(sizes))(images, features)


def instances_of(mask: torch.Tensor) -> dict[str, torch.Tensor]:
    """mask (H, W) of 0 and 1 -> its n components as torchvision's target, on the mask's device.

    boxes (n, 4) float32 x1, y1, x2, y2, the ends exclusive, so that one pixel has an area; labels (n,) of 1;
    masks (n, H, W) uint8.
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
    """masks (n, M, M) filling their boxes (n, 4) -> (n, height, width), bilinear, 0 where a pixel's centre is outside.

    The inverse of the crop by which torchvision makes the targets (roi_align with aligned=False: pixel j lies at j).
    """
    x1, y1, x2, y2 = boxes.unbind(1)
    rows = _paste_weights(y1, y2, height, masks.shape[1])
    cols = _paste_weights(x1, x2, width, masks.shape[2])
    return rows @ masks @ cols.transpose(1, 2)


def _paste_weights(start: torch.Tensor, end: torch.Tensor, length: int, cells: int) -> torch.Tensor:
    """Boxes from start to end (n,) along one axis -> weight of each mask cell for each pixel (n, length, cells)."""
    pixel = torch.arange(length, device=start.device, dtype=start.dtype)
    start, end = start[:, None], end[:, None]
    place = ((pixel - start) * cells / (end - start) - 0.5).clamp(0, cells - 1)  # (n, length)
    tent = 1 - (place[..., None] - torch.arange(cells, device=start.device)).abs()
    inside = (pixel + 0.5 >= start) & (pixel + 0.5 < end)
    return tent.clamp(min=0) * inside[..., None]


def _check_counts(**counts: int) -> None:
    for name, count in counts.items():
        if count < 1:
            raise ValueError(f"{name} is at least 1, got {count}")


def _check_shares(**shares: float) -> None:
    for name, share in shares.items():
        if not 0 <= share <= 1:
            raise ValueError(f"{name} is between 0 and 1, got {share}")
