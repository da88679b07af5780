"""DICOM: the right grey values from the files we accept, a code for all others."""

import io
import os
import resource
import subprocess
import sys
from pathlib import Path

import cv2
import numpy as np
import pydicom
import pytest
from PIL import Image
from pydicom.dataset import Dataset
from pydicom.encaps import encapsulate, generate_frames
from pydicom.sequence import Sequence
from pydicom.uid import (
    MPEG2MPML,
    DeflatedExplicitVRLittleEndian,
    JPEG2000Lossless,
    JPEGBaseline8Bit,
    RLELossless,
)

from pneumothorax import dicom, pixels, png
from tests.helpers import bombs, memory
from tests.helpers.dicoms import encode_jpeg, jpeg_2000, write_dicom
from tests.helpers.images import disc, noise
from tests.helpers.stages import ROOT

BUNDLED_FOLDER = Path(pydicom.__file__).parent / "data" / "test_files"
BUNDLED = sorted(BUNDLED_FOLDER.glob("**/*.dcm"))
CODES = set(
    "NOT_DICOM TRUNCATED NO_PIXELS BAD_HEADER MULTI_FRAME UNSUPPORTED_SYNTAX TOO_LARGE "
    "BAD_ID NOT_A_FILE IO".split()
)
RAMP = np.arange(256, dtype=np.uint8).reshape(16, 16)


def bundled(name):
    return next(path for path in BUNDLED if path.name == name)


def code_of(path):
    """The code with which a file is rejected."""
    with pytest.raises(dicom.Rejected) as caught:
        dicom.read(path)
    return caught.value.code


def packed(frame):
    """One encoded frame as PixelData."""
    return encapsulate([frame + b"\0" * (len(frame) % 2)])


def stored_array(path):
    """The pixels as pydicom's `pixel_array` gives them."""
    return pydicom.dcmread(path).pixel_array


# Real files


def some_real_files(real_data, n):
    files = sorted((real_data / "siim").rglob("*.dcm"))
    return files[:: len(files) // n][:n]


def test_real_files_decode_as_with_pillow_and_pydicom_and_are_averaged_by_area(real_data):
    for path in some_real_files(real_data, 12):
        read = dicom.read(path)
        dataset = pydicom.dcmread(path)
        by_pillow = np.asarray(
            Image.open(io.BytesIO(next(generate_frames(dataset.PixelData, number_of_frames=1))))
        )
        np.testing.assert_array_equal(read.image, by_pillow)
        np.testing.assert_array_equal(read.image, dataset.pixel_array)
        cached = png.decode(png.encode(png.downsample(read.image, 512)), path)
        np.testing.assert_array_equal(
            cached, cv2.resize(by_pillow, (512, 512), interpolation=cv2.INTER_AREA)
        )
        # 1024 -> 512: a pixel is the mean of four, which OpenCV rounds.
        mean = by_pillow.reshape(512, 2, 512, 2).mean(axis=(1, 3))
        assert np.abs(cached - mean).max() <= 0.5


def test_a_real_files_monochrome1_twin_gives_the_same_image(real_data, tmp_path):
    for number, path in enumerate(some_real_files(real_data, 3)):
        stored = stored_array(path)
        twin = write_dicom(
            tmp_path / f"twin{number}.dcm", 255 - stored, PhotometricInterpretation="MONOCHROME1"
        )
        np.testing.assert_array_equal(dicom.read(twin).image, dicom.read(path).image)


# Grey values


def test_plain_8_bit_values_pass_unchanged(tmp_path):
    read = dicom.read(write_dicom(tmp_path / "a.dcm", RAMP))
    assert read.image.dtype == np.uint8
    assert read.image_id == "a"
    np.testing.assert_array_equal(read.image, RAMP)


def test_8_bit_values_are_not_stretched_to_the_range_of_the_image(tmp_path):
    image = np.array([[100, 101], [102, 103]], dtype=np.uint8)
    np.testing.assert_array_equal(dicom.read(write_dicom(tmp_path / "a.dcm", image)).image, image)


def test_a_monochrome1_jpeg_is_its_decoded_pixels_inverted(tmp_path):
    image = noise(3, 64)
    decoded = cv2.imdecode(np.frombuffer(encode_jpeg(image), np.uint8), cv2.IMREAD_UNCHANGED)
    light = write_dicom(tmp_path / "light.dcm", image, jpeg=True)
    dark = write_dicom(
        tmp_path / "dark.dcm", image, jpeg=True, PhotometricInterpretation="MONOCHROME1"
    )
    np.testing.assert_array_equal(dicom.read(light).image, decoded)
    np.testing.assert_array_equal(dicom.read(dark).image, 255 - decoded)


@pytest.mark.parametrize("bits", [10, 12, 14, 16])
def test_more_than_8_bits_are_scaled_by_the_full_stored_range(tmp_path, bits):
    top = 2**bits - 1
    stored = (
        np.linspace(0, top // 2, 400).astype(np.uint16).reshape(20, 20)
    )  # only the lower half is used
    expected = np.rint(stored * 255.0 / top)
    read = dicom.read(write_dicom(tmp_path / "a.dcm", stored, BitsStored=bits))
    np.testing.assert_array_equal(read.image, expected)
    twin = write_dicom(
        tmp_path / "b.dcm",
        (top - stored).astype(np.uint16),
        BitsStored=bits,
        PhotometricInterpretation="MONOCHROME1",
    )
    np.testing.assert_array_equal(dicom.read(twin).image, expected)


def test_signed_values_start_at_the_lowest_possible_one(tmp_path):
    stored = np.array([[-32768, -16384], [0, 32767]], dtype=np.int16)
    # (v + 32768) * 255 / 65535: 0, 63.75, 127.5019.., 255
    np.testing.assert_array_equal(
        dicom.read(write_dicom(tmp_path / "a.dcm", stored)).image, [[0, 64], [128, 255]]
    )


def test_signed_monochrome1_values_are_inverted_within_the_possible_range(tmp_path):
    stored = np.array([[-32768, -16384], [0, 32767]], dtype=np.int16)
    path = write_dicom(tmp_path / "a.dcm", stored, PhotometricInterpretation="MONOCHROME1")
    # The twin of v is -1 - v: 255 - 0, 255 - 63.75 = 191.25, 255 - 127.5019 = 127.498, 255 - 255
    np.testing.assert_array_equal(dicom.read(path).image, [[255, 191], [127, 0]])


def test_a_rescale_without_window_changes_nothing(tmp_path):
    stored = np.array([[0, 1000], [2000, 4095]], dtype=np.uint16)
    path = write_dicom(
        tmp_path / "a.dcm", stored, BitsStored=12, RescaleSlope=2, RescaleIntercept=-1000
    )
    # low..high is -1000..7190: (2 * 1000) * 255 / 8190 = 62.27, (2 * 2000) * 255 / 8190 = 124.54
    np.testing.assert_array_equal(dicom.read(path).image, [[0, 62], [125, 255]])


def test_a_window_is_applied_after_the_rescale(tmp_path):
    stored = np.array([[0, 400, 500], [600, 700, 4095]], dtype=np.uint16)
    tags = {
        "BitsStored": 12,
        "RescaleSlope": 2,
        "RescaleIntercept": -100,
        "WindowCenter": 1100,
        "WindowWidth": 401,
    }
    # Rescaled: -100, 700, 900, 1100, 1300, 8090.
    # PS3.3 C.11.2.1.2, (x - 1099.5) / 400 + 0.5, clipped: 0, 0, 0.00125, 0.50125, 1, 1.
    # Times 255: 0, 0, 0.3, 127.8, 255, 255.
    expected = [[0, 0, 0], [128, 255, 255]]
    np.testing.assert_array_equal(
        dicom.read(write_dicom(tmp_path / "a.dcm", stored, **tags)).image, expected
    )


def test_an_8_bit_window_is_applied_too(tmp_path):
    path = write_dicom(tmp_path / "a.dcm", RAMP, WindowCenter=128, WindowWidth=2)
    # w = 2: x <= 127 is 0, x > 128 is 255, linear between: 128 -> (128 - 127.5) / 1 + 0.5 = 1
    np.testing.assert_array_equal(dicom.read(path).image, np.where(RAMP <= 127, 0, 255))


def test_a_windowed_monochrome1_file_and_its_twin_give_the_same_image(tmp_path):
    stored = np.random.default_rng(0).integers(0, 4096, (32, 32), dtype=np.uint16)
    light = write_dicom(
        tmp_path / "a.dcm", stored, BitsStored=12, WindowCenter=1500, WindowWidth=1001
    )
    # The twin's values are 4095 - v, so the window's centre c - 0.5 moves to 4095 - (c - 0.5):
    # c' = 4096 - c.
    tags = {
        "BitsStored": 12,
        "WindowCenter": 2596,
        "WindowWidth": 1001,
        "PhotometricInterpretation": "MONOCHROME1",
    }
    dark = write_dicom(tmp_path / "b.dcm", 4095 - stored, **tags)
    np.testing.assert_array_equal(dicom.read(light).image, dicom.read(dark).image)
    assert (
        100 < dicom.read(light).image.mean() < 200
    )  # the window is in the middle of the noise: the image is neither black nor white


def test_of_several_windows_the_first_is_used(tmp_path):
    one = write_dicom(tmp_path / "a.dcm", RAMP, WindowCenter=100, WindowWidth=50)
    two = write_dicom(tmp_path / "b.dcm", RAMP, WindowCenter=[100, 200], WindowWidth=[50, 10])
    np.testing.assert_array_equal(dicom.read(two).image, dicom.read(one).image)


def test_a_decimal_comma_is_read_as_a_point(tmp_path):
    path = write_dicom(tmp_path / "a.dcm", RAMP, WindowCenter="100.5", WindowWidth="50.25")
    expected = dicom.read(path).image
    path.write_bytes(path.read_bytes().replace(b"100.5", b"100,5").replace(b"50.25", b"50,25"))
    np.testing.assert_array_equal(dicom.read(path).image, expected)
    path = write_dicom(tmp_path / "b.dcm", RAMP, PixelSpacing=["0.125", "0.250"])
    path.write_bytes(path.read_bytes().replace(b"0.125", b"0,125").replace(b"0.250", b"0,250"))
    _, dataset = dicom.open_header(path)
    assert dicom.pixel_area_mm2(dataset) == (0.03125, "PixelSpacing")


@pytest.mark.parametrize(
    "tags", [{"WindowCenter": 100, "WindowWidth": 0}, {"WindowCenter": 100}, {"WindowWidth": 100}]
)
def test_half_a_window_or_one_of_width_0_is_rejected_or_ignored_and_never_a_crash(tmp_path, tags):
    path = write_dicom(tmp_path / "a.dcm", RAMP, **tags)
    try:
        np.testing.assert_array_equal(dicom.read(path).image, RAMP)
    except dicom.Rejected as error:
        assert error.code == "BAD_HEADER"


def test_a_voi_table_is_looked_up(tmp_path):
    item = Dataset()
    item.LUTDescriptor = [256, 0, 8]
    item.add_new("LUTData", "US", list(range(255, -1, -1)))  # inverts
    path = write_dicom(tmp_path / "a.dcm", RAMP, VOILUTSequence=Sequence([item]))
    np.testing.assert_array_equal(dicom.read(path).image, 255 - RAMP)
    # A window takes precedence over the table.
    both = write_dicom(
        tmp_path / "b.dcm", RAMP, VOILUTSequence=Sequence([item]), WindowCenter=128, WindowWidth=2
    )
    np.testing.assert_array_equal(dicom.read(both).image, np.where(RAMP <= 127, 0, 255))


@pytest.mark.parametrize(("name", "bits"), [("ModalityLUTSequence", 16), ("VOILUTSequence", 12)])
def test_a_table_of_more_than_8_bits_is_scaled_by_the_range_of_its_entries(tmp_path, name, bits):
    item = Dataset()
    item.LUTDescriptor = [256, 0, bits]
    step = 2**bits // 256
    item.add_new("LUTData", "US", list(range(0, 2**bits, step)))
    path = write_dicom(tmp_path / "a.dcm", RAMP, **{name: Sequence([item])})
    np.testing.assert_array_equal(
        dicom.read(path).image, np.rint(RAMP * (step * 255.0) / (2**bits - 1))
    )


def test_a_negative_rescale_slope_inverts(tmp_path):
    path = write_dicom(tmp_path / "a.dcm", RAMP, RescaleSlope=-1, RescaleIntercept=1024)
    # 1024 - v, from 769 to 1024
    np.testing.assert_array_equal(dicom.read(path).image, 255 - RAMP)


def test_7_bits_stored_in_8_are_scaled_by_7_bits(tmp_path):
    path = write_dicom(tmp_path / "a.dcm", RAMP // 2, BitsStored=7)
    np.testing.assert_array_equal(dicom.read(path).image, np.rint((RAMP // 2) * 255.0 / 127))


@pytest.mark.parametrize("value", [0, 7, 255])
@pytest.mark.parametrize("kind", ["MONOCHROME1", "MONOCHROME2"])
def test_a_constant_image_gives_zeros(tmp_path, value, kind):
    image = np.full((16, 16), value, dtype=np.uint8)
    assert not dicom.read(
        write_dicom(tmp_path / "a.dcm", image, PhotometricInterpretation=kind)
    ).image.any()


def test_colour_becomes_grey_with_the_usual_weights_and_is_reported(tmp_path):
    image = np.zeros((2, 2, 3), dtype=np.uint8)
    image[0, 0], image[0, 1], image[1, 0] = (255, 0, 0), (0, 255, 0), (0, 0, 255)
    read = dicom.read(write_dicom(tmp_path / "a.dcm", image))
    # ITU-R 601: 0.299 * 255 = 76.2, 0.587 * 255 = 149.7, 0.114 * 255 = 29.1
    np.testing.assert_array_equal(read.image, [[76, 150], [29, 0]])
    assert read.colour
    assert not dicom.read(write_dicom(tmp_path / "b.dcm", RAMP)).colour


def test_ybr_images_become_grey_too(tmp_path):
    image = cv2.merge([RAMP, np.full_like(RAMP, 128), np.full_like(RAMP, 128)])  # Y without colour
    read = dicom.read(write_dicom(tmp_path / "a.dcm", image, PhotometricInterpretation="YBR_FULL"))
    np.testing.assert_array_equal(read.image, RAMP)
    assert read.colour
    jpeg = cv2.imencode(".jpg", cv2.merge([noise(1)] * 3), (cv2.IMWRITE_JPEG_QUALITY, 100))[
        1
    ].tobytes()
    tags = {
        "PhotometricInterpretation": "YBR_FULL_422",
        "syntax": JPEGBaseline8Bit,
        "pixel_data": packed(jpeg),
    }
    packed_read = dicom.read(write_dicom(tmp_path / "b.dcm", cv2.merge([noise(1)] * 3), **tags))
    assert np.abs(packed_read.image - noise(1).astype(int)).max() <= 2
    # Uncompressed, two pixels share their colour differences: Y0 Y1 Cb Cr.
    two = np.stack(
        [RAMP[:, ::2], RAMP[:, 1::2], np.full((16, 8), 128), np.full((16, 8), 128)], axis=2
    ).astype(np.uint8)
    tags = {"PhotometricInterpretation": "YBR_FULL_422", "pixel_data": two.tobytes()}
    np.testing.assert_array_equal(
        dicom.read(write_dicom(tmp_path / "c.dcm", image, **tags)).image, RAMP
    )


@pytest.mark.parametrize(
    ("name", "low", "high"),
    [
        ("MR_small_RLE.dcm", -32768, 32767),  # 16 bits, signed
        ("MR_small_jp2klossless.dcm", -32768, 32767),
        ("MR_small.dcm", -32768, 32767),
    ],
)
def test_rle_and_jpeg_2000_equal_pydicoms_pixels_scaled_by_hand(name, low, high):
    dataset = pydicom.dcmread(bundled(name))
    assert "RescaleSlope" not in dataset
    centre, width = float(dataset.WindowCenter), float(dataset.WindowWidth)
    share = np.clip(
        (dataset.pixel_array - (centre - 0.5)) / (width - 1) + 0.5, 0, 1
    )  # PS3.3 C.11.2.1.2
    read = dicom.read(bundled(name))
    assert np.abs(read.image - share * 255).max() <= 0.5 + 1e-3
    assert read.image.std() > 10


def test_the_same_scan_in_five_encodings_gives_one_image():
    names = (
        "MR_small.dcm",
        "MR_small_RLE.dcm",
        "MR_small_jp2klossless.dcm",
        "MR_small_bigendian.dcm",
        "MR_small_implicit.dcm",
    )
    images = [dicom.read(bundled(name)).image for name in names]
    for image in images[1:]:
        np.testing.assert_array_equal(image, images[0])


def test_rle_lossless_and_jpeg_2000_of_a_plain_8_bit_image_pass_unchanged(tmp_path):
    image = noise(5, 64)
    packed = write_dicom(tmp_path / "a.dcm", image)
    dataset = pydicom.dcmread(packed)
    with pydicom.config.disable_value_validation():
        dataset.compress(RLELossless, generate_instance_uid=False)
    dataset.save_as(packed)
    np.testing.assert_array_equal(dicom.read(packed).image, image)
    buffer = io.BytesIO()
    Image.fromarray(image).save(buffer, "JPEG2000", irreversible=False, no_jp2=True)
    path = write_dicom(
        tmp_path / "b.dcm",
        image,
        syntax=JPEG2000Lossless,
        pixel_data=encapsulate([buffer.getvalue()]),
    )
    np.testing.assert_array_equal(dicom.read(path).image, image)


# Headers


def test_no_tag_outside_the_whitelist_reaches_the_header(tmp_path):
    tags = {
        "PatientName": "Planted^Name",
        "PatientBirthDate": "19700101",
        "InstitutionName": "Planted Hospital",
    }
    tags |= {
        "PatientID": "planted-id",
        "ViewPosition": "Planted Free Text",
        "PatientSex": "planted",
        "PatientAge": "planted",
    }
    path = write_dicom(
        tmp_path / "a.dcm", RAMP, AccessionNumber="planted-accession", StudyDate="20200101", **tags
    )
    header, dataset = dicom.open_header(path)
    expected = dicom.Header(
        "a", patient_id="planted-id", view="", sex="", age="", height=16, width=16
    )
    assert header == expected
    kept = {element.keyword for element in dataset}
    assert set(dataset.keys()) <= set(dicom.WHITELIST)
    assert not kept & {
        "PatientName",
        "PatientBirthDate",
        "InstitutionName",
        "AccessionNumber",
        "StudyDate",
    }


def anonymised(path, *, meta=None, **tags):
    """A radiograph without SOPInstanceUID; `meta` is the id in the file meta information."""
    write_dicom(path, RAMP, **{"SOPInstanceUID": None, **tags})
    dataset = pydicom.dcmread(path)
    with pydicom.config.disable_value_validation():
        if meta is None:
            del dataset.file_meta.MediaStorageSOPInstanceUID
        else:
            dataset.file_meta.MediaStorageSOPInstanceUID = meta
        dataset.save_as(path)
    return path


@pytest.mark.parametrize("uid", [None, ""])
@pytest.mark.parametrize(
    ("meta", "name", "image_id"),
    [
        ("7ecd6f67f649f26c", "x.dicom", "7ecd6f67f649f26c"),  # as VinDr-CXR's anonymiser leaves it
        ("1.2.3", "a b.dcm", "1.2.3"),
        ("", "7ecd6f67f649f26c.dicom", "7ecd6f67f649f26c"),
        (None, "1.2.840.DCM", "1.2.840"),
        (None, "scan.dicm", "scan"),
        (None, "1.2.840.10008", "1.2.840.10008"),  # without a suffix, the last number belongs to it
    ],
)
def test_without_sop_instance_uid_the_file_meta_and_then_the_name_give_the_id(
    tmp_path, uid, meta, name, image_id
):
    path = anonymised(tmp_path / name, meta=meta, SOPInstanceUID=uid)
    assert dicom.read(path).image_id == image_id


def test_sop_instance_uid_goes_before_the_file_meta_and_the_name(tmp_path):
    path = anonymised(tmp_path / "name.dcm", meta="1.2.3", SOPInstanceUID="1.2.4")
    assert dicom.read(path).image_id == "1.2.4"


@pytest.mark.parametrize(
    ("meta", "name", "code"),
    [
        (None, "a b.dcm", "BAD_HEADER"),
        ("", ".hidden", "BAD_HEADER"),
        ("../../evil", "fine.dcm", "BAD_ID"),
    ],
)
def test_without_any_legal_id_a_file_is_rejected(tmp_path, meta, name, code):
    assert code_of(anonymised(tmp_path / name, meta=meta)) == code


CT_IMAGE, MR_IMAGE = "1.2.840.10008.5.1.4.1.1.2", "1.2.840.10008.5.1.4.1.1.4"
DX_PRESENTATION, DX_PROCESSING = "1.2.840.10008.5.1.4.1.1.1.1", "1.2.840.10008.5.1.4.1.1.1.1.1"
CAPTURE = "1.2.840.10008.5.1.4.1.1.7"
SLICE = {"ImagePositionPatient": [1, 2, 3], "SliceThickness": 5}


@pytest.mark.parametrize(
    "tags",
    [
        *({"Modality": modality} for modality in ("CR", "DX", "DR", "RG", "MG", "dx", "")),
        {"Modality": "DX", "SOPClassUID": DX_PROCESSING},
        {"Modality": "CR", "SOPClassUID": CAPTURE},  # SIIM-ACR's
        {"Modality": "CR", "SOPClassUID": "1.2.3.4"},  # a private class
        {"Modality": None, "SOPClassUID": DX_PRESENTATION},  # VinDr-CXR's
        {"Modality": None, "SOPClassUID": "1.2.3.4"},
        {"ImagePositionPatient": [1, 2, 3]},
        {"ImagePositionPatient": [1, 2, 3], "SliceThickness": ""},
    ],
)
def test_x_ray_projections_and_headers_that_say_nothing_are_radiographs(tmp_path, tags):
    _, dataset = dicom.open_header(write_dicom(tmp_path / "a.dcm", RAMP, **tags))
    assert dicom.not_a_radiograph(dataset) == ""


@pytest.mark.parametrize(
    ("tags", "reason"),
    [
        *(({"Modality": name}, f"Modality {name}") for name in ("CT", "MR", "US", "NM", "PT")),
        ({"Modality": "OT", "SOPClassUID": CAPTURE}, "Modality OT"),
        ({"Modality": "CR", "SOPClassUID": CT_IMAGE}, "CT Image Storage"),
        ({"Modality": None, "SOPClassUID": MR_IMAGE}, "MR Image Storage"),
        ({"Modality": "", "SOPClassUID": CAPTURE}, "a secondary capture without a Modality"),
        ({"Modality": "RTDOSE"}, "a Modality that is not one of a radiograph"),
        ({"Modality": "DOE JANE"}, "a Modality that is not one of a radiograph"),  # not quoted
        ({"Modality": "DX", **SLICE}, "a slice, with a position in the patient and a thickness"),
    ],
)
def test_slices_and_other_kinds_of_images_are_not_radiographs(tmp_path, tags, reason):
    _, dataset = dicom.open_header(write_dicom(tmp_path / "a.dcm", RAMP, **tags))
    assert dicom.not_a_radiograph(dataset) == reason


def test_a_thickness_that_is_not_a_number_makes_no_slice(tmp_path):
    tags = {"ImagePositionPatient": [1, 2, 3], "SliceThickness": "5.0125"}
    path = write_dicom(tmp_path / "a.dcm", RAMP, **tags)
    _, dataset = dicom.open_header(path)
    assert dicom.not_a_radiograph(dataset)
    path.write_bytes(path.read_bytes().replace(b"5.0125", b"thick "))
    _, dataset = dicom.open_header(path)
    assert dicom.not_a_radiograph(dataset) == ""


def test_without_a_class_the_one_in_the_file_meta_counts(tmp_path):
    tags = {"Modality": None, "SOPClassUID": None}
    path = write_dicom(
        tmp_path / "a.dcm", RAMP, file_meta={"MediaStorageSOPClassUID": CT_IMAGE}, **tags
    )
    _, dataset = dicom.open_header(path)
    assert dicom.not_a_radiograph(dataset) == "CT Image Storage"


@pytest.mark.parametrize(
    ("age", "years"),
    [
        ("051Y", "51"),
        ("51", "51"),
        ("018M", "1"),
        ("104W", "2"),
        ("300D", "0"),
        ("", ""),
        ("fifty", ""),
        ("0051Y", ""),
        ("-5", ""),
    ],
)
def test_ages_become_whole_years(tmp_path, age, years):
    header, _ = dicom.open_header(write_dicom(tmp_path / "a.dcm", RAMP, PatientAge=age))
    assert header.age == years


# Files that are rejected


@pytest.mark.parametrize(
    "content",
    [
        b"",
        b"text\n" * 100,
        cv2.imencode(".png", RAMP)[1].tobytes(),
        b"\0" * 128,
        b"\0" * 128 + b"DIC",
        b"\0" * 4096,
    ],
    ids=["empty", "text", "png", "zeros", "cut preamble", "no prefix"],
)
def test_a_file_without_preamble_is_not_dicom(tmp_path, content):
    path = tmp_path / "a.dcm"
    path.write_bytes(content)
    assert code_of(path) == "NOT_DICOM"


def test_a_data_set_without_preamble_is_never_forced(tmp_path):
    path = write_dicom(tmp_path / "a.dcm", RAMP)
    path.write_bytes(path.read_bytes()[132:])
    assert code_of(path) == "NOT_DICOM"


@pytest.mark.parametrize("jpeg", [False, True])
def test_a_file_cut_anywhere_is_rejected_and_raises_nothing_else(tmp_path, jpeg):
    whole = write_dicom(tmp_path / "a.dcm", noise(1, 32), jpeg=jpeg)
    data = whole.read_bytes()
    codes = {}
    # Not the last four bytes: after a JPEG they are the length of a delimiter, 0.
    for length in range(0, len(data) - 4, 3):
        (tmp_path / "cut.dcm").write_bytes(data[:length])
        codes[length] = code_of(tmp_path / "cut.dcm")
    columns, pixels_at = data.index(b"\x28\x00\x11\x00US") + 10, data.index(b"\xe0\x7f\x10\x00")
    for length, code in codes.items():
        # Cut between Columns and the pixels, a file is a whole one without PixelData.
        in_between = columns <= length < pixels_at + 8
        assert code == (
            "NOT_DICOM" if length < 132 else "NO_PIXELS" if in_between else "TRUNCATED"
        ), length


def test_a_jpeg_cut_short_inside_a_whole_file_is_truncated(tmp_path, monkeypatch):
    image = noise(1, 64)
    cut = encode_jpeg(image)[:-40]
    path = write_dicom(
        tmp_path / "a.dcm",
        image,
        syntax=JPEGBaseline8Bit,
        pixel_data=encapsulate([cut + b"\0" * (len(cut) % 2)]),
    )
    assert code_of(path) == "TRUNCATED"
    monkeypatch.setattr(
        pixels.cv2, "imdecode", lambda *_: image
    )  # as OpenCV 4, which fills the rest with grey
    assert code_of(path) == "TRUNCATED"


@pytest.mark.parametrize(
    ("tags", "code"),
    [
        ({"PixelData": None}, "NO_PIXELS"),
        ({"Rows": None}, "BAD_HEADER"),
        ({"Columns": None}, "BAD_HEADER"),
        # For example a report: a tag after Rows shows that the file is not cut short.
        (
            {"Rows": None, "Columns": None, "PixelData": None, "VerificationFlag": "VERIFIED"},
            "BAD_HEADER",
        ),
        ({"Rows": 0}, "BAD_HEADER"),
        ({"Columns": 0}, "BAD_HEADER"),
        ({"Rows": 17}, "TRUNCATED"),  # 17 x 16 bytes are needed, 256 are there
        ({"NumberOfFrames": 2}, "MULTI_FRAME"),
        ({"Rows": 65535, "Columns": 65535}, "TOO_LARGE"),
        ({"PhotometricInterpretation": None}, "BAD_HEADER"),
        ({"PhotometricInterpretation": "PALETTE COLOR"}, "BAD_HEADER"),
        ({"BitsAllocated": 32, "BitsStored": 32, "Rows": 8, "Columns": 8}, "BAD_HEADER"),
        ({"BitsStored": 0, "HighBit": 0}, "BAD_HEADER"),
        ({"BitsStored": 12}, "BAD_HEADER"),  # in 8 allocated
        ({"SamplesPerPixel": 3}, "TRUNCATED"),
        ({"SamplesPerPixel": 3, "Rows": 8, "Columns": 8}, "BAD_HEADER"),  # in MONOCHROME2
        ({"PhotometricInterpretation": "RGB"}, "BAD_HEADER"),  # with one sample
        ({"RescaleSlope": 0, "RescaleIntercept": 0}, None),
        *(
            ({"SOPInstanceUID": name}, "BAD_ID")
            for name in ("../../evil", "/etc/x", "=cmd", "a" * 300, ".hidden", "a b", "a\\b", "é")
        ),
    ],
)
def test_each_odd_header_has_its_code(tmp_path, tags, code):
    path = write_dicom(tmp_path / "a.dcm", RAMP, **tags)
    if code:
        assert code_of(path) == code
    else:
        dicom.read(path)


@pytest.mark.parametrize(
    ("kind", "name"),
    [
        ("1.2.840.10008.5.1.4.1.1.11.1", "Grayscale Softcopy Presentation State Storage"),
        ("1.2.840.10008.5.1.4.1.1.88.59", "Key Object Selection Document Storage"),
        ("1.2.840.10008.5.1.4.1.1.104.1", "Encapsulated PDF Storage"),
    ],
)
def test_objects_beside_the_images_of_a_study_are_named_and_not_called_cut(tmp_path, kind, name):
    no_image = dict.fromkeys(["Rows", "Columns", "PixelData"])
    path = write_dicom(tmp_path / "a.dcm", RAMP, SOPClassUID=kind, **no_image)
    with pytest.raises(dicom.Rejected, match=f"^no image by its class: {name}$") as caught:
        dicom.read(path)
    assert caught.value.code == "NO_PIXELS"


def test_a_dicomdir_holds_no_image():
    path = BUNDLED_FOLDER / "dicomdirtests" / "DICOMDIR"
    with pytest.raises(dicom.Rejected, match="Media Storage Directory Storage") as caught:
        dicom.read(path)
    assert caught.value.code == "NO_PIXELS"


def test_a_high_bit_that_shifts_all_values_out_makes_no_black_image(tmp_path):
    # 8 bits at the low end of 16, but HighBit 15 says that they are at the high end: all 0
    path = write_dicom(tmp_path / "a.dcm", RAMP.astype(np.uint16), BitsStored=8, HighBit=15)
    assert code_of(path) == "BAD_HEADER"


def test_a_size_of_0_and_a_missing_transfer_syntax_are_named(tmp_path):
    with pytest.raises(dicom.Rejected, match="Rows is 0"):
        dicom.open_header(write_dicom(tmp_path / "a.dcm", RAMP, Rows=0))
    whole = write_dicom(tmp_path / "b.dcm", RAMP)
    data = whole.read_bytes()
    syntax = data.index(b"\x02\x00\x10\x00UI")
    length = 8 + int.from_bytes(data[syntax + 6 : syntax + 8], "little")
    whole.write_bytes(
        data[:132] + data[144:syntax] + data[syntax + length :]
    )  # also without the group length
    with pytest.raises(dicom.Rejected, match="no transfer syntax") as caught:
        dicom.open_header(whole)
    assert caught.value.code == "BAD_HEADER"


def test_pixels_that_do_not_fit_into_memory_are_too_large(tmp_path, monkeypatch):
    def no_memory(_):
        raise MemoryError

    path = write_dicom(tmp_path / "a.dcm", RAMP)
    monkeypatch.setattr(pixels, "decode", no_memory)
    assert code_of(path) == "TOO_LARGE"


def test_a_file_above_the_size_limit_is_not_read(tmp_path, monkeypatch):
    path = write_dicom(tmp_path / "a.dcm", RAMP)
    monkeypatch.setattr(dicom, "MAX_FILE_BYTES", path.stat().st_size - 1)
    assert code_of(path) == "TOO_LARGE"


JPEG = encode_jpeg(RAMP)
START_OF_FRAME = JPEG.index(b"\xff\xc0")
ALL_EMPTY = b"\xfe\xff\x00\xe0\0\0\0\0"  # an item of length 0


@pytest.mark.parametrize(
    ("syntax", "pixel_data", "code"),
    [
        (JPEGBaseline8Bit, ALL_EMPTY + ALL_EMPTY, "NO_PIXELS"),
        (RLELossless, ALL_EMPTY + ALL_EMPTY, "NO_PIXELS"),
        (JPEGBaseline8Bit, packed(JPEG[: START_OF_FRAME + 11] + b"\xff\xd9"), "TRUNCATED"),
        (RLELossless, packed(b"x" * 70), "TRUNCATED"),
        (JPEG2000Lossless, packed(jpeg_2000(RAMP)[:-20]), "TRUNCATED"),
        (JPEG2000Lossless, packed(jpeg_2000(RAMP)[:100] + b"\xff\xd9"), "UNSUPPORTED_SYNTAX"),
        (JPEG2000Lossless, packed(jpeg_2000(np.tile(RAMP, (4, 4)))), "TOO_LARGE"),
        (JPEG2000Lossless, packed(jpeg_2000(np.tile(RAMP, (1, 2)))), "BAD_HEADER"),
        (MPEG2MPML, packed(JPEG), "UNSUPPORTED_SYNTAX"),
    ],
    ids=[
        "no JPEG",
        "no RLE",
        "broken JPEG",
        "broken RLE",
        "cut JPEG 2000",
        "broken JPEG 2000",
        "larger JPEG 2000",
        "wider JPEG 2000",
        "radiograph",
    ],
)
def test_each_odd_frame_has_its_code(tmp_path, syntax, pixel_data, code):
    assert (
        code_of(write_dicom(tmp_path / "a.dcm", RAMP, syntax=syntax, pixel_data=pixel_data)) == code
    )


def test_raw_pixels_under_an_encapsulated_syntax_are_truncated(tmp_path):
    path = write_dicom(tmp_path / "a.dcm", RAMP)
    path.write_bytes(
        path.read_bytes().replace(b"1.2.840.10008.1.2.1\0", b"1.2.840.10008.1.2.5\0")
    )  # RLE
    assert code_of(path) == "TRUNCATED"


@pytest.mark.parametrize("number", [1, "01", "+1"])  # PS3.5 6.2: an integer string
def test_an_explicit_number_of_frames_of_1_is_accepted(tmp_path, number):
    np.testing.assert_array_equal(
        dicom.read(write_dicom(tmp_path / "a.dcm", RAMP, NumberOfFrames=number)).image, RAMP
    )


@pytest.mark.parametrize("text", ["a", "1.2.3", "ID_0", "A-b_c.d", "a" * 64])
def test_legal_ids_are_accepted(text):
    assert dicom.is_image_id(text)


@pytest.mark.parametrize(
    "text", ["", ".", "..", ".a", "a/b", "a\\b", "a" * 65, "a\n", "a ", "ä", "=1", "a:b", "\0"]
)
def test_illegal_ids_are_refused(text):
    assert not dicom.is_image_id(text)


def test_an_unknown_transfer_syntax_is_rejected(tmp_path):
    unknown = write_dicom(tmp_path / "a.dcm", RAMP)
    data = unknown.read_bytes()
    unknown.write_bytes(data.replace(b"1.2.840.10008.1.2.1\0", b"1.2.840.10008.9.9.9\0"))
    assert code_of(unknown) == "BAD_HEADER"


def test_a_syntax_without_an_installed_decoder_names_the_command_that_installs_it(monkeypatch):
    decoder = type(pydicom.pixels.get_decoder(pydicom.uid.JPEGLSLossless))
    monkeypatch.setattr(
        decoder, "is_available", property(lambda _: False)
    )  # as without requirements-dicom.txt
    with pytest.raises(dicom.Rejected, match="pip install pyjpegls") as caught:
        dicom.read(bundled("MR_small_jpeg_ls_lossless.dcm"))
    assert caught.value.code == "UNSUPPORTED_SYNTAX"


def test_a_segmentation_of_1_bit_is_not_a_radiograph(tmp_path):
    bits = np.packbits(np.eye(16, dtype=np.uint8), bitorder="little").tobytes()
    path = write_dicom(
        tmp_path / "a.dcm", RAMP, BitsAllocated=1, BitsStored=1, HighBit=0, pixel_data=bits
    )
    with pytest.raises(dicom.Rejected, match="1 bit per pixel") as caught:
        dicom.read(path)
    assert caught.value.code == "BAD_HEADER"


def test_folders_pipes_and_missing_files_are_rejected(tmp_path):
    (tmp_path / "folder.dcm").mkdir()
    assert code_of(tmp_path / "folder.dcm") == "NOT_A_FILE"
    assert code_of(tmp_path / "missing.dcm") == "IO"
    if hasattr(os, "mkfifo"):
        os.mkfifo(tmp_path / "pipe.dcm")  # reading one hangs
        assert code_of(tmp_path / "pipe.dcm") == "NOT_A_FILE"


@pytest.mark.parametrize(
    "prefix",
    [b"", b"\0\0", b"junk"],
    ids=["plain", "zeros between markers", "junk between markers"],
)
def test_a_large_jpeg_in_a_small_dicom_is_refused_before_memory_is_allocated(tmp_path, prefix):
    data = bombs.jpeg(20000)
    data = data[:2] + prefix + data[2:]  # libjpeg skips garbage between markers
    path = write_dicom(
        tmp_path / "a.dcm",
        RAMP,
        syntax=JPEGBaseline8Bit,
        pixel_data=encapsulate([data + b"\0" * (len(data) % 2)]),
    )
    assert code_of(path) in ({"TOO_LARGE"} if not prefix else {"TOO_LARGE", "TRUNCATED"})


def test_a_large_png_in_place_of_a_jpeg_is_not_decoded(tmp_path, monkeypatch):
    data = cv2.imencode(".png", np.zeros((64, 64), np.uint8))[1].tobytes() + b"\xff\xd9"
    path = write_dicom(
        tmp_path / "a.dcm",
        RAMP,
        syntax=JPEGBaseline8Bit,
        pixel_data=encapsulate([data + b"\0" * (len(data) % 2)]),
    )
    monkeypatch.setattr(pixels.cv2, "imdecode", lambda *_: pytest.fail("decoded"))
    assert code_of(path) in {"TRUNCATED", "BAD_HEADER"}


def test_a_jpeg_slightly_larger_than_its_header_says_is_rejected(tmp_path):
    image = noise(0, 32)
    path = write_dicom(tmp_path / "a.dcm", image, jpeg=True, Rows=31)
    assert code_of(path) == "BAD_HEADER"


def test_a_colour_jpeg_in_a_grey_dicom_is_rejected(tmp_path):
    data = cv2.imencode(".jpg", cv2.merge([RAMP, 255 - RAMP, RAMP]))[1].tobytes()
    path = write_dicom(
        tmp_path / "a.dcm",
        RAMP,
        syntax=JPEGBaseline8Bit,
        pixel_data=encapsulate([data + b"\0" * (len(data) % 2)]),
    )
    with pytest.raises(
        dicom.Rejected, match=r"\(16, 16, 3\), the header says \(16, 16\)"
    ) as caught:
        dicom.read(path)
    assert caught.value.code == "BAD_HEADER"


@pytest.mark.skipif(not memory.STATUS.exists(), reason="reads the memory of a process from /proc")
@pytest.mark.parametrize(
    "group_length", [True, False], ids=["with group length", "without group length"]
)
def test_a_deflated_bomb_is_refused_within_one_gigabyte(tmp_path, group_length):
    path = bombs.deflated(tmp_path / "bomb.dcm", group_length=group_length)
    assert path.stat().st_size < 16 << 20
    code = (
        "import sys; from pneumothorax import dicom; from tests.helpers import memory\n"
        "try: dicom.read(sys.argv[1])\n"
        "except dicom.Rejected as error: print(error.code, memory.peak_mib())"
    )
    limit = 4 << 30  # a bomb that explodes ends this process, not the tests
    done = subprocess.run(
        [sys.executable, "-c", code, str(path)],
        cwd=ROOT,
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
        preexec_fn=lambda: resource.setrlimit(resource.RLIMIT_AS, (limit, limit)),
    )
    assert done.returncode == 0, done.stderr
    found, mebibytes = done.stdout.split()
    assert found == "TOO_LARGE"
    assert float(mebibytes) < 1024


def test_a_deflated_file_of_ordinary_size_is_read(tmp_path):
    path = write_dicom(tmp_path / "a.dcm", RAMP, syntax=DeflatedExplicitVRLittleEndian)
    np.testing.assert_array_equal(dicom.read(path).image, RAMP)
    data = path.read_bytes()
    path.write_bytes(data[:132] + data[144:])  # without the group length, as some writers leave it
    np.testing.assert_array_equal(dicom.read(path).image, RAMP)


@pytest.mark.parametrize("path", BUNDLED, ids=lambda path: path.name)
def test_every_file_bundled_with_pydicom_decodes_or_has_a_code(path):
    try:
        read = dicom.read(path)
    except dicom.Rejected as error:
        assert error.code in CODES
        assert str(error)
    else:
        assert read.image.dtype == np.uint8
        assert read.image.shape == (read.header.height, read.header.width)


@pytest.mark.parametrize("name", ["17166", "17196"])
def test_two_bundled_slices_lie_above_their_window_and_are_not_made_white(name):
    path = BUNDLED_FOLDER / "dicomdirtests" / "77654033" / "CT2" / name
    with pytest.raises(dicom.Rejected, match="the stored values vary, but"):
        dicom.read(path)
    # Window 30, 100 wide: all that is above 80 is white, and the slices begin at 498.
    dataset = pydicom.dcmread(path)
    assert dataset.pixel_array.min() + dataset.RescaleIntercept >= 498
    assert dataset.WindowCenter + dataset.WindowWidth / 2 == 80


def test_a_randomly_damaged_real_file_is_read_or_rejected_and_raises_nothing_else(
    real_data, tmp_path
):
    whole = some_real_files(real_data, 1)[0].read_bytes()
    rng = np.random.default_rng(0)
    start = whole.index(b"\xe0\x7f\x10\x00")
    for _ in range(60):
        data = bytearray(whole)
        # In the header, where most of the code is.
        for at in rng.integers(128, start + 200, rng.integers(1, 12)):
            data[at] = rng.integers(256)
        (tmp_path / "a.dcm").write_bytes(data)
        try:
            dicom.read(tmp_path / "a.dcm")
        except dicom.Rejected as error:
            assert error.code in CODES


def test_no_message_of_a_rejection_quotes_a_patient_tag(tmp_path):
    path = write_dicom(tmp_path / "a.dcm", RAMP, PatientID="Planted^Name")
    data = path.read_bytes()
    for vr in b"DS IS US FD DA AT SQ".split():  # the patient id declared as a number, date, ...
        path.write_bytes(data.replace(b"\x10\x00\x20\x00LO", b"\x10\x00\x20\x00" + vr))
        try:
            dicom.read(path)
        except dicom.Rejected as error:
            assert "lanted" not in str(error)


def test_a_number_of_frames_that_is_not_a_number_is_not_quoted(tmp_path):
    path = write_dicom(tmp_path / "a.dcm", RAMP, NumberOfFrames=11111111)
    frames = b"\x28\x00\x08\x00IS\x08\x0011111111"
    assert path.read_bytes().count(frames) == 1
    path.write_bytes(path.read_bytes().replace(frames, b"\x28\x00\x08\x00LO\x08\x00Planted^"))
    with pytest.raises(dicom.Rejected, match="NumberOfFrames is not a number") as caught:
        dicom.read(path)
    assert "Planted" not in str(caught.value)


@pytest.mark.parametrize(
    "value",
    ["Planted^Name", "O'Planted", 'O\'Planted "Planted" Planted', 'A" Planted', "\nPlanted'"],
)
def test_no_message_repeats_what_a_library_quotes_even_with_quotation_marks_inside(value):
    for quoted in (repr(value), f"'{value}'", f'"{value}" of the wrong kind'):
        message = dicom.short_error(ValueError(f"could not convert {quoted}"))
        assert message.startswith("ValueError: could not convert '...'")
        assert "lanted" not in message


def test_a_spacing_that_is_not_a_number_is_unknown_and_not_quoted(tmp_path, recwarn):
    path = write_dicom(tmp_path / "a.dcm", RAMP, PatientID="Doe^Jane^Of^A^Long^Name")
    path.write_bytes(path.read_bytes().replace(b"\x10\x00\x20\x00LO", b"\x28\x00\x30\x00DS"))
    recwarn.clear()
    _, dataset = dicom.open_header(path)
    assert "PixelSpacing" in dataset
    assert dicom.pixel_area_mm2(dataset) == (None, "")
    assert recwarn.list == []


def test_a_disc_stays_where_it_is(tmp_path):
    mask = disc(64, 20, 40, 8)
    read = dicom.read(write_dicom(tmp_path / "a.dcm", mask * np.uint8(200)))
    np.testing.assert_array_equal(read.image > 100, mask == 1)
