"""predict_radiographs.py: any radiograph gets the mask that stages 00 to 04 would give it."""

import errno
import json
import re
import shutil
import sys
from dataclasses import replace

import cv2
import numpy as np
import pandas as pd
import pydicom
import pytest
import torch
from PIL import Image

import models
from pneumothorax import dicom, png, rle
from pneumothorax.compute import precisions
from pneumothorax.data import discovery
from pneumothorax.data.dataset import RadiographDataset
from pneumothorax.errors import BadInput, OutputLocked
from pneumothorax.inference import overlay, predicting, reading, results, settled
from pneumothorax.inference.pytorch_run import TorchNetworks
from pneumothorax.masks import postprocess
from pneumothorax.masks.calibration import Calibration
from pneumothorax.pipeline import artifacts, journal, lineage, locks, records
from pneumothorax.prediction import probability_maps
from tests.helpers.dicoms import write_dicom
from tests.helpers.images import disc, noise
from tests.helpers.memory import OUT_OF_MEMORY
from tests.helpers.stages import TINY, run_stage, tiny_input

ODD_SHAPE = (90, 150)

CPU = torch.device("cpu")
PRECISION = precisions.resolve("auto", CPU)  # as stage 03 decides


def resealed(body):
    """A record with changed contents, sealed as if stage 04 had written it."""
    body = {name: value for name, value in body.items() if name != "seal"}
    return {**body, "seal": records.seal(body)}


@pytest.fixture(scope="module")
def tiny(tmp_path_factory):
    """(input, output) of a run with thresholds so low that its first test image is positive.

    The second test image is not square, the third has 12 bits.
    """
    folder = tmp_path_factory.mktemp("tiny")
    made = tiny_input(folder / "input")
    _, odd, deep = (
        folder / "input" / "stage_2_images" / f"{image_id}.dcm" for image_id in made.test_ids
    )
    write_dicom(odd, np.ascontiguousarray(noise(7, 150)[: ODD_SHAPE[0]]), jpeg=True, PatientID="")
    write_dicom(deep, noise(8).astype(np.uint16) * 16, BitsStored=12, PatientID="")
    config = folder / "tiny.yaml"
    config.write_text(TINY)
    smaller = ["epochs=1", "model=unet", "model_settings={base_channels: 4}"]
    settings = [word for setting in smaller for word in ("--set", setting)]
    output = folder / "output"
    for stage in (
        ["00_prepare_data.py", "--input", made.folder, "--size", 64],
        ["01_make_folds.py", "--folds", 2],
        ["02_train.py", "--config", config, "--run", "tiny", *settings],
        ["03_predict.py", "--run", "tiny"],
        ["04_submit.py", "--run", "tiny"],
    ):
        run_stage(*stage, "--output", output, "--workers", 0)
    first = png.read(
        output / artifacts.Run("tiny").probability_map(artifacts.TEST, made.test_ids[0])
    )
    threshold = float(np.quantile(first, 0.9)) / 255 - 0.002
    path = output / artifacts.Submission("tiny").record.path
    body = json.loads(path.read_text("utf-8"))
    body["final"] = {"top": threshold, "min_area": 0, "bottom": threshold, "min_component": 100}
    path.write_text(json.dumps(resealed(body)), "utf-8")
    return made, output


@pytest.fixture(scope="module")
def networks(tiny):
    """Of both folds."""
    _, output = tiny
    build = models.build_untrained
    folds = probability_maps.load_folds(output, "tiny", [0, 1], build=build, device=CPU)
    return TorchNetworks(list(folds.values()), CPU, PRECISION)


def predict(output, path, folder, *more):
    run_stage(
        "predict_radiographs.py", path, "--to", folder, "--run", "tiny", "--output", output, *more
    )


def rows_of(folder):
    return artifacts.read_table(folder, results.PREDICTIONS).set_index("image_id")


def ids_of_the_page(folder):
    text = (folder / results.PAGE).read_text("utf-8")
    [data] = re.findall(r'<script type="application/json" id="data">(.*)</script>', text)
    return json.loads(data)["images"]["image_id"]


def rejected_of(folder):
    return dict(
        artifacts.read_table(folder, artifacts.REJECTED)[["source", "code"]].itertuples(index=False)
    )


def contents(folder):
    return {
        path.relative_to(folder).as_posix(): (path.read_bytes(), path.stat().st_mtime_ns)
        for path in folder.rglob("*")
        if path.is_file() and ".locks" not in path.parts and path.name != results.JOURNAL
    }


def bytes_of(folder):
    return {name: data for name, (data, _) in contents(folder).items()}


def radiograph(folder, name, seed=1, **tags):
    return write_dicom(folder / f"{name}.dcm", noise(seed), **tags)


# The same image, probability map and mask as from stages 00, 03 and 04


def test_a_prepared_test_image_gets_the_probability_map_that_stage_03_stored(tiny, networks):
    made, output = tiny
    images = [
        dicom.read(made.folder / "stage_2_images" / f"{image_id}.dcm").image
        for image_id in made.test_ids
    ]
    assert images[1].shape == ODD_SHAPE
    maps, scores = predicting.stored_maps(images, networks, 64)
    table = artifacts.read_table(output, artifacts.Run("tiny").predictions).set_index("image_id")
    for image_id, stored, p in zip(made.test_ids, maps, scores, strict=True):
        path = output / artifacts.Run("tiny").probability_map(artifacts.TEST, image_id)
        np.testing.assert_array_equal(stored, png.read(path))
        assert p == pytest.approx(table.at[image_id, "p_max"], abs=1e-12)


class Watching:
    """A network that gives the same logit everywhere and keeps the images it was given."""

    def __init__(self, classification=None, value=0.0):
        self.seen, self.classification, self.value = [], classification, value

    def outputs(self, images):
        self.seen.append(images.clone())
        classification = (
            None if self.classification is None else torch.full((len(images),), self.classification)
        )
        return torch.full_like(images, self.value), classification


def watched(network, image_size=64):
    return TorchNetworks([probability_maps.Predictor(network, image_size)], CPU, "fp32")


@pytest.mark.parametrize("image_size", [32, 64])
def test_the_network_sees_the_image_it_would_get_from_the_cache(tiny, image_size):
    made, output = tiny
    manifest = (
        artifacts.read_table(output, artifacts.MANIFEST)
        .set_index("image_id")
        .loc[made.test_ids]
        .reset_index()
    )
    cached = RadiographDataset(output, manifest, cache_size=64, image_size=image_size)
    images = [dicom.read(made.folder / manifest.at[n, "source"]).image for n in range(3)]
    network = Watching()
    predicting.stored_maps(images, watched(network, image_size), 64)
    shown, mirrored = network.seen
    for number in range(3):
        expected = torch.from_numpy(cached.read(number)[0]) / 255
        assert torch.equal(shown[number, 0], expected)
        assert torch.equal(mirrored[number, 0], expected.flip(1))


def test_the_score_joins_the_map_with_the_classification_head_if_the_network_has_one():
    image = [noise(1, 64)]
    # The map's log odds are 0, those of the head 2: 1 on average.
    for classification, expected in ((2.0, 1 / (1 + np.exp(-1))), (None, 0.5)):
        maps, [p] = predicting.stored_maps(image, watched(Watching(classification)), 64)
        assert p == pytest.approx(expected)
        assert (maps == 128).all()  # 0.5 * 255 = 127.5, rounded to even


def test_out_of_memory_names_a_smaller_batch(tiny, tmp_path, monkeypatch):
    made, output = tiny

    def too_large(*_, **__):
        raise OUT_OF_MEMORY[0]

    monkeypatch.setattr(predicting, "stored_maps", too_large)
    with pytest.raises(BadInput, match=r"with 4 images at a time; .* with --batch-size 2$"):
        predict(output, made.folder / "stage_2_images", tmp_path / "to", "--batch-size", 4)


def test_maps_that_are_not_finite_are_refused():
    with pytest.raises(BadInput, match="train the run again"):
        predicting.stored_maps([noise(1, 64)], watched(Watching(value=float("nan"))), 64)


def test_the_masks_are_those_of_the_stored_maps_with_the_final_thresholds(tiny, tmp_path, capsys):
    made, output = tiny
    predict(output, made.folder / "stage_2_images", tmp_path / "to")
    rows = rows_of(tmp_path / "to")
    assert list(rows.index) == made.test_ids
    body = records.read(output, artifacts.Submission("tiny").record)
    final, calibrated = (
        postprocess.Triplet(**body["final"]),
        Calibration(**body["calibration"]["final"]),
    )
    scores = artifacts.read_table(output, artifacts.Run("tiny").predictions).set_index("image_id")
    for image_id, shape in zip(made.test_ids, [(128, 128), ODD_SHAPE, (128, 128)], strict=True):
        stored = png.read(output / artifacts.Run("tiny").probability_map(artifacts.TEST, image_id))
        mask = postprocess.mask(stored, final, shape)
        row = rows.loc[image_id]
        assert row["p_positive"] == pytest.approx(float(calibrated(scores.at[image_id, "p_max"])))
        assert (row["height"], row["width"]) == shape
        np.testing.assert_array_equal(rle.decode(row["rle"], shape), mask)
        drawn = cv2.imread(str(tmp_path / "to" / results.mask(image_id)), cv2.IMREAD_UNCHANGED)
        np.testing.assert_array_equal(drawn, mask * 255)
        assert row["area_px"] == mask.sum()
        assert cv2.imread(str(tmp_path / "to" / results.overlay(image_id))).shape == (
            *shape,
            3,
        )
    assert rows["area_px"].iloc[0] > 0
    assert ids_of_the_page(tmp_path / "to") == made.test_ids
    assert rejected_of(tmp_path / "to") == {}
    printed = capsys.readouterr().out
    assert f"3 images, {(rows['area_px'] > 0).sum()} with a predicted pneumothorax" in printed
    assert "not a medical device" in printed
    assert "trained on" not in printed


def test_training_images_among_the_radiographs_are_counted(tiny, tmp_path, capsys):
    made, output = tiny
    folder = tmp_path / "radiographs"
    folder.mkdir()
    for image_id in [*list(made.masks)[:2], made.test_ids[0]]:
        shutil.copy(next(made.folder.rglob(f"{image_id}.dcm")), folder)
    predict(output, folder, tmp_path / "to")
    assert "note: the networks were trained on 2 of these images" in capsys.readouterr().out


def test_an_inverted_twin_in_monochrome1_gets_the_same_mask(tiny, tmp_path):
    made, output = tiny
    image = dicom.read(made.folder / "stage_2_images" / f"{made.test_ids[0]}.dcm").image
    write_dicom(tmp_path / "in" / "light.dcm", image, SOPInstanceUID="1.2.1")
    dark = {"SOPInstanceUID": "1.2.2", "PhotometricInterpretation": "MONOCHROME1"}
    write_dicom(tmp_path / "in" / "deep" / "IM1", 255 - image, **dark)
    (tmp_path / "in" / "notes.txt").write_text("no DICOM")
    shutil.copy(tmp_path / "in" / "light.dcm", tmp_path / "in" / "DICOMDIR")
    predict(output, tmp_path / "in", tmp_path / "to", "--dicom-seg")
    rows = rows_of(tmp_path / "to")
    assert rows["source"].to_dict() == {"1.2.2": "deep/IM1", "1.2.1": "light.dcm"}
    assert rows["area_px"].min() > 0
    assert rows["rle"].nunique() == 1
    for image_id in rows.index:
        seg = pydicom.dcmread(tmp_path / "to" / results.segmentation(image_id))
        np.testing.assert_array_equal(
            seg.pixel_array, rle.decode(rows.at["1.2.1", "rle"], (128, 128))
        )
        reference = seg.ReferencedSeriesSequence[0].ReferencedInstanceSequence[0]
        assert reference.ReferencedSOPInstanceUID == image_id


def test_a_large_16_bit_radiograph_gets_a_mask_of_the_same_size(tiny, tmp_path):
    _, output = tiny
    large = cv2.resize(noise(3), (2000, 2400)).astype(np.uint16) * 257
    path = write_dicom(tmp_path / "large.dcm", large)
    predict(output, path, tmp_path / "to", "--dicom-seg")
    mask = cv2.imread(str(tmp_path / "to" / results.mask("large")), cv2.IMREAD_UNCHANGED)
    assert mask.shape == (2400, 2000)
    row = rows_of(tmp_path / "to").loc["large"]
    np.testing.assert_array_equal(rle.decode(row["rle"], (2400, 2000)) * 255, mask)
    assert row["source"] == "large.dcm"
    seg = pydicom.dcmread(tmp_path / "to" / results.segmentation("large"))
    np.testing.assert_array_equal(seg.pixel_array * 255, mask)


def test_tables_are_written_to_the_byte_as_pandas_writes_them(tmp_path):
    texts = ["plain", "a,b", 'say "x"', "", " space ", "é", "two\nlines", "1.20"]
    numbers = [0.1 + 0.2, 1e-7, 12.0, 1e16, 0.0, -0.0, 1 / 3, 123456.78]
    table = artifacts.Table("table.csv", ("text", "number", "maybe", "whole"), "nobody")
    rows = [
        {"text": text, "number": number, "maybe": number if whole % 2 else "", "whole": whole}
        for whole, (text, number) in enumerate(zip(texts, numbers, strict=True))
    ]
    for some in (rows, [], rows[:1]):
        frame = pd.DataFrame(some, columns=list(table.columns))
        expected = artifacts.write_table(tmp_path / "pandas", table, frame).read_bytes()
        assert artifacts.write_rows(tmp_path / "ours", table, some).read_bytes() == expected


def test_the_area_in_square_millimetres_names_the_tag_of_the_pixel_spacing(tiny, tmp_path):
    made, output = tiny
    image = dicom.read(made.folder / "stage_2_images" / f"{made.test_ids[0]}.dcm").image
    spacings = {
        "patient": {"PixelSpacing": [0.5, 0.25], "ImagerPixelSpacing": [1, 1]},
        "detector": {"ImagerPixelSpacing": [2, 2]},
        "none": {},
        "empty": {"PixelSpacing": ""},
        "odd": {"PixelSpacing": [0, -1]},
    }
    for name, tags in spacings.items():
        write_dicom(tmp_path / "in" / f"{name}.dcm", image, **tags)
    predict(output, tmp_path / "in", tmp_path / "to")
    rows = rows_of(tmp_path / "to")
    area = rows.at["none", "area_px"]
    assert area > 0
    assert rows.at["patient", "area_mm2"] == pytest.approx(area / 8, abs=0.01)  # 0.5 * 0.25
    assert rows.at["detector", "area_mm2"] == pytest.approx(area * 4, abs=0.01)  # 2 * 2
    assert rows["spacing"].to_dict() == {
        "patient": "PixelSpacing",
        "detector": "ImagerPixelSpacing",
        **dict.fromkeys(("none", "empty", "odd"), ""),
    }
    assert rows.loc[["none", "empty", "odd"], "area_mm2"].isna().all()


# PNG and JPEG files


def save_png(path, image):
    path.parent.mkdir(parents=True, exist_ok=True)
    cv2.imwrite(str(path), image)
    return path


def test_the_png_twin_of_a_dicom_file_gets_the_same_mask_and_probability(tiny, tmp_path):
    made, output = tiny
    path = made.folder / "stage_2_images" / f"{made.test_ids[0]}.dcm"
    image = dicom.read(path).image
    write_dicom(tmp_path / "in" / "first.dcm", image, PixelSpacing=[0.5, 0.5])
    save_png(tmp_path / "in" / "deep" / "second.PNG", image)
    save_png(tmp_path / "in" / "third.png", cv2.merge([image.astype(np.uint16) * 257] * 3))
    predict(output, tmp_path / "in", tmp_path / "to")
    rows = rows_of(tmp_path / "to")
    sources = {"first": "first.dcm", "second": "deep/second.PNG", "third": "third.png"}
    assert rows["source"].to_dict() == sources
    assert rows["area_px"].min() > 0
    assert rows["rle"].nunique() == rows["p_positive"].nunique() == 1
    assert rows["spacing"].to_dict() == {"first": "PixelSpacing", "second": "", "third": ""}
    assert rows["area_mm2"].isna().to_dict() == {"first": False, "second": True, "third": True}
    masks, overlays = (
        [(tmp_path / "to" / kind(name)).read_bytes() for name in sources]
        for kind in (results.mask, results.overlay)
    )
    assert len(set(masks)) == len(set(overlays)) == 1
    predict(output, tmp_path / "in" / "deep" / "second.PNG", tmp_path / "alone")
    assert rows_of(tmp_path / "alone")["rle"].to_dict() == {"second": rows.at["first", "rle"]}


def test_a_jpeg_is_predicted_as_it_is_shown(tiny, tmp_path):
    made, output = tiny
    path = made.folder / "stage_2_images" / f"{made.test_ids[0]}.dcm"
    exif = Image.Exif()
    exif[0x0112] = 6  # to be turned clockwise
    turned = Image.fromarray(np.rot90(dicom.read(path).image))  # anticlockwise
    (tmp_path / "in").mkdir()
    turned.save(tmp_path / "in" / "photo.jpeg", quality=100, exif=exif.tobytes())
    predict(output, tmp_path / "in", tmp_path / "to")
    predict(output, path, tmp_path / "dicom")
    mask, expected = (
        rle.decode(rows_of(folder)["rle"].iloc[0], (128, 128)).astype(bool)
        for folder in (tmp_path / "to", tmp_path / "dicom")
    )
    assert expected.any()
    assert (mask & expected).sum() > 0.9 * (mask | expected).sum()


def test_bad_files_beside_good_ones_are_listed_whatever_their_kind(tiny, tmp_path):
    _, output = tiny
    folder = tmp_path / "in"
    radiograph(folder, "good")
    save_png(folder / "fine.png", noise(2))
    cut = save_png(folder / "cut.png", noise(3))
    cut.write_bytes(cut.read_bytes()[:-30])
    (folder / "good.jpg").write_text("text")  # shares an id, but is no image
    save_png(folder / "a b.png", noise(4))
    (folder / "folder.png").mkdir()
    radiograph(folder, "twice", 5)
    save_png(folder / "twice.png", noise(5))
    save_png(folder / "FINE2.png", noise(6))
    save_png(folder / "deep" / "FINE2.png", noise(6))
    with pytest.raises(BadInput, match=r"good\.jpg: NOT_AN_IMAGE"):
        predict(output, folder, tmp_path / "to")
    assert rejected_of(tmp_path / "to") == {
        "cut.png": "TRUNCATED",
        "good.jpg": "NOT_AN_IMAGE",
        "a b.png": "BAD_ID",
        "folder.png": "NOT_A_FILE",
        "twice.dcm": "DUPLICATE_ID",
        "twice.png": "DUPLICATE_ID",
    }
    assert sorted(rows_of(tmp_path / "to").index) == ["FINE2", "fine", "good"]


def test_a_png_gets_all_results_but_a_segmentation_object(tiny, tmp_path):
    _, output = tiny
    radiograph(tmp_path / "in", "a")
    save_png(tmp_path / "in" / "b.png", noise(2))
    note = r"b\.png: BAD_HEADER: no segmentation object: a PNG or JPEG file names no patient"
    with pytest.raises(BadInput, match=note):
        predict(output, tmp_path / "in", tmp_path / "to", "--dicom-seg")
    assert list(rows_of(tmp_path / "to").index) == ["a", "b"]
    assert (tmp_path / "to" / results.mask("b")).exists()
    assert [path.name for path in (tmp_path / "to" / "segmentations").iterdir()] == ["a.dcm"]


# What is not a radiograph; networks that never saw one

OTHERS = {"slice.dcm": "Modality CT", "capture.dcm": "Modality OT"}


def radiographs_and_others(folder):
    radiograph(folder, "chest")
    save_png(folder / "plain.png", noise(2))
    radiograph(folder, "slice", 3, Modality="CT")
    radiograph(folder, "capture", 4, Modality="OT")
    return folder


def test_files_that_are_not_radiographs_are_warned_about_and_marked(tiny, tmp_path, capsys):
    _, output = tiny
    for _ in range(2):  # the same from the journal
        predict(output, radiographs_and_others(tmp_path / "in"), tmp_path / "to")
        rows = rows_of(tmp_path / "to")
        assert rows["not_a_radiograph"].to_dict() == {
            "chest": "",
            "plain": "",
            "slice": "Modality CT",
            "capture": "Modality OT",
        }
        printed = capsys.readouterr().out
        assert "warning: 2 of 4 files are not radiographs according to the header" in printed
        assert "--only-radiographs" in printed
        assert all(f"\n  {name}: {reason}\n" in printed for name, reason in OTHERS.items())


def test_only_radiographs_are_predicted_on_request(tiny, tmp_path, capsys):
    _, output = tiny
    folder = radiographs_and_others(tmp_path / "in")
    with pytest.raises(BadInput, match=r"slice\.dcm: NOT_A_RADIOGRAPH: Modality CT"):
        predict(output, folder, tmp_path / "to", "--only-radiographs")
    assert rejected_of(tmp_path / "to") == dict.fromkeys(OTHERS, "NOT_A_RADIOGRAPH")
    assert sorted(rows_of(tmp_path / "to").index) == ["chest", "plain"]
    assert not (tmp_path / "to" / results.overlay("slice")).exists()
    assert "warning" not in capsys.readouterr().out
    with pytest.raises(BadInput, match="1 of 1 file rejected"):
        predict(output, folder / "slice.dcm", tmp_path / "alone", "--only-radiographs")
    assert rows_of(tmp_path / "alone").empty


@pytest.fixture
def on_phantoms(tiny):
    """The output of the run, one of whose folds says that it was trained on phantoms."""
    _, output = tiny
    path = output / artifacts.Run("tiny").fold(1).trained.path
    good = path.read_text("utf-8")
    path.write_text(json.dumps(resealed({**json.loads(good), "phantoms": True})), "utf-8")
    yield output
    path.write_text(good, "utf-8")


def test_networks_trained_on_phantoms_say_so_everywhere(on_phantoms, tmp_path, capsys):
    radiograph(tmp_path / "in", "a")
    save_png(tmp_path / "in" / "b.png", noise(2))
    with pytest.raises(BadInput, match=r"b\.png: BAD_HEADER: no segmentation object"):
        predict(on_phantoms, tmp_path / "in", tmp_path / "to", "--dicom-seg")
    assert "warning: the networks of tiny were trained on phantoms" in capsys.readouterr().out
    assert rows_of(tmp_path / "to")["trained_on"].to_dict() == {"a": "phantoms", "b": "phantoms"}
    for name, image in (("a", noise(1)), ("b", noise(2))):
        drawn = cv2.imread(str(tmp_path / "to" / results.overlay(name)))
        mask = cv2.imread(str(tmp_path / "to" / results.mask(name)), cv2.IMREAD_GRAYSCALE) // 255
        expected = overlay.draw(image, mask, caution="TRAINED ON PHANTOMS")
        np.testing.assert_array_equal(drawn, expected)
        assert (drawn != overlay.draw(image, mask)).any()
    page = (tmp_path / "to" / results.PAGE).read_text("utf-8")
    assert '<p class="caution">Warning: the networks of tiny were trained on phantoms' in page
    seg = pydicom.dcmread(tmp_path / "to" / results.segmentation("a"))
    assert seg.SeriesDescription == "Networks trained on phantoms: not for patients"


def test_results_are_made_again_once_networks_were_not_trained_on_phantoms(on_phantoms, tmp_path):
    radiograph(tmp_path / "in", "a")
    predict(on_phantoms, tmp_path / "in", tmp_path / "to")
    path = on_phantoms / artifacts.Run("tiny").fold(1).trained.path
    path.write_text(json.dumps(resealed({**json.loads(path.read_text()), "phantoms": False})))
    predict(on_phantoms, tmp_path / "in", tmp_path / "to")
    assert rows_of(tmp_path / "to")["trained_on"].to_dict() == {"a": "radiographs"}


def test_a_radiograph_without_sop_instance_uid_is_predicted_under_the_id_of_its_file_meta(
    tiny, tmp_path
):
    _, output = tiny
    path = tmp_path / "in" / "chest.dicom"
    write_dicom(
        path,
        noise(1),
        SOPInstanceUID=None,
        Modality=None,
        file_meta={"MediaStorageSOPInstanceUID": "7ecd6f67f649f26c"},
    )
    predict(output, tmp_path / "in", tmp_path / "to", "--dicom-seg", "--only-radiographs")
    assert rows_of(tmp_path / "to")["source"].to_dict() == {"7ecd6f67f649f26c": "chest.dicom"}
    with pydicom.config.disable_value_validation():
        seg = pydicom.dcmread(tmp_path / "to" / results.segmentation("7ecd6f67f649f26c"))
        [image] = seg.ReferencedSeriesSequence[0].ReferencedInstanceSequence
        assert image.ReferencedSOPInstanceUID == "7ecd6f67f649f26c"


# What is left out


def test_the_masks_of_a_data_set_are_left_out_and_mentioned(tiny, tmp_path, capsys):
    _, output = tiny
    for name in ("a", "b"):
        save_png(tmp_path / "in" / "png_images" / f"{name}.png", noise(1))
        save_png(tmp_path / "in" / "png_masks" / f"{name}.png", 255 * disc(128, 60, 60, 20))
    predict(output, tmp_path / "in", tmp_path / "to")
    assert rows_of(tmp_path / "to")["source"].tolist() == [
        "png_images/a.png",
        "png_images/b.png",
    ]
    folder = tmp_path / "in" / "png_masks"
    note = f"not predicted: 2 files in {folder}, named and coloured as masks"
    assert note in capsys.readouterr().out.splitlines()


def test_radiographs_beside_masks_are_predicted(tmp_path):
    path = radiograph(tmp_path / "labelled", "a", 1)
    save_png(tmp_path / "labelled" / "a_mask.png", 255 * disc(128, 60, 60, 20))
    assert [file.path for file in reading.search(tmp_path).files] == [path]
    path.unlink()
    with pytest.raises(BadInput, match=r"look like masks: to predict one .* give .*a_mask\.png"):
        reading.search(tmp_path)


def test_links_are_mentioned_and_followed_when_asked(tiny, tmp_path, capsys):
    _, output = tiny
    radiograph(tmp_path / "in", "a", 1)
    radiograph(tmp_path / "elsewhere", "b", 2)
    (tmp_path / "in" / "study").symlink_to(tmp_path / "elsewhere")
    predict(output, tmp_path / "in", tmp_path / "to")
    assert list(rows_of(tmp_path / "to").index) == ["a"]
    note = "1 link is not followed (--follow-symlinks also reads links): study"
    assert note in capsys.readouterr().out.splitlines()
    predict(output, tmp_path / "in", tmp_path / "to", "--follow-symlinks")
    assert list(rows_of(tmp_path / "to").index) == ["a", "b"]


# Bad files, copies, repeated calls


def test_bad_files_are_listed_once_the_good_ones_are_done_and_no_name_leaks(tiny, tmp_path, capsys):
    _, output = tiny
    folder = tmp_path / "in"
    person = {"PatientName": "Doe^Jane", "PatientID": "MRN4711", "PatientBirthDate": "19500102"}
    radiograph(folder, "good", **person)
    radiograph(folder, "nowhere", 2, SOPClassUID=None, **person)
    radiograph(folder, "cut", 3, jpeg=True, **person)
    data = (folder / "cut.dcm").read_bytes()
    (folder / "cut.dcm").write_bytes(data[: len(data) - 200])
    (folder / "text.dcm").write_text("no DICOM")
    radiograph(folder, "evil", 4, SOPInstanceUID="../../evil", **person)
    with pytest.raises(BadInput, match=r"text\.dcm: NOT_DICOM") as caught:
        predict(output, folder, tmp_path / "to", "--dicom-seg")
    codes = {
        "cut.dcm": "TRUNCATED",
        "text.dcm": "NOT_DICOM",
        "evil.dcm": "BAD_ID",
        "nowhere.dcm": "BAD_HEADER",
    }
    assert rejected_of(tmp_path / "to") == codes
    assert list(rows_of(tmp_path / "to").index) == ["good", "nowhere"]
    assert (tmp_path / "to" / results.segmentation("good")).exists()
    assert not (tmp_path / "to" / results.segmentation("nowhere")).exists()
    assert "nowhere.dcm: BAD_HEADER: no segmentation object: the file has no SOPClassUID" in str(
        caught.value
    )
    assert not list(tmp_path.rglob("evil.png"))
    printed = "".join(capsys.readouterr()) + str(caught.value)
    for path in (tmp_path / "to").rglob("*"):
        if path.is_file() and path.suffix != ".dcm":
            printed += path.read_bytes().decode("latin-1")
    assert not [word for word in ("Doe", "Jane", "MRN4711", "19500102") if word in printed]


def test_an_id_of_several_files_is_predicted_once_or_not_at_all(tiny, tmp_path, capsys):
    _, output = tiny
    folder = tmp_path / "in"
    radiograph(folder, "same")
    shutil.copy(folder / "same.dcm", folder / "copy.dcm")
    radiograph(folder, "one", 2, SOPInstanceUID="twice")
    radiograph(folder, "two", 3, SOPInstanceUID="twice")
    radiograph(folder, "a", 4, SOPInstanceUID="case")
    radiograph(folder, "b", 5, SOPInstanceUID="CASE")
    write_dicom(folder / "dark.dcm", noise(6).astype(np.uint16) * 16)  # 12 bits, declared as 16
    with pytest.raises(BadInput, match="2 files with different contents have the id twice"):
        predict(output, folder, tmp_path / "to")
    expected = {
        "one.dcm": "DUPLICATE_ID",
        "two.dcm": "DUPLICATE_ID",
        "a.dcm": "BAD_ID",
        "b.dcm": "BAD_ID",
    }
    assert rejected_of(tmp_path / "to") == expected
    assert list(rows_of(tmp_path / "to").index) == ["same", "dark"]
    printed = capsys.readouterr().out
    assert "1 file is a copy of another" in printed
    assert "1 image uses less than a tenth of the grey range (warning)" in printed
    assert "nearly black, white or grey: dark.dcm\n" in printed


def test_files_that_vanish_change_or_cannot_be_read_are_listed(
    tiny, networks, tmp_path, monkeypatch
):
    _, output = tiny
    path = radiograph(tmp_path / "in", "a")
    assert discovery.begins_as_dicom(tmp_path / "in" / "gone")  # only reading it can tell
    replaced = reading.Listed(files=[reading.RadiographFile(path, "b.dcm", "b", "hash")])
    run = settled.read(output, "tiny")
    task = predicting.FolderTask(tmp_path / "to", run, False, 2, PRECISION)
    assert predicting.predict(replaced, task, lambda: [networks]) == []
    assert replaced.rejected == [
        {"source": "b.dcm", "code": "IO", "message": "the file changed while it was read"}
    ]

    def vanished(path):
        raise FileNotFoundError(2, "No such file or directory")

    monkeypatch.setattr(records, "sha256", vanished)
    listed = reading.search(tmp_path / "in")
    assert [entry["code"] for entry in listed.rejected] == ["IO"]
    assert listed.files == []


def two_batches(tiny, tmp_path):
    """Arguments of `predict` for three images, two at a time."""
    made, output = tiny
    flags = ("--dicom-seg", "--batch-size", 2)
    return output, made.folder / "stage_2_images", tmp_path / "to", *flags


def test_the_same_command_again_rewrites_no_result_and_needs_no_network(
    tiny, tmp_path, monkeypatch
):
    command = two_batches(tiny, tmp_path)
    predict(*command)
    before = contents(tmp_path / "to")
    monkeypatch.setattr(probability_maps, "probabilities", None)
    predict(*command)
    after = contents(tmp_path / "to")
    rewritten = {name for name in after if after[name] != before.get(name)}
    assert rewritten == {"predictions.csv", "rejected.csv", "index.html"}
    assert bytes_of(tmp_path / "to") == {name: data for name, (data, _) in before.items()}


def test_networks_predict_again_only_when_a_rejected_radiograph_can_be_decoded(
    tiny, tmp_path, monkeypatch
):
    _, output = tiny
    folder = tmp_path / "in"
    radiograph(folder, "a", 1)
    radiograph(folder, "b", 2, PhotometricInterpretation="HSV")
    with pytest.raises(BadInput, match="1 of 2 files rejected"):
        predict(output, folder, tmp_path / "to")
    with monkeypatch.context() as asleep:
        asleep.setattr(probability_maps, "probabilities", None)
        with pytest.raises(BadInput, match="1 of 2 files rejected"):
            predict(output, folder, tmp_path / "to")
    assert list(rows_of(tmp_path / "to").index) == ["a"]
    radiograph(folder, "b", 2)
    predict(output, folder, tmp_path / "to")
    assert list(rows_of(tmp_path / "to").index) == ["a", "b"]


def test_a_killed_call_resumes_to_the_bytes_of_an_undisturbed_one(tiny, tmp_path):
    made, _ = tiny
    command = two_batches(tiny, tmp_path)
    predict(*command)
    undisturbed = bytes_of(tmp_path / "to")
    predict(*command, "--overwrite")  # from scratch, segmentation objects included
    assert bytes_of(tmp_path / "to") == undisturbed

    journal = tmp_path / "to" / results.JOURNAL
    journal.write_text("".join(journal.read_text("utf-8").splitlines(keepends=True)[:2]), "utf-8")
    for kind in (results.mask, results.overlay):  # of the second batch
        (tmp_path / "to" / kind(made.test_ids[2])).write_bytes(b"half")
    (tmp_path / "to" / results.segmentation(made.test_ids[2])).unlink()
    (tmp_path / "to" / results.mask(made.test_ids[0])).write_bytes(b"damaged since")
    (tmp_path / "to" / "predictions.csv").unlink()
    (tmp_path / "to" / "masks" / ".x.png.0.tmp").write_bytes(b"half")
    predict(*command)
    assert bytes_of(tmp_path / "to") == undisturbed


def test_results_are_made_again_when_any_of_their_inputs_changes(tiny, tmp_path, monkeypatch):
    _, output = tiny
    run = settled.read(output, "tiny")
    task = predicting.FolderTask(tmp_path, run, False, 2, "fp32")
    file = reading.RadiographFile(tmp_path / "a", "a", "a", "hash")
    keys = {
        task.key(file),
        task.key(replace(file, source="b/a")),
        task.key(replace(file, sha256="other")),
        replace(task, computed_in="bf16").key(file),
        replace(task, with_segmentation=True).key(file),
        replace(task, settled=replace(run, version="other")).key(file),
    }
    assert len(keys) == 6
    assert replace(task, batch_size=3).key(file) in keys

    body, prepared = lineage.submitted(output, "tiny"), lineage.prepared(output)
    predicted = records.read(output, artifacts.Run("tiny").predicted)
    monkeypatch.setattr(lineage, "submitted", lambda *_: body)
    monkeypatch.setattr(lineage, "prepared", lambda *_: prepared)
    read = records.read
    monkeypatch.setattr(
        records,
        "read",
        lambda *at: predicted if at[1].path.endswith("predictions.json") else read(*at),
    )
    assert settled.read(output, "tiny").version == run.version
    versions = {run.version}
    for change in (
        {"body": {**body, "final": {**body["final"], "top": 0.987, "bottom": 0.1}}},
        {"body": {**body, "calibration": {"final": {"slope": 9.0, "intercept": 1.0}}}},
        {"prepared": {**prepared, "settings": {"size": 77}}},
        {"predicted": {**predicted, "inputs": dict.fromkeys(predicted["inputs"], "other")}},
    ):
        monkeypatch.setattr(lineage, "submitted", lambda *_, now=change: now.get("body", body))
        monkeypatch.setattr(
            lineage, "prepared", lambda *_, now=change: now.get("prepared", prepared)
        )
        stored = change.get("predicted", predicted)
        monkeypatch.setattr(
            records,
            "read",
            lambda *at, now=stored: now if at[1].path.endswith("predictions.json") else read(*at),
        )
        versions.add(settled.read(output, "tiny").version)
    assert len(versions) == 5


def test_without_dicom_seg_the_object_of_an_earlier_call_is_removed(tiny, tmp_path):
    made, output = tiny
    path = made.folder / "stage_2_images" / f"{made.test_ids[0]}.dcm"
    predict(output, path, tmp_path / "to", "--dicom-seg")
    assert (tmp_path / "to" / results.segmentation(made.test_ids[0])).exists()
    predict(output, path, tmp_path / "to")
    assert not list((tmp_path / "to" / "segmentations").iterdir())


def test_overwrite_removes_results_of_earlier_calls_and_no_other_files(tiny, tmp_path, capsys):
    _, output = tiny
    first, second = radiograph(tmp_path / "in", "first"), radiograph(tmp_path / "in", "second", 2)
    folder = tmp_path / "to"
    predict(output, first, folder)
    (folder / "masks" / "mine.png").write_bytes(b"mine")
    predict(output, second, folder)
    assert "also holds 1 image of earlier calls" in capsys.readouterr().out
    assert list(rows_of(folder).index) == ids_of_the_page(folder) == ["second"]
    assert (folder / results.mask("first")).exists()
    predict(output, second, folder, "--overwrite")
    assert [path.name for path in (folder / "radiographs").iterdir()] == ["second.jpg"]
    assert {path.name for path in (folder / "masks").iterdir()} == {"second.png", "mine.png"}


def test_no_journal_makes_overwrite_delete_files_outside_the_folder(tiny, tmp_path):
    _, output = tiny
    path = radiograph(tmp_path / "in", "a")
    predict(output, path, tmp_path / "to")
    (tmp_path / "mine.txt").write_text("mine")
    with journal.Journal(tmp_path / "to" / results.JOURNAL) as entries:
        entries.append(
            "b",
            {**entries.entries["a"], "files": {"../mine.txt": "", str(tmp_path / "mine.txt"): ""}},
        )
    predict(output, path, tmp_path / "to", "--overwrite")
    assert (tmp_path / "mine.txt").read_text() == "mine"


def test_run_lengths_that_do_not_decode_to_their_mask_are_never_written(
    tiny, tmp_path, monkeypatch
):
    _, output = tiny
    path = radiograph(tmp_path / "in", "a")
    monkeypatch.setattr(rle, "encode", lambda mask: "0 1")
    with pytest.raises(RuntimeError, match="do not decode to the mask"):
        predict(output, path, tmp_path / "to")
    assert not (tmp_path / "to" / results.PREDICTIONS.path).exists()


@pytest.mark.parametrize("flags", [(), ("--overwrite",)])
@pytest.mark.parametrize(
    "entry", [{}, {"key": "another version's"}, {"files": {"../outside": "", "masks/old.png": ""}}]
)
def test_a_journal_of_another_version_is_harmless(tiny, tmp_path, entry, flags):
    made, output = tiny
    (tmp_path / "outside").write_text("not ours")
    (tmp_path / "to" / "masks").mkdir(parents=True)
    (tmp_path / "to" / "masks" / "old.png").write_text("an earlier result")
    with journal.Journal(tmp_path / "to" / results.JOURNAL) as earlier:
        earlier.append(made.test_ids[0], entry)
    predict(
        output, made.folder / "stage_2_images" / f"{made.test_ids[0]}.dcm", tmp_path / "to", *flags
    )
    assert list(rows_of(tmp_path / "to").index) == [made.test_ids[0]]
    assert (tmp_path / "outside").exists()
    assert (tmp_path / "to" / "masks" / "old.png").exists() == ("files" not in entry)


def test_a_folder_in_use_is_refused(tiny, tmp_path):
    _, output = tiny
    path = radiograph(tmp_path / "in", "a")
    with locks.lock(tmp_path / "to", "predict_radiographs"), pytest.raises(OutputLocked):
        predict(output, path, tmp_path / "to")


def test_on_a_disk_without_locks_no_lock_replaces_that_of_a_process_elsewhere(
    tiny, tmp_path, without_locks
):
    without_locks(errno.ENOLCK)
    _, output = tiny
    path = radiograph(tmp_path / "in", "a")
    marker = tmp_path / "to" / ".locks" / "predict_radiographs.lock.marker"
    marker.parent.mkdir(parents=True)
    marker.write_text("1\nelsewhere\n")
    with pytest.raises(OutputLocked, match="add --no-lock"):
        predict(output, path, tmp_path / "to")
    predict(output, path, tmp_path / "to", "--no-lock")
    assert list(rows_of(tmp_path / "to").index) == ["a"]
    assert not marker.exists()


# Usage errors and bad input


def test_a_run_without_thresholds_names_the_command(tiny, tmp_path):
    _, output = tiny
    path = radiograph(tmp_path / "in", "a")
    with pytest.raises(BadInput, match=r"python 04_submit\.py --run other"):
        predict(output, path, tmp_path / "to", "--run", "other")
    assert not (tmp_path / "to").exists()


def test_a_submission_of_one_run_may_have_a_name_of_its_own(tiny, tmp_path):
    made, output = tiny
    run_stage("04_submit.py", "--run", "tiny", "--name", "strict", "--output", output)
    images = made.folder / "stage_2_images"
    predict(output, images, tmp_path / "strict", "--run", "strict")
    ours = rows_of(tmp_path / "strict")
    assert len(ours) == len(made.test_ids)
    with pytest.raises(BadInput, match=r"04_submit\.py --run absent"):
        predict(output, images, tmp_path / "absent", "--run", "absent")


@pytest.mark.parametrize(
    "change, message",
    [
        ({"final": {"top": 0.1, "min_area": 0, "bottom": 0.5}}, "is damaged"),
        ({"final": None}, "is damaged"),
        ({"settings": {"runs": {"elsewhere": None}}}, "the thresholds of elsewhere"),
        ({"inputs": {}}, "changed since"),
    ],
)
def test_thresholds_that_are_damaged_or_out_of_date_are_refused(tiny, tmp_path, change, message):
    made, output = tiny
    path = output / artifacts.Submission("tiny").record.path
    good = path.read_text("utf-8")
    try:
        path.write_text(json.dumps(resealed({**json.loads(good), **change})), "utf-8")
        with pytest.raises(BadInput, match=message) as caught:
            predict(output, made.folder / "stage_2_images", tmp_path / "to")
    finally:
        path.write_text(good, "utf-8")
    assert "04_submit.py" in str(caught.value)


@pytest.mark.parametrize(
    "path, to, message",
    [
        ("absent", "to", "does not exist"),
        ("empty", "to", "holds no DICOM, PNG or JPEG file"),
        ("radiographs", "radiographs", "only read"),
        ("radiographs", "radiographs/deep/to", "only read"),
        ("radiographs/a.dcm", "radiographs", "only read"),
        ("radiographs", ".", "only read"),
        ("radiographs", "raw/to", "only read"),
        ("radiographs", "output", "own files"),
        ("radiographs", "output/runs/tiny/oof", "own files"),
        ("radiographs", "output/cache/64", "own files"),
        ("radiographs", "output/submissions/tiny", "own files"),
    ],
)
def test_folders_that_are_only_read_or_belong_to_stages_are_refused(
    tiny, tmp_path, path, to, message
):
    _, output = tiny
    radiograph(tmp_path / "radiographs", "a")
    (tmp_path / "empty").mkdir()
    where = (
        tmp_path / to
        if not to.startswith("output")
        else output / to.removeprefix("output").lstrip("/")
    )
    before = sorted(tmp_path.rglob("*"))
    with pytest.raises(BadInput, match=message):
        predict(output, tmp_path / path, where, "--input", tmp_path / "raw")
    assert sorted(tmp_path.rglob("*")) == before


@pytest.mark.parametrize(
    "flags, message",
    [
        (["radiographs"], "required: --to"),
        (["--to", "there"], "required: PATH"),
        (["radiographs", "--to", ""], "--to: is empty"),
        (["", "--to", "there"], "PATH: is empty"),
        (["radiographs", "--to", "there", "--run", "../tiny"], "--run must be"),
        (["radiographs", "--to", "there", "--batch-size", "0"], "--batch-size must be at least 1"),
        (["radiographs", "--to", "there", "--fold", "0"], "unrecognized arguments: --fold"),
    ],
)
def test_wrong_flags_are_usage_errors(capsys, flags, message):
    with pytest.raises(SystemExit) as caught:
        run_stage("predict_radiographs.py", *flags)
    assert caught.value.code == 2
    assert message in capsys.readouterr().err


def test_without_highdicom_only_dicom_seg_is_refused_with_the_install_command(
    tiny, tmp_path, monkeypatch, capsys
):
    made, output = tiny
    monkeypatch.setitem(sys.modules, "highdicom", None)
    path = made.folder / "stage_2_images" / f"{made.test_ids[0]}.dcm"
    with pytest.raises(SystemExit) as caught:
        predict(output, path, tmp_path / "to", "--dicom-seg")
    assert caught.value.code == 2
    assert "python -m pip install -r requirements-extra.txt" in capsys.readouterr().err
    predict(output, path, tmp_path / "to")
    assert list(rows_of(tmp_path / "to").index) == [made.test_ids[0]]


def test_real_stage_2_radiographs_get_masks_and_objects_with_their_ids(tiny, tmp_path, real_data):
    _, output = tiny
    radiographs = sorted((real_data / "siim" / "stage_2_images").rglob("*.dcm"))[:3]
    (tmp_path / "in").mkdir()
    for path in radiographs:
        shutil.copy(path, tmp_path / "in")
    predict(output, tmp_path / "in", tmp_path / "to", "--dicom-seg")
    rows = rows_of(tmp_path / "to")
    assert list(rows.index) == [path.stem for path in radiographs]
    assert (rows["spacing"] == "PixelSpacing").all()
    for path in radiographs:
        with pydicom.config.disable_value_validation():
            source = pydicom.dcmread(path)
            seg = pydicom.dcmread(tmp_path / "to" / results.segmentation(path.stem))
            [image] = seg.ReferencedSeriesSequence[0].ReferencedInstanceSequence
            assert image.ReferencedSOPInstanceUID == source.SOPInstanceUID == path.stem
            assert image.ReferencedSOPClassUID == source.SOPClassUID
        spacing = seg.SharedFunctionalGroupsSequence[0].PixelMeasuresSequence[0].PixelSpacing
        assert spacing == pytest.approx([float(value) for value in source.PixelSpacing])
        mask = rle.decode(rows.at[path.stem, "rle"], (1024, 1024))
        np.testing.assert_array_equal(seg.pixel_array, mask)
        row_mm, column_mm = (float(value) for value in source.PixelSpacing)
        assert rows.at[path.stem, "area_mm2"] == pytest.approx(
            mask.sum() * row_mm * column_mm, abs=0.01
        )
        assert pd.notna(rows.at[path.stem, "p_positive"])
