"""Whole splits: what is missing is predicted, and as in an undisturbed run."""

import math
import os
import shutil
import signal

import pytest
import torch

from pneumothorax.data.dataset import RadiographDataset
from pneumothorax.errors import BadInput
from pneumothorax.pipeline import artifacts
from pneumothorax.prediction import splits
from pneumothorax.prediction.probability_maps import Predictor


class Certain(torch.nn.Module):
    """Every pixel and every image has this logit; None: there is no classification head."""

    def __init__(self, pixels, of_image):
        super().__init__()
        self.pixels, self.of_image = pixels, of_image

    def outputs(self, images):
        of_images = None if self.of_image is None else torch.full((len(images),), self.of_image)
        return torch.full_like(images, self.pixels), of_images


class CountsItsBatch(torch.nn.Module):
    """Logits that show how many images the batch held: an exaggerated rounding error."""

    def outputs(self, images):
        return torch.full_like(images, len(images) / 10), None


def predict(output, network=None, *, workers=0):
    rows = splits.rows(output, [0, 1], [artifacts.OOF])
    networks = {fold: Predictor(network or CountsItsBatch(), 64) for fold in (0, 1)}
    task = splits.PredictionTask(output, "counting", 64, 5, workers, torch.device("cpu"), "fp32")
    return splits.predict(networks, rows, task=task, weights={0: "a", 1: "b"})


@pytest.mark.parametrize("n_lost", [1, 7])
def test_a_lost_map_is_predicted_again_in_its_original_batch(folded, tmp_path, n_lost):
    output = shutil.copytree(folded, tmp_path / "output")
    first = predict(output)
    assert first["p_max"].nunique() == 2  # 12 images in a fold: batches of 5, 5 and 2
    for image_id in first["image_id"][:n_lost]:
        (output / artifacts.Run("counting").probability_map(artifacts.OOF, image_id)).unlink()
    assert predict(output).equals(first)


@pytest.mark.parametrize(("pixels", "of_image"), [(math.nan, None), (1.0, math.nan)])
def test_probabilities_that_are_not_finite_are_refused(folded, tmp_path, pixels, of_image):
    output = shutil.copytree(folded, tmp_path / "output")
    with pytest.raises(BadInput, match=r"12 probability maps are not finite: train it again"):
        predict(output, Certain(pixels, of_image))
    assert len(predict(output, Certain(1.0, 0.5))) == 24


@pytest.mark.skipif(os.name == "nt", reason="no signals on Windows")
def test_a_loader_worker_that_dies_is_named_and_what_is_written_is_kept(
    folded, tmp_path, monkeypatch
):
    output = shutil.copytree(folded, tmp_path / "output")
    whole = predict(output)
    read, main = RadiographDataset.__getitem__, os.getpid()
    shutil.rmtree(output / artifacts.Run("counting").folder)

    def die_late(self, item):
        if os.getpid() != main and item.position == 11:
            os.kill(os.getpid(), signal.SIGKILL)
        return read(self, item)

    with monkeypatch.context() as patch:
        patch.setattr(RadiographDataset, "__getitem__", die_late)
        with pytest.raises(BadInput, match=r"loading images failed .* with fewer --workers"):
            predict(output, workers=1)
    assert predict(output).equals(whole)
