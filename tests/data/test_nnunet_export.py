"""The snippet of docs/your-data.md that turns cache and folds into nnU-Net's raw folder."""

import json
import re
import shutil

import cv2
import numpy as np
import pytest

from pneumothorax.pipeline import artifacts
from tests.helpers.installed import run_python
from tests.helpers.stages import ROOT

NAME = "Dataset001_Pneumothorax"


@pytest.fixture(scope="module")
def exported(folded, tmp_path_factory):
    """The folder in which the snippet was run, unchanged, beside `output`."""
    page = (ROOT / "docs" / "your-data.md").read_text("utf-8")
    (snippet,) = re.findall(r"^```python\n(.*?)^```$", page, re.MULTILINE | re.DOTALL)
    folder = tmp_path_factory.mktemp("nnunet")
    shutil.copytree(folded, folder / "output")
    run_python(snippet, site=ROOT, folder=folder)
    return folder


@pytest.fixture
def manifest(folded):
    return artifacts.read_table(folded, artifacts.MANIFEST).set_index("image_id")


def names(folder):
    return sorted(path.name for path in folder.iterdir())


def read(path):
    return cv2.imread(str(path), cv2.IMREAD_UNCHANGED)


def test_every_training_image_has_a_label_and_test_images_are_apart(exported, manifest):
    raw = exported / "nnUNet_raw" / NAME
    train, test = (manifest.index[manifest["split"] == split] for split in ("train", "test"))
    assert (len(train), len(test)) == (24, 3)
    assert names(raw / "imagesTr") == sorted(f"{image_id}_0000.png" for image_id in train)
    assert names(raw / "labelsTr") == sorted(f"{image_id}.png" for image_id in train)
    assert names(raw / "imagesTs") == sorted(f"{image_id}_0000.png" for image_id in test)
    assert names(raw) == ["dataset.json", "imagesTr", "imagesTs", "labelsTr"]


def test_images_are_the_cached_ones_and_labels_are_0_and_1(exported, folded, manifest):
    raw, cache = exported / "nnUNet_raw" / NAME, artifacts.Cache(64)
    positives = 0
    for image_id, row in manifest[manifest["split"] == "train"].iterrows():
        image = read(raw / "imagesTr" / f"{image_id}_0000.png")
        label = read(raw / "labelsTr" / f"{image_id}.png")
        np.testing.assert_array_equal(image, read(folded / cache.image(image_id)))
        assert (image.dtype, label.dtype) == (np.uint8, np.uint8)
        assert image.shape == label.shape == (64, 64)
        if row["positive"]:
            np.testing.assert_array_equal(label, read(folded / cache.mask(image_id)) > 0)
            positives += bool(label.any())
        else:
            assert not label.any()
    assert positives == 12


def test_the_splits_are_the_folds(exported, folded):
    path = exported / "nnUNet_preprocessed" / NAME / "splits_final.json"
    splits = json.loads(path.read_text("utf-8"))
    folds = artifacts.read_table(folded, artifacts.FOLDS)
    assert len(splits) == 2
    for number, split in enumerate(splits):
        assert split.keys() == {"train", "val"}
        assert set(split["val"]) == set(folds.loc[folds["fold"] == number, "image_id"])
        assert set(split["train"]) == set(folds["image_id"]) - set(split["val"])
        assert len(split["train"]) + len(split["val"]) == 24


def test_the_description_of_the_data_set_has_the_keys_that_nnu_net_needs(exported):
    text = (exported / "nnUNet_raw" / NAME / "dataset.json").read_text("utf-8")
    assert json.loads(text) == {
        "channel_names": {"0": "radiograph"},
        "labels": {"background": 0, "pneumothorax": 1},
        "numTraining": 24,
        "file_ending": ".png",
    }
