"""Whole splits: what is missing is predicted, and as in an undisturbed run."""

import shutil

import pytest
import torch

from pneumothorax.pipeline import artifacts
from pneumothorax.prediction import splits
from pneumothorax.prediction.probability_maps import Predictor


class CountsItsBatch(torch.nn.Module):
    """Logits that show how many images the batch held: an exaggerated rounding error."""

    def outputs(self, images):
        return torch.full_like(images, len(images) / 10), None


def predict(output):
    rows = splits.rows(output, [0, 1], [artifacts.OOF])
    networks = {fold: Predictor(CountsItsBatch(), 64) for fold in (0, 1)}
    task = splits.PredictionTask(output, "counting", 64, 5, 0, torch.device("cpu"), "fp32")
    return splits.predict(networks, rows, task=task, weights={0: "a", 1: "b"})


@pytest.mark.parametrize("n_lost", [1, 7])
def test_a_lost_map_is_predicted_again_in_its_original_batch(folded, tmp_path, n_lost):
    output = shutil.copytree(folded, tmp_path / "output")
    first = predict(output)
    assert first["p_max"].nunique() == 2  # 12 images in a fold: batches of 5, 5 and 2
    for image_id in first["image_id"][:n_lost]:
        (output / artifacts.Run("counting").probability_map(artifacts.OOF, image_id)).unlink()
    assert predict(output).equals(first)
