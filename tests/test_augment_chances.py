"""A network must not be able to tell positives from negatives by how they were augmented.

A classifier on seven features that react to distortion stands in for the network. Labels are
random, so that nothing but augmentation can betray them.
"""

import cv2
import numpy as np
import pytest
from sklearn.linear_model import LogisticRegression
from sklearn.metrics import roc_auc_score
from sklearn.model_selection import cross_val_predict
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler

from pneumothorax import augment, png
from pneumothorax.phantom import radiograph
from pneumothorax.training.config import TrainConfig

SIZE, RADIOGRAPHS, COPIES = 128, 40, 1600
NO_MASK = np.zeros((SIZE, SIZE), np.uint8)


def features(image):
    """(S, S) uint8 -> (7,): sharpness, its evenness, and traces of resampling and of borders."""
    values = image.astype(np.float32)
    smooth = [cv2.GaussianBlur(values, (0, 0), sigma) for sigma in (0.7, 1.4)]
    fine, coarse = values - smooth[0], smooth[0] - smooth[1]
    laplacian = cv2.Laplacian(values, cv2.CV_32F)
    blocks = np.abs(laplacian)[: SIZE // 16 * 16].reshape(SIZE // 16, 16, SIZE // 16, 16)
    sharpness = np.log(blocks.mean((1, 3)) + 0.1)
    frame = np.concatenate([image[0], image[-1], image[:, 0], image[:, -1]])
    return np.array(
        [
            (frame == 0).mean(),  # black border
            np.log(fine.std() / (coarse.std() + 0.1) + 1e-3),  # high-frequency energy
            np.log(laplacian.std() / (np.diff(values).std() + 0.1) + 1e-3),
            sharpness.std(),  # interpolation blurs some places more than others
            neighbours(fine),
            neighbours(fine.T),
            mirrored(values),
        ]
    )


def neighbours(fine):
    """Correlation of fine detail from one row to the next."""
    return (fine[1:] * fine[:-1]).mean() / ((fine**2).mean() + 1e-3)


def mirrored(values):
    """How much like its mirror image the band behind a line near a border is, at best."""
    best = np.inf
    for side in (values, values[::-1], values.T, values.T[::-1]):
        for line in range(1, 8):
            before, behind = side[line - 1 :: -1][:line], side[line + 1 : 2 * line + 1]
            change = np.abs(behind - side[line]).mean() + 0.1
            best = min(best, np.abs(before - behind).mean() / change)
    return best


@pytest.fixture(scope="module")
def radiographs():
    """(SIZE, SIZE) radiographs of phantoms, all without a pneumothorax."""
    drawn = (
        radiograph.draw(seed, pneumothorax=False, size=2 * SIZE) for seed in range(RADIOGRAPHS)
    )
    return [png.downsample(one.image, SIZE) for one in drawn]


def found_auc(radiographs, augmented, *, copies=COPIES):
    """Of a cross-validated classifier of the labels, which are random.

    Args:
        augmented: (image, label, number) -> the image as a network with this label sees it.
    """
    labels = np.random.default_rng(0).integers(0, 2, copies)
    seen = [
        features(augmented(radiographs[number % RADIOGRAPHS], label, number))
        for number, label in enumerate(labels)
    ]
    model = make_pipeline(StandardScaler(), LogisticRegression())
    found = cross_val_predict(model, np.array(seen), labels, cv=5, method="predict_proba")
    return roc_auc_score(labels, found[:, 1])


def as_in_training(config):
    """Radiographs augmented as training does with this config."""
    augmentation = augment.Augmentation(
        size=SIZE,
        negative=config.augment_negative,
        positive=config.augment_positive,
        shift_scale_rotate=config.shift_scale_rotate,
        seed=1,
    )

    def augmented(image, label, number):
        item = (0, number, 0)
        return augmentation(image, NO_MASK, is_positive=label == 1, item=item)[0]

    return augmented


def test_the_features_tell_a_distorted_radiograph_from_an_untouched_one(radiographs):
    import albumentations as A

    kinds = augment.alternatives(size=SIZE)["distortion"]
    distortion = A.Compose([A.OneOf(list(kinds.values()), p=1.0)], strict=True)

    def distorted_if_labelled(image, label, number):
        return augment.apply(distortion, image, NO_MASK, seed=number)[0] if label else image

    assert found_auc(radiographs, distorted_if_labelled, copies=400) > 0.85


@pytest.fixture(scope="module")
def auc_by_default(radiographs):
    return found_auc(radiographs, as_in_training(TrainConfig()))


def test_by_default_nobody_can_tell_positives_by_their_augmentation(auc_by_default):
    assert auc_by_default < 0.55


def test_with_the_papers_chances_distorted_radiographs_look_positive(radiographs, auc_by_default):
    """At best 0.60: half of the positives are distorted, 30 % of the negatives."""
    papers = TrainConfig(augment_negative=0.3, augment_positive=0.5, shift_scale_rotate=0)
    found = found_auc(radiographs, as_in_training(papers))
    assert found > max(0.55, auc_by_default + 0.05)
