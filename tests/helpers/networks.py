"""The smallest form of each network: quick to build, without a download."""

import torch

import models

NO_WEIGHTS = {"encoder_weights": "none"}
RANDOM_RESNET18 = {"encoder": "resnet18", **NO_WEIGHTS}

# Two architectures of smp represent all of them, one of them with attention.
SMALL = {
    "ica_resunet": {**RANDOM_RESNET18, "decoder_channels": (16, 16, 8, 8, 8)},
    "ica_resunet_paper": {**NO_WEIGHTS, "width": 8, "decoder_channels": (16, 8, 8, 8)},
    "unet": {"base_channels": 4},
    "albunet": {**RANDOM_RESNET18, "filters": 4},
    "chexlocnet": {
        **RANDOM_RESNET18,
        "fpn_channels": 8,
        "representation_size": 16,
        "mask_channels": 8,
        "mask_layers": 1,
        "proposals": 20,
    },
    "unetpp_msof": {"base_channels": 4},
    "smp/FPN": {
        **RANDOM_RESNET18,
        "decoder_pyramid_channels": 16,
        "decoder_segmentation_channels": 32,
    },
    "smp/Unet": {**RANDOM_RESNET18, "attention": "improved", "decoder_channels": (16, 16, 8, 8, 8)},
}


def small(name, **settings):
    torch.manual_seed(0)
    return models.build(name, **{**SMALL[name], **settings})
