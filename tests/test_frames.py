"""Encoded frames: what follows a whole image does not matter, and every decoder is tried."""

from pathlib import Path

import cv2
import numpy as np
import pydicom
import pytest
from pydicom.encaps import encapsulate, generate_frames
from pydicom.pixels import get_decoder
from pydicom.uid import JPEG2000Lossless, JPEGBaseline8Bit, JPEGExtended12Bit, JPEGLSLossless

from pneumothorax import dicom, frames
from tests.helpers.dicoms import encode_jpeg, jpeg_2000, write_dicom
from tests.helpers.images import noise

IMAGE = noise(3, 64)
JPEG = encode_jpeg(IMAGE)
DECODED = cv2.imdecode(np.frombuffer(JPEG, np.uint8), cv2.IMREAD_UNCHANGED)
BUNDLED = Path(pydicom.__file__).parent / "data" / "test_files"
TWELVE_BITS = BUNDLED / "JPGExtended.dcm"  # JPEG Extended, 12 bits
TRAILERS = {
    "zeros": b"\0",
    "fill": b"\xff",
    "ends": b"\xff\xd9",
    "starts of scans": b"\xff\xda\x00\x08",
    "starts of images": b"\xff\xd8\xff\xe0",
    "anything": np.random.default_rng(0).bytes(999),
}


def write_frame(path, frame, *, syntax=JPEGBaseline8Bit, image=IMAGE, **tags):
    data = encapsulate([frame + b"\0" * (len(frame) % 2)])
    return write_dicom(path, image, syntax=syntax, pixel_data=data, **tags)


def rejection(path):
    with pytest.raises(dicom.Rejected) as caught:
        dicom.read(path)
    return caught.value


@pytest.mark.parametrize("length", [1, 2, 63, 64, 65, 4000, 100_001])
@pytest.mark.parametrize("trailer", TRAILERS.values(), ids=TRAILERS)
def test_a_whole_jpeg_is_read_whatever_follows_it(tmp_path, trailer, length):
    trail = (trailer * length)[:length]
    for kind, expected in (("MONOCHROME2", DECODED), ("MONOCHROME1", 255 - DECODED)):
        path = write_frame(tmp_path / "a.dcm", JPEG + trail, PhotometricInterpretation=kind)
        np.testing.assert_array_equal(dicom.read(path).image, expected)


@pytest.mark.parametrize("trailer", TRAILERS.values(), ids=TRAILERS)
def test_a_progressive_and_a_colour_jpeg_are_read_whatever_follows_them(tmp_path, trailer):
    options = (cv2.IMWRITE_JPEG_QUALITY, 95, cv2.IMWRITE_JPEG_PROGRESSIVE, 1)
    several_scans = cv2.imencode(".jpg", IMAGE, options)[1].tobytes()
    expected = cv2.imdecode(np.frombuffer(several_scans, np.uint8), cv2.IMREAD_UNCHANGED)
    path = write_frame(tmp_path / "a.dcm", several_scans + trailer * 99)
    np.testing.assert_array_equal(dicom.read(path).image, expected)
    colour = cv2.merge([IMAGE] * 3)
    jpeg = cv2.imencode(".jpg", colour, (cv2.IMWRITE_JPEG_QUALITY, 100))[1].tobytes()
    tags = {"image": colour, "PhotometricInterpretation": "YBR_FULL_422"}
    path = write_frame(tmp_path / "b.dcm", jpeg + trailer * 99, **tags)
    assert np.abs(dicom.read(path).image - IMAGE.astype(int)).max() <= 2


@pytest.mark.parametrize("trailer", TRAILERS.values(), ids=TRAILERS)
def test_a_jpeg_2000_frame_is_read_whatever_follows_it(tmp_path, trailer):
    frame = jpeg_2000(IMAGE) + trailer * 99
    path = write_frame(tmp_path / "a.dcm", frame, syntax=JPEG2000Lossless)
    np.testing.assert_array_equal(dicom.read(path).image, IMAGE)


def with_preview(jpeg):
    """The JPEG with a whole small one inside a segment of its header."""
    preview = encode_jpeg(IMAGE[:16, :16])
    segment = b"\xff\xe1" + (len(preview) + 2).to_bytes(2, "big") + preview
    return jpeg[:2] + segment + jpeg[2:]


@pytest.mark.parametrize("make", [bytes, with_preview], ids=["plain", "with a preview"])
@pytest.mark.parametrize("trailer", [b"", b"\0" * 4000, b"\xff" * 63], ids=len)
def test_a_jpeg_cut_short_is_truncated_whatever_follows_it(tmp_path, make, trailer):
    cut = make(JPEG)[:-40] + trailer
    assert rejection(write_frame(tmp_path / "a.dcm", cut)).code == "TRUNCATED"
    whole = make(JPEG) + trailer
    np.testing.assert_array_equal(dicom.read(write_frame(tmp_path / "b.dcm", whole)).image, DECODED)


@pytest.mark.parametrize("kind", ["MONOCHROME2", "MONOCHROME1"])
def test_values_that_lossy_jpeg_rounds_up_beyond_the_stored_bits_stay_white(tmp_path, kind):
    tags = {"BitsStored": 7, "PhotometricInterpretation": kind}
    levels = np.minimum(DECODED, 127) * (255 / 127)
    read = dicom.read(write_frame(tmp_path / "a.dcm", JPEG, **tags))
    expected = levels if kind == "MONOCHROME2" else 255 - levels
    assert np.abs(read.image - expected).max() <= 0.5 + 1e-9


@pytest.mark.parametrize("bits", [9, 12, 136])
def test_a_jpeg_of_8_bits_has_8_bits_whatever_its_header_says(tmp_path, bits):
    path = write_frame(tmp_path / "a.dcm", JPEG, BitsAllocated=16, BitsStored=bits)
    np.testing.assert_array_equal(dicom.read(path).image, DECODED)


# Decoders


def broken(*_):
    raise ValueError("this plugin reads nothing")


def of_jpeg_ls(folder):
    jpeg_ls = pytest.importorskip("jpeg_ls")
    frame = bytes(jpeg_ls.encode_array(IMAGE))
    return write_frame(folder / "a.dcm", frame, syntax=JPEGLSLossless)


def test_the_next_plugin_is_tried_where_one_fails(tmp_path, monkeypatch):
    path = of_jpeg_ls(tmp_path)
    monkeypatch.setitem(get_decoder(JPEGLSLossless)._available, "pylibjpeg", broken)
    assert frames.PLUGIN_ORDER.index("pylibjpeg") < frames.PLUGIN_ORDER.index("pyjpegls")
    read = dicom.read(path)
    np.testing.assert_array_equal(read.image, IMAGE)
    assert read.decoder == "pydicom/pyjpegls"


def test_a_frame_that_no_installed_plugin_reads_names_them_and_what_to_install(
    tmp_path, monkeypatch
):
    path = of_jpeg_ls(tmp_path)
    decoder = get_decoder(JPEGLSLossless)
    monkeypatch.setattr(decoder, "_available", {"pylibjpeg": broken, "gdcm": broken})
    error = rejection(path)
    assert error.code == "UNSUPPORTED_SYNTAX"
    assert "pylibjpeg and gdcm cannot decode this JPEG-LS Lossless" in str(error)
    assert str(error).endswith("python -m pip install pyjpegls")
    monkeypatch.setattr(decoder, "_available", {"pyjpegls": broken, "gdcm": broken})
    assert "install" not in str(rejection(path))  # nothing else could help


def test_12_bit_jpegs_decode_with_the_plugin_and_name_it_without():
    if "pylibjpeg" in get_decoder(JPEGExtended12Bit).available_plugins:
        read, dataset = dicom.read(TWELVE_BITS), pydicom.dcmread(TWELVE_BITS)
        np.testing.assert_allclose(read.image, dataset.pixel_array * (255 / 4095), atol=0.5 + 1e-9)
        assert read.decoder == "pydicom/pylibjpeg"
    else:
        error = rejection(TWELVE_BITS)
        assert error.code == "UNSUPPORTED_SYNTAX"
        assert str(error).endswith("python -m pip install pylibjpeg pylibjpeg-libjpeg")


def test_a_12_bit_jpeg_cut_short_is_truncated_before_any_plugin_sees_it(tmp_path):
    """pylibjpeg-libjpeg would fill the rest without a word."""
    dataset = pydicom.dcmread(TWELVE_BITS)
    frame = next(generate_frames(dataset.PixelData, number_of_frames=1))
    image = np.zeros((dataset.Rows, dataset.Columns), np.uint16)
    path = write_frame(
        tmp_path / "a.dcm", frame[:3000], syntax=JPEGExtended12Bit, image=image, BitsStored=12
    )
    assert rejection(path).code == "TRUNCATED"


@pytest.mark.parametrize("syntax", frames.PACKAGES, ids=lambda syntax: syntax.name)
def test_each_package_to_install_is_a_plugin_that_reads_the_syntax(syntax):
    decoder = get_decoder(syntax)
    plugins = {
        *decoder.available_plugins,
        *(line.split()[0] for line in decoder.missing_dependencies),
    }
    assert any(plugin in frames.PACKAGES[syntax] for plugin in plugins)
