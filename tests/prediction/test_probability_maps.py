"""Probabilities are of the mean logit over networks, and over an image and its mirror image."""

import numpy as np
import torch

from pneumothorax.prediction import probability_maps


class Brightness(torch.nn.Module):
    """Logits that depend on position: image values on the left, zero on the right."""

    def forward(self, images):
        logits = torch.zeros_like(images)
        half = images.shape[3] // 2
        logits[..., :half] = images[..., :half] * 8
        return logits

    def outputs(self, images):
        return self(images), images.mean((1, 2, 3))


class Headless(torch.nn.Identity):
    def outputs(self, images):
        return self(images), None


def test_probabilities_are_of_the_mean_logit_over_networks_and_over_the_mirror_image():
    images = torch.rand(2, 1, 4, 8)
    network = Brightness()
    found, classification = probability_maps.probabilities([network, Headless()], images)
    mean = (network(images) + network(images.flip(3)).flip(3) + 2 * images) / 4  # Identity twice
    np.testing.assert_allclose(found.numpy(), mean.sigmoid().numpy(), atol=1e-6)
    # A mean over those that have a classification head would be of other networks.
    assert classification is None


class Confident(Brightness):
    def outputs(self, images):
        return self(images), images.mean((1, 2, 3)) * 0 + 5


def test_the_classification_heads_probability_is_of_the_mean_logit_over_networks():
    images = torch.rand(2, 1, 4, 8)
    _, classification = probability_maps.probabilities([Brightness(), Confident()], images)
    np.testing.assert_allclose(
        classification.numpy(), ((images.mean((1, 2, 3)) + 5) / 2).sigmoid().numpy(), atol=1e-6
    )
