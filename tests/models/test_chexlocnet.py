"""CheXLocNet: components become instances, instances a probability map, and it learns."""

import numpy as np
import pytest
import torch

from models import torchvision_ops
from models.chexlocnet import Anchors, instances_of, paste
from pneumothorax import metrics, png
from pneumothorax.phantom.radiograph import draw
from tests.helpers import networks

LOSSES = {"loss_objectness", "loss_rpn_box_reg", "loss_classifier", "loss_box_reg", "loss_mask"}
ALL_EMPTY = -13.8155  # log(1e-6 / (1 - 1e-6))


def small(**settings):
    return networks.small("chexlocnet", **settings)


def images(*, batch=2, height=64, width=64):
    return torch.rand(batch, 1, height, width, generator=torch.Generator().manual_seed(0))


def crescents(*, height=64, width=64):
    """Two masks (2, 1, H, W): an ellipse with another one cut out of it, and an empty mask."""
    y, x = torch.meshgrid(torch.arange(height), torch.arange(width), indexing="ij")
    disc = (x - 30) ** 2 / 400 + (y - 30) ** 2 / 600 < 1
    cut = (x - 36) ** 2 / 300 + (y - 33) ** 2 / 500 < 1
    return torch.stack([disc & ~cut, torch.zeros_like(disc)]).unsqueeze(1).float()


def unused(logits, masks):
    pytest.fail("the criterion was called")


def test_components_become_boxes_by_hand():
    mask = torch.zeros(5, 6)
    mask[0, 0] = 1  # one pixel, in the corner
    mask[1, 3] = mask[2, 4] = 1  # corners touch: one component
    mask[4, 4:6] = 1  # touches two borders
    target = instances_of(mask)
    assert target["boxes"].tolist() == [[0, 0, 1, 1], [3, 1, 5, 3], [4, 4, 6, 5]]
    assert target["boxes"].dtype == torch.float32
    assert target["labels"].tolist() == [1, 1, 1]
    assert target["masks"].shape == (3, 5, 6)
    assert torch.equal(target["masks"].sum(0), mask.to(torch.uint8))
    assert [one.nonzero().tolist() for one in target["masks"]] == [
        [[0, 0]],
        [[1, 3], [2, 4]],
        [[4, 4], [4, 5]],
    ]


def test_a_full_mask_is_one_instance():
    target = instances_of(torch.ones(4, 6))
    assert target["boxes"].tolist() == [[0, 0, 6, 4]]
    assert target["masks"].all()


def test_an_empty_mask_has_no_instances():
    target = instances_of(torch.zeros(5, 6))
    assert (target["boxes"].shape, target["labels"].shape, target["masks"].shape) == (
        (0, 4),
        (0,),
        (0, 5, 6),
    )


def test_a_full_mask_fills_the_pixels_whose_centres_lie_in_its_box():
    boxes = torch.tensor([[2.0, 1.0, 5.0, 3.0], [3.6, 0.0, 6.0, 0.4], [-4.0, -4.0, 20.0, 20.0]])
    pasted = paste(torch.ones(3, 28, 28), boxes, 4, 6)
    assert pasted[0].tolist() == [[0] * 6, [0, 0, 1, 1, 1, 0], [0, 0, 1, 1, 1, 0], [0] * 6]
    assert not pasted[1].any()  # no centre is above 0.4
    assert pasted[2].all()


def test_a_mask_is_interpolated_linearly_by_hand():
    # Two cells, 0 and 1, over four pixels from x = 4, where pixel j lies at j: the centres of the
    # cells are at 5 and 7, so pixels 4, 5, 6, 7 hold 0, 0, 1/2, 1.
    mask = torch.tensor([[[0.0, 1.0], [0.0, 1.0]]])
    pasted = paste(mask, torch.tensor([[4.0, 0.0, 8.0, 1.0]]), 1, 10)
    assert pasted[0, 0].tolist() == [0, 0, 0, 0, 0, 0, 0.5, 1, 0, 0]


@pytest.mark.parametrize("border", [False, True])
def test_pasting_inverts_the_crop_made_for_training(border):
    torchvision_ops.load()
    from torchvision.models.detection.roi_heads import project_masks_on_boxes

    mask = crescents()[0, 0]
    if border:
        mask = mask.roll((-30, -30), (0, 1))  # wrapped around: touches every border
    target = instances_of(mask)
    cropped = project_masks_on_boxes(
        target["masks"], target["boxes"], torch.arange(len(target["boxes"])), 28
    )
    restored = paste(cropped, target["boxes"], 64, 64).amax(0) >= 0.5
    wrong = (restored != mask.bool()).sum() / mask.sum()
    assert wrong < 0.06  # 28 x 28 cells cannot hold the outline more precisely


def test_a_pixel_gets_the_highest_score_times_mask_value(monkeypatch):
    network = small().eval()
    first = {
        "scores": torch.tensor([0.5, 0.75]),
        "masks": torch.ones(2, 1, 28, 28),
        # They overlap in columns 4 to 7.
        "boxes": torch.tensor([[0.0, 0.0, 8.0, 2.0], [4.0, 0.0, 12.0, 2.0]]),
    }
    second = {
        "scores": torch.zeros(0),
        "masks": torch.zeros(0, 1, 28, 28),
        "boxes": torch.zeros(0, 4),
    }
    monkeypatch.setattr(network, "detect", lambda pixels, targets: ([first, second], {}))
    logits = network(images(height=32, width=32))
    row = logits[0, 0, 0].sigmoid()
    torch.testing.assert_close(
        row, torch.tensor([0.5] * 4 + [0.75] * 8 + [1e-6] * 20), rtol=0, atol=1e-6
    )
    torch.testing.assert_close(logits[:, :, 2:], torch.full((2, 1, 30, 32), ALL_EMPTY))
    torch.testing.assert_close(logits[1], torch.full((1, 32, 32), ALL_EMPTY))


@pytest.mark.parametrize("threshold, found", [(0.0, True), (1.0, False)])
def test_an_image_without_instances_is_negative_everywhere(threshold, found):
    with torch.inference_mode():
        logits = small(score_threshold=threshold).eval()(images())
    assert logits.isfinite().all()
    assert bool((logits > ALL_EMPTY + 0.01).any()) is found


@pytest.mark.parametrize("height, width", [(64, 64), (64, 96), (128, 64)])
def test_every_parameter_gets_a_gradient_from_the_five_losses(height, width):
    network = small().train()
    losses = network.training_loss(
        images(height=height, width=width), crescents(height=height, width=width), unused
    )
    assert set(losses) == {"loss", *LOSSES}
    torch.testing.assert_close(losses["loss"], sum(losses[name] for name in LOSSES))
    losses["loss"].backward()
    assert [
        n for n, p in network.named_parameters() if p.grad is None or not p.grad.isfinite().all()
    ] == []
    assert min(losses[name].item() for name in LOSSES) > 0


def test_a_batch_without_positives_trains():
    network = small().train()
    losses = network.training_loss(images(), torch.zeros(2, 1, 64, 64), unused)
    losses["loss"].backward()
    assert losses["loss"] > 0
    assert losses["loss_mask"] == losses["loss_box_reg"] == losses["loss_rpn_box_reg"] == 0
    assert all(p.grad is None or p.grad.isfinite().all() for p in network.parameters())


def test_masks_at_every_border_and_of_one_pixel_train():
    masks = torch.ones(2, 1, 64, 64)
    masks[1] = 0
    masks[1, 0, 63, 63] = 1
    assert small().train().training_loss(images(), masks, unused)["loss"].isfinite()


def test_logits_are_available_in_training_mode():
    network = small().train()
    assert network(images()).isfinite().all()
    assert network.encoder.bn1.num_batches_tracked == 1  # batch norm is still trained
    assert set(network.training_loss(images(), crescents(), unused)) == {"loss", *LOSSES}


def test_an_image_does_not_depend_on_the_others_of_its_batch():
    network = small(score_threshold=0.0).eval()
    batch = images(batch=3)
    batch[1] = 0  # black
    with torch.inference_mode():
        together = network(batch)
        alone = torch.cat([network(one.unsqueeze(0)) for one in batch])
    assert (together > ALL_EMPTY + 0.01).any()
    torch.testing.assert_close(together.sigmoid(), alone.sigmoid(), rtol=0, atol=1e-4)


def test_boxes_stay_in_32_bits_in_mixed_precision():
    network = small().eval()
    seen = []
    network.instance_heads.register_forward_hook(
        lambda module, inputs, output: seen.append(output[0][0])
    )
    with torch.inference_mode(), torch.autocast("cpu", dtype=torch.bfloat16):
        logits = network(images())
    assert logits.dtype == seen[0]["boxes"].dtype == torch.float32
    rounded = seen[0]["boxes"].bfloat16().float()
    assert not torch.equal(seen[0]["boxes"], rounded)  # not merely cast back


def test_anchors_grow_with_the_image_and_with_the_level():
    torchvision_ops.load()
    from torchvision.models.detection.image_list import ImageList

    pixels = torch.zeros(2, 1, 128, 256)
    levels = [torch.zeros(2, 8, 128 // stride, 256 // stride) for stride in (4, 8)]
    first, second = Anchors(1 / 32)(ImageList(pixels, [(128, 256)] * 2), levels)
    assert torch.equal(first, second)
    assert len(first) == 3 * (32 * 64 + 16 * 32)
    # 256 / 32 = 8, then 16. Height / width is 1/2, 1, 2 at equal area, and edges are rounded:
    # 8 x sqrt(2) = 11.3, half of which is 6.
    assert first[:3].tolist() == [[-6, -3, 6, 3], [-4, -4, 4, 4], [-3, -6, 3, 6]]
    assert first[3 * 32 * 64 + 1].tolist() == [-8, -8, 8, 8]


def test_the_encoder_accepts_weights_of_torchvision(tmp_path):
    published = torchvision_ops.load().models.resnet18().state_dict()
    torch.save(published, tmp_path / "resnet18.pth")
    network = small(encoder_weights=tmp_path / "resnet18.pth")
    torch.testing.assert_close(
        network.encoder.conv1.weight, published["conv1.weight"].sum(1, keepdim=True)
    )
    assert torch.equal(network.encoder.layer4[1].conv2.weight, published["layer4.1.conv2.weight"])


@pytest.mark.parametrize(
    "settings, message",
    [
        ({"encoder": "vgg16"}, "resnet18, resnet34, resnet50"),
        ({"fpn_channels": 0}, "fpn_channels"),
        ({"mask_layers": 0}, "mask_layers"),
        ({"proposals": 0}, "proposals"),
        ({"smallest_anchor": 0.0}, "smallest_anchor"),
        ({"nms_threshold": 1.5}, "nms_threshold"),
        ({"anchor_overlap": 0.2}, "anchor_overlap"),
    ],
)
def test_a_value_out_of_range_is_named(settings, message):
    with pytest.raises(ValueError, match=message):
        small(**settings)


def phantoms(*, positives, negatives, size):
    """Radiographs of phantoms (N, 1, size, size) in [0, 1], and their masks of the same shape."""
    radiographs, masks = [], []
    for seed in range(positives + negatives):
        phantom = draw(seed, pneumothorax=seed < positives, size=512)
        mask = np.zeros(phantom.image.shape, dtype=np.uint8)
        for crescent in phantom.masks:
            mask |= crescent
        radiographs.append(png.downsample(phantom.image, size))
        masks.append(png.downsample_mask(mask, size))
    images, truths = (torch.from_numpy(np.stack(part)) for part in (radiographs, masks))
    return images.unsqueeze(1) / 255, truths.unsqueeze(1).float()


@pytest.mark.slow
def test_chexlocnet_memorises_eight_phantoms():
    radiographs, masks = phantoms(positives=6, negatives=2, size=96)
    network = small(
        fpn_channels=64,
        representation_size=128,
        mask_channels=64,
        mask_layers=2,
        proposals=200,
        sampled_proposals=64,
    ).train()
    optimizer = torch.optim.Adam(network.parameters(), lr=1e-3)
    for _ in range(120):
        optimizer.zero_grad()
        network.training_loss(radiographs, masks, unused)["loss"].backward()
        optimizer.step()
    with torch.inference_mode():
        predicted = network.eval()(radiographs).sigmoid() > 0.5
    rows = [
        metrics.counts(truth[0], found[0])
        for truth, found in zip(masks.numpy(), predicted.numpy(), strict=True)
    ]
    dice = metrics.image_dice(*np.array(rows).T)
    assert dice[:6].mean() >= 0.8
    assert dice[6:].tolist() == [1, 1]
