"""PNG and JPEG: the grey image that a viewer shows, or a code."""

import io
import os
import subprocess
import sys
import zlib

import cv2
import numpy as np
import pytest
from PIL import Image

from pneumothorax import dicom
from pneumothorax.data import raster
from tests.helpers import bombs, memory, rasters
from tests.helpers.images import noise
from tests.helpers.stages import ROOT

IMAGE = noise(1, 48)[:40]  # (40, 48)
OTHER = noise(2, 48)[:40]
DEEP = np.random.default_rng(3).integers(0, 65536, IMAGE.shape, dtype=np.uint16)
ROTATE_RIGHT = 6  # the value of EXIF's orientation for a picture to be turned clockwise


def saved(image, kind, **options):
    """An image of Pillow -> the bytes of its file."""
    file = io.BytesIO()
    image.save(file, kind, **options)
    return file.getvalue()


def png_of(array, **options):
    return saved(Image.fromarray(array), "PNG", **options)


def read(folder, data, name="image.png"):
    (folder / name).write_bytes(data)
    return raster.read(folder / name)


def rejection(folder, data, name="image.png"):
    with pytest.raises(dicom.Rejected) as caught:
        read(folder, data, name)
    return caught.value


def orientation(value):
    exif = Image.Exif()
    exif[0x0112] = value
    return exif.tobytes()


# Accepted


def test_real_files_have_the_pixels_that_pillow_reads(real_data):
    paths = sorted((real_data / "siim_png").rglob("png_images/*.png"))[::5]
    assert paths
    for path in paths:
        found = raster.read(path)
        assert found.image.dtype == np.uint8
        np.testing.assert_array_equal(found.image, np.asarray(Image.open(path).convert("L")))
        assert (found.decoder, found.colour) == ("libpng", False)


def test_an_8_bit_png_passes_unchanged_and_has_no_tags(tmp_path):
    found = read(tmp_path, png_of(IMAGE), "some.id_1.png")
    np.testing.assert_array_equal(found.image, IMAGE)
    expected = dicom.Header(
        "some.id_1", patient_id="", view="", sex="", age="", height=40, width=48
    )
    assert found.header == expected
    assert (found.decoder, found.colour) == ("libpng", False)


def test_16_bits_are_scaled_by_their_whole_range(tmp_path):
    found = read(tmp_path, rasters.encode(DEEP.shape, rasters.rows(DEEP, 16), bits=16))
    np.testing.assert_array_equal(found.image, np.rint(DEEP / 257))  # 65535 / 255
    assert found.image.dtype == np.uint8


@pytest.mark.parametrize("bits", [1, 2, 4])
def test_fewer_than_8_bits_are_scaled_to_255(tmp_path, bits):
    values = IMAGE % 2**bits
    found = read(tmp_path, rasters.encode(IMAGE.shape, rasters.rows(values, bits), bits=bits))
    np.testing.assert_array_equal(found.image, values * (255 // (2**bits - 1)))


def test_the_greys_of_a_palette_are_looked_up(tmp_path):
    backwards = bytes(level for index in range(256) for level in [255 - index] * 3)
    data = rasters.encode(IMAGE.shape, rasters.rows(IMAGE), kind=rasters.PALETTE, palette=backwards)
    found = read(tmp_path, data)
    np.testing.assert_array_equal(found.image, 255 - IMAGE)
    assert not found.colour


@pytest.mark.parametrize(
    ("channels", "kind"),
    [
        ([IMAGE, OTHER], rasters.GREY_ALPHA),
        ([IMAGE, IMAGE, IMAGE, OTHER], rasters.COLOUR_ALPHA),
        ([IMAGE, IMAGE, IMAGE], rasters.COLOUR),
    ],
    ids=["grey with alpha", "colour with alpha", "equal channels"],
)
def test_alpha_is_dropped_and_equal_channels_are_taken_as_they_are(tmp_path, channels, kind):
    data = rasters.encode(IMAGE.shape, rasters.rows(np.dstack(channels)), kind=kind)
    found = read(tmp_path, data)
    np.testing.assert_array_equal(found.image, IMAGE)
    assert not found.colour


def test_16_bit_channels_that_are_equal_are_scaled_like_grey(tmp_path):
    data = rasters.encode(
        DEEP.shape, rasters.rows(np.dstack([DEEP] * 3), 16), bits=16, kind=rasters.COLOUR
    )
    np.testing.assert_array_equal(read(tmp_path, data).image, np.rint(DEEP / 257))


def test_colour_becomes_grey_with_the_usual_weights_and_is_reported(tmp_path):
    colours = np.zeros((2, 2, 3), np.uint8)
    colours[0, 0], colours[0, 1], colours[1, 0] = (255, 0, 0), (0, 255, 0), (0, 0, 255)
    found = read(tmp_path, png_of(colours))
    # ITU-R 601: 0.299 * 255 = 76.2, 0.587 * 255 = 149.7, 0.114 * 255 = 29.1
    np.testing.assert_array_equal(found.image, [[76, 150], [29, 0]])
    assert found.colour


def test_one_channel_that_differs_in_one_pixel_is_colour(tmp_path):
    for channel in range(3):
        colours = np.dstack([IMAGE] * 3)
        colours[5, 7, channel] ^= 128
        assert read(tmp_path, png_of(colours)).colour


def test_interlaced_files_are_read(tmp_path):
    data = rasters.encode(IMAGE.shape, rasters.interlaced_rows(IMAGE), interlaced=True)
    np.testing.assert_array_equal(read(tmp_path, data).image, IMAGE)


@pytest.mark.parametrize("progressive", [False, True])
def test_a_jpeg_has_the_pixels_that_pillow_reads(tmp_path, progressive):
    data = saved(Image.fromarray(IMAGE), "JPEG", quality=95, progressive=progressive)
    found = read(tmp_path, data, "a.jpg")
    np.testing.assert_array_equal(found.image, np.asarray(Image.open(io.BytesIO(data))))
    assert (found.decoder, found.colour) == ("libjpeg-turbo", False)


def test_the_orientation_of_a_jpeg_is_applied(tmp_path):
    data = saved(Image.fromarray(IMAGE), "JPEG", quality=95, exif=orientation(ROTATE_RIGHT))
    found = read(tmp_path, data, "a.jpg")
    plain = np.asarray(Image.open(io.BytesIO(data)))
    np.testing.assert_array_equal(found.image, np.rot90(plain, -1))
    assert (found.header.height, found.header.width) == (48, 40)


def test_the_content_decides_and_not_the_suffix(tmp_path):
    jpeg = saved(Image.fromarray(IMAGE), "JPEG")
    assert read(tmp_path, jpeg, "a.png").decoder == "libjpeg-turbo"
    assert read(tmp_path, png_of(IMAGE), "b.JPG").decoder == "libpng"


def test_bytes_behind_the_end_are_ignored(tmp_path):
    jpeg = saved(Image.fromarray(IMAGE), "JPEG")
    plain = read(tmp_path, jpeg).image
    np.testing.assert_array_equal(read(tmp_path, jpeg + b"more" * 1000).image, plain)
    np.testing.assert_array_equal(read(tmp_path, png_of(IMAGE) + b"more" * 1000).image, IMAGE)


@pytest.mark.parametrize("value", [0, 7, 255])
def test_a_constant_image_gives_zeros(tmp_path, value):
    assert not read(tmp_path, png_of(np.full_like(IMAGE, value))).image.any()


# Rejected


@pytest.mark.parametrize(
    ("data", "message"),
    [
        (b"", "the file is empty"),
        (b"text\n" * 50, "neither a PNG nor a JPEG image"),
        (saved(Image.fromarray(IMAGE), "GIF"), "neither a PNG nor a JPEG image"),
        (saved(Image.fromarray(IMAGE), "BMP"), "neither a PNG nor a JPEG image"),
        (saved(Image.fromarray(IMAGE).convert("CMYK"), "JPEG"), "CMYK"),
        (
            png_of(IMAGE, save_all=True, append_images=[Image.fromarray(OTHER)]),
            "an animation of 2 frames",
        ),
    ],
    ids=["empty", "text", "GIF", "BMP", "CMYK", "animated"],
)
def test_other_content_is_not_an_image(tmp_path, data, message):
    error = rejection(tmp_path, data)
    assert error.code == "NOT_AN_IMAGE"
    assert message in str(error)


@pytest.mark.parametrize(
    ("data", "magic"),
    [
        (png_of(IMAGE), 8),
        (rasters.encode(IMAGE.shape, rasters.interlaced_rows(IMAGE), interlaced=True), 8),
        (saved(Image.fromarray(IMAGE), "JPEG"), 3),
        (saved(Image.fromarray(IMAGE), "JPEG", progressive=True), 3),
    ],
    ids=["PNG", "interlaced PNG", "JPEG", "progressive JPEG"],
)
def test_a_file_cut_anywhere_is_never_read(tmp_path, data, magic):
    for length in range(0, len(data), 7):
        expected = "NOT_AN_IMAGE" if length < magic else "TRUNCATED"
        assert rejection(tmp_path, data[:length]).code == expected, length
    assert rejection(tmp_path, data[:-1]).code == "TRUNCATED"


def test_a_jpeg_cut_behind_its_preview_is_truncated(tmp_path):
    preview = saved(Image.fromarray(IMAGE[::4, ::4].copy()), "JPEG")
    exif = b"Exif\0\0" + preview  # also has an end-of-image marker
    data = saved(Image.fromarray(IMAGE), "JPEG", exif=exif)
    assert preview in data
    assert read(tmp_path, data).image.shape == IMAGE.shape
    for length in range(data.index(preview) + len(preview), len(data) - 1, 11):
        assert rejection(tmp_path, data[:length]).code == "TRUNCATED"


WHOLE = rasters.rows(IMAGE)
PACKED = zlib.compress(WHOLE)


@pytest.mark.parametrize(
    "data",
    [
        rasters.encode(IMAGE.shape, WHOLE[:-1]),
        rasters.encode(IMAGE.shape, WHOLE[: len(WHOLE) // 2]),
        rasters.encode(IMAGE.shape, b""),
        rasters.encode(IMAGE.shape, b"", packed=PACKED[: len(PACKED) // 2]),
        rasters.encode(IMAGE.shape, b"", packed=PACKED[:-4]),
        rasters.encode(IMAGE.shape, b"", packed=PACKED[:-4] + b"sum?"),
        rasters.encode(IMAGE.shape, b"", packed=PACKED[:900] + b"\xff" * 40 + PACKED[940:]),
        rasters.encode(IMAGE.shape, b"\x09" + WHOLE[1:]),
        rasters.encode(IMAGE.shape, rasters.interlaced_rows(IMAGE)[:-1], interlaced=True),
    ],
    ids=[
        "a byte short",
        "half",
        "no rows",
        "half compressed",
        "no checksum",
        "wrong checksum",
        "overwritten",
        "unknown filter",
        "interlaced, a byte short",
    ],
)
def test_image_data_that_are_damaged_in_chunks_with_right_sums_are_noticed(tmp_path, data):
    error = rejection(tmp_path, data)
    assert error.code == "TRUNCATED"
    assert "cut short or damaged" in str(error)


def test_a_flipped_bit_in_the_image_data_of_a_png_is_noticed(tmp_path):
    data = bytearray(png_of(IMAGE))
    data[len(data) // 2] ^= 1
    assert rejection(tmp_path, bytes(data)).code == "TRUNCATED"


def test_a_file_name_that_cannot_be_an_id_is_refused(tmp_path):
    for name in ("=cmd.png", "a b.png", "ä.png", "x" * 65 + ".png"):
        error = rejection(tmp_path, png_of(IMAGE), name)
        assert error.code == "BAD_ID"
        assert "cannot be an image id: use 1 to 64 of A-Z a-z 0-9 . _ -" in str(error)


def test_folders_pipes_missing_and_huge_files_are_rejected(tmp_path, monkeypatch):
    def code(path):
        with pytest.raises(dicom.Rejected) as caught:
            raster.read(path)
        return caught.value.code

    (tmp_path / "folder.png").mkdir()
    assert code(tmp_path / "folder.png") == "NOT_A_FILE"
    assert code(tmp_path / "missing.png") == "IO"
    if hasattr(os, "mkfifo"):
        os.mkfifo(tmp_path / "pipe.png")  # reading one hangs
        assert code(tmp_path / "pipe.png") == "NOT_A_FILE"
    (tmp_path / "a.png").write_bytes(png_of(IMAGE))
    monkeypatch.setattr(dicom, "MAX_FILE_BYTES", (tmp_path / "a.png").stat().st_size - 1)
    assert code(tmp_path / "a.png") == "TOO_LARGE"


@pytest.mark.parametrize(
    ("data", "message"),
    [
        (bombs.jpeg(20000), "more than 67108864 pixels"),  # Pillow refuses these two by itself
        (rasters.encode((65535, 65535), b""), "more than 67108864 pixels"),
        (rasters.encode((8193, 8192), b""), "8192 x 8193 pixels; at most 67108864"),
        (rasters.encode((9800, 9800), b""), "9800 x 9800 pixels"),  # Pillow warns
    ],
    ids=["JPEG", "PNG", "a row too many", "more than Pillow likes"],
)
@pytest.mark.filterwarnings("error")
def test_more_than_64_megapixels_are_refused_by_the_header(tmp_path, monkeypatch, data, message):
    monkeypatch.setattr(cv2, "imdecode", lambda *_: pytest.fail("decoded"))
    error = rejection(tmp_path, data)
    assert error.code == "TOO_LARGE"
    assert message in str(error)


def test_pixels_that_do_not_fit_into_memory_are_too_large(tmp_path, monkeypatch):
    def no_memory(*_):
        raise cv2.error("Insufficient memory")

    monkeypatch.setattr(cv2, "imdecode", no_memory)
    assert rejection(tmp_path, png_of(IMAGE)).code == "TOO_LARGE"


MEASURE = """
import sys
from pneumothorax import dicom
from pneumothorax.data import raster
from tests.helpers import memory
try:
    print(raster.read(sys.argv[1]).image.shape)
except dicom.Rejected as error:
    print(error.code)
print(memory.peak_mib())
"""


@pytest.mark.skipif(not memory.STATUS.exists(), reason="reads the memory of a process from /proc")
@pytest.mark.parametrize(
    ("side", "result"), [(20000, "TOO_LARGE"), (8192, "(8192, 8192)")], ids=["refused", "read"]
)
def test_a_small_png_of_many_pixels_stays_within_one_gigabyte(tmp_path, side, result):
    path = bombs.png(tmp_path / "bomb.png", side)
    assert path.stat().st_size < 12_000_000
    command = [sys.executable, "-c", MEASURE, path]
    done = subprocess.run(command, cwd=ROOT, check=True, capture_output=True, text=True)
    found, mebibytes = done.stdout.splitlines()
    assert found == result
    assert float(mebibytes) < 1024


@pytest.mark.parametrize("damage", ["lost", "zeros", "ones", "cut and ended"])
def test_a_jpeg_damaged_in_the_middle_is_truncated(tmp_path, damage):
    """libjpeg would fill the rest with grey, and only warn."""
    data = cv2.imencode(".jpg", noise(3, 256))[1].tobytes()
    half, later = len(data) // 2, len(data) // 2 + 500
    spoiled = {
        "lost": data[:half] + data[later:],
        "zeros": data[:half] + bytes(500) + data[later:],
        "ones": data[:half] + b"\xff" * 500 + data[later:],
        "cut and ended": data[:half] + b"\xff\xd9",
    }[damage]
    (tmp_path / "a.jpg").write_bytes(spoiled)
    with pytest.raises(dicom.Rejected, match="damaged") as caught:
        raster.read(tmp_path / "a.jpg")
    assert caught.value.code == "TRUNCATED"
