"""Grey levels of odd but legal DICOM files, worked out by hand from the standard.

Each file is read as MONOCHROME2 and as MONOCHROME1, which inverts (PS3.3 C.7.6.3.1.2), with
explicit and implicit VR and in both byte orders.
"""

import numpy as np
import pydicom
import pytest
from pydicom.encaps import encapsulate
from pydicom.uid import (
    ExplicitVRBigEndian,
    ExplicitVRLittleEndian,
    ImplicitVRLittleEndian,
    JPEG2000Lossless,
    JPEGLSLossless,
    RLELossless,
)

from pneumothorax import dicom
from tests.helpers.dicoms import jpeg_2000, write_dicom
from tests.helpers.tables import sequence, table

SYNTAXES = (ExplicitVRLittleEndian, ImplicitVRLittleEndian, ExplicitVRBigEndian)
RAMP = np.linspace(0, 4095, 1024).round().astype(np.uint16).reshape(32, 32)
SIGNED = (RAMP.astype(np.int16) - 2048).astype(np.int16)
PLAIN = RAMP * (255 / 4095)
TWELVE = {"BitsStored": 12}


def check(tmp_path, words, expected, **tags):
    """Compare with (H, W) grey levels, 0 to 255, not rounded.

    Args:
        tags: a callable value is called with whether the file is big-endian.
    """
    for syntax in SYNTAXES:
        order = "<" if syntax.is_little_endian else ">"
        data = words.astype(words.dtype.newbyteorder(order)).tobytes()
        for kind in ("MONOCHROME2", "MONOCHROME1"):
            values = {
                name: value(order == ">") if callable(value) else value
                for name, value in tags.items()
            }
            path = write_dicom(
                tmp_path / "a.dcm",
                words,
                syntax=syntax,
                pixel_data=data,
                PhotometricInterpretation=kind,
                **values,
            )
            levels = expected if kind == "MONOCHROME2" else 255 - expected
            difference = np.abs(dicom.read(path).image - levels).max()
            assert difference <= 0.5 + 1e-9, (syntax.name, kind)


def tables(name, *arguments, **options):
    """Tags with one table, in the byte order of the file."""
    return {name: lambda big_endian: sequence(table(*arguments, big_endian=big_endian, **options))}


def code_of(path):
    with pytest.raises(dicom.Rejected) as caught:
        dicom.read(path)
    return caught.value.code


NAMES = pytest.mark.parametrize("name", ["ModalityLUTSequence", "VOILUTSequence"])

# Tables: PS3.3 C.11.1.1 and C.11.2.1.1


@NAMES
def test_a_table_of_fewer_bits_than_it_declares_is_scaled_by_the_range_it_uses(tmp_path, name):
    entries = np.arange(4096) // 4  # 0..1023 need 10 bits
    check(tmp_path, RAMP, RAMP // 4 * (255 / 1023), **TWELVE, **tables(name, 0, 16, entries))
    entries = 300 + np.arange(4096) * 700 // 4095  # 300..1000
    expected = (entries[RAMP] - 300) * (255 / 700)
    check(tmp_path, RAMP, expected, **TWELVE, **tables(name, 0, 16, entries))


@NAMES
def test_a_table_that_needs_its_bits_is_scaled_by_all_that_they_can_hold(tmp_path, name):
    entries = 100 + np.arange(4096) * 500 // 4095  # 100..600 need 10 bits: 0..1023
    expected = entries[RAMP] * (255 / 1023)
    check(tmp_path, RAMP, expected, **TWELVE, **tables(name, 0, 10, entries))


@NAMES
@pytest.mark.parametrize("packed", [False, True], ids=["words", "bytes"])
def test_a_table_of_8_bits_is_looked_up_with_12_bit_values(tmp_path, name, packed):
    entries = np.arange(4096) // 16
    options = tables(name, 0, 8, entries, packed=packed)
    check(tmp_path, RAMP, RAMP // 16, **TWELVE, **options)
    odd = tables(name, 0, 8, entries[:4001], packed=packed)  # 4000 // 16 = 250, and above
    check(tmp_path, RAMP, np.minimum(RAMP, 4000) // 16, **TWELVE, **odd)


@NAMES
def test_values_outside_a_table_get_its_first_and_last_entry(tmp_path, name):
    entries = np.arange(0, 256)  # of the values 1000..1255
    expected = np.clip(RAMP.astype(int) - 1000, 0, 255)
    check(tmp_path, RAMP, expected, **TWELVE, **tables(name, 1000, 8, entries))


@NAMES
def test_the_first_value_of_a_table_of_signed_values_is_signed(tmp_path, name):
    options = tables(name, -2048, 12, np.arange(4096))
    check(tmp_path, SIGNED, PLAIN, **TWELVE, **options)
    options = tables(name, -100, 8, np.arange(256))
    check(tmp_path, SIGNED, np.clip(SIGNED + 100, 0, 255), **TWELVE, **options)


@NAMES
@pytest.mark.parametrize("vrs", ["US OW", "SS OW", "US US", "SS US", "US OB"])
@pytest.mark.parametrize("packed", [False, True], ids=["words", "bytes"])
def test_a_table_is_the_same_in_each_value_representation(tmp_path, name, vrs, packed):
    if vrs == "US OB" and not packed:
        pytest.skip("OB has bytes")
    options = tables(name, -2048, 8, np.arange(4096) // 16, packed=packed, vrs=vrs)
    check(tmp_path, SIGNED, RAMP // 16, **TWELVE, **options)


def test_the_first_value_of_a_voi_table_is_signed_where_a_rescale_can_give_negative_ones(tmp_path):
    options = tables("VOILUTSequence", -1024, 12, np.arange(4096))
    check(tmp_path, RAMP, PLAIN, **TWELVE, RescaleIntercept=-1024, RescaleSlope=1, **options)


def test_the_first_value_of_a_voi_table_is_unsigned_after_a_modality_table(tmp_path):
    """Its output is unsigned (C.11.1.1.1), although the stored values are signed."""
    modality = tables("ModalityLUTSequence", -2048, 16, 61440 + np.arange(4096))
    voi = tables("VOILUTSequence", 61440, 12, np.arange(4096))
    check(tmp_path, SIGNED, PLAIN, **TWELVE, **modality, **voi)


@NAMES
def test_a_negative_first_value_of_unsigned_values_is_not_a_large_one(tmp_path, name):
    entries = np.arange(4096 + 100)[100:]  # 100 entries below 0 are never used
    options = tables(name, -100, 13, np.concatenate([np.zeros(100), entries]))
    check(tmp_path, RAMP, (RAMP + 100) * (255 / 8191), **TWELVE, **options)


@NAMES
def test_a_table_of_65536_entries_declares_0(tmp_path, name):
    words = np.linspace(0, 65535, 1024).round().astype(np.uint16).reshape(32, 32)
    expected = (65535 - words.astype(int)) * (255 / 65535)
    check(tmp_path, words, expected, **tables(name, 0, 16, np.arange(65535, -1, -1)))


@NAMES
def test_a_table_without_all_its_entries_is_rejected(tmp_path, name):
    for entries in (1000, 4095):
        short = sequence(table(0, 16, np.arange(entries), length=4096))
        path = write_dicom(tmp_path / "a.dcm", RAMP, **TWELVE, **{name: short})
        assert code_of(path) == "BAD_HEADER"


def test_a_voi_table_follows_a_modality_table(tmp_path):
    modality = tables("ModalityLUTSequence", 0, 12, 4095 - np.arange(4096))
    voi = tables("VOILUTSequence", 0, 8, np.arange(4096) // 16, packed=True)
    check(tmp_path, RAMP, (4095 - RAMP) // 16, **TWELVE, **modality, **voi)


# Absent, empty and not finite

WINDOW = {"WindowCenter": 1024.5, "WindowWidth": 1025}  # (x - 1024) / 1024 + 0.5: 512..1536
WINDOWED = np.clip((RAMP - 512.0) / 1024, 0, 1) * 255


@pytest.mark.parametrize(
    "tags",
    [
        {"RescaleSlope": None, "RescaleIntercept": None},
        {"RescaleSlope": ""},
        {"RescaleIntercept": ""},
        {"RescaleSlope": "", "RescaleIntercept": "", "VOILUTFunction": "", **WINDOW},
        {"RescaleSlope": 0, "RescaleIntercept": 0, **WINDOW},
        {"WindowCenter": "", "WindowWidth": ""},
        {"WindowCenter": "", "WindowWidth": 100},
        {"WindowCenter": 100, "WindowWidth": ""},
        {"VOILUTFunction": "", **WINDOW},
        {"VOILUTSequence": sequence(), **WINDOW},
        {"VOILUTSequence": sequence()},
        {"VOILUTSequence": sequence(pydicom.Dataset())},
        {"ModalityLUTSequence": sequence()},
        {"ModalityLUTSequence": sequence(), "RescaleSlope": -1, "RescaleIntercept": ""},
        {"HighBit": ""},
        {"WindowCenter": 100, "WindowWidth": 0},
        {"WindowCenter": 100, "WindowWidth": 0.5},
        {"WindowCenter": 100, "WindowWidth": -200},
        {"WindowCenter": 100, "WindowWidth": 0.9, "VOILUTFunction": "LINEAR_EXACT"},
        {"WindowCenter": 100, "WindowWidth": 0.9, "VOILUTFunction": "SIGMOID"},
        {"WindowCenter": ["", 1024.5], "WindowWidth": [9, 1025]},
        {"WindowCenter": [7, 1024.5], "WindowWidth": [0.5, 1025]},
    ],
    ids=str,
)
def test_what_is_empty_or_out_of_range_counts_as_absent(tmp_path, tags):
    has_window = 1024.5 in np.atleast_1d(np.asarray(tags.get("WindowCenter", 0), object))
    expected = 255 - PLAIN if tags.get("RescaleSlope") == -1 else PLAIN
    check(tmp_path, RAMP, WINDOWED if has_window else expected, **TWELVE, **tags)


@pytest.mark.parametrize(
    "text", ["NaN", "inf", "-Infinity", "1.#QNAN", "-1.#IND", "1.#INF00", "-nan(ind)"]
)
@pytest.mark.parametrize("name", ["RescaleSlope", "RescaleIntercept", *WINDOW])
def test_a_number_that_is_not_finite_counts_as_absent(tmp_path, name, text):
    numbers = {"RescaleSlope": 1, "RescaleIntercept": 0, **WINDOW, name: 1.2345678}
    for kind in ("MONOCHROME2", "MONOCHROME1"):
        path = write_dicom(
            tmp_path / "a.dcm", RAMP, **TWELVE, **numbers, PhotometricInterpretation=kind
        )
        data = path.read_bytes()
        assert data.count(b"1.2345678 ") == 1
        path.write_bytes(data.replace(b"1.2345678 ", text.encode().ljust(10)))
        expected = PLAIN if name in WINDOW else WINDOWED
        levels = expected if kind == "MONOCHROME2" else 255 - expected
        assert np.abs(dicom.read(path).image - levels).max() <= 0.5 + 1e-9


def test_text_that_is_no_number_is_rejected(tmp_path):
    path = write_dicom(tmp_path / "a.dcm", RAMP, **TWELVE, **WINDOW, RescaleSlope=1.2345678)
    path.write_bytes(path.read_bytes().replace(b"1.2345678 ", b"Planted^N "))
    with pytest.raises(dicom.Rejected) as caught:
        dicom.read(path)
    assert caught.value.code == "BAD_HEADER"
    assert "Planted" not in str(caught.value)


def test_without_a_usable_window_the_table_is_used(tmp_path):
    options = tables("VOILUTSequence", 0, 8, np.arange(4096) // 16)
    check(tmp_path, RAMP, RAMP // 16, **TWELVE, WindowCenter=9, WindowWidth=0, **options)


# Rescale: PS3.3 C.11.1


def test_a_slope_alone_has_the_intercept_0(tmp_path):
    # 2 x within the window: 512..1536 is x = 256..768
    expected = np.clip((RAMP * 2.0 - 512) / 1024, 0, 1) * 255
    check(tmp_path, RAMP, expected, **TWELVE, **WINDOW, RescaleSlope=2)


def test_an_intercept_alone_has_the_slope_1(tmp_path):
    expected = np.clip((RAMP - 1000.0 - 512) / 1024, 0, 1) * 255
    check(tmp_path, RAMP, expected, **TWELVE, **WINDOW, RescaleIntercept=-1000)
    check(tmp_path, RAMP, PLAIN, **TWELVE, RescaleIntercept=-1000)


def test_a_rescale_of_signed_values_keeps_their_order_and_a_negative_slope_inverts_it(tmp_path):
    check(tmp_path, SIGNED, PLAIN, **TWELVE, RescaleSlope=0.25, RescaleIntercept=7)
    check(tmp_path, SIGNED, 255 - PLAIN, **TWELVE, RescaleSlope=-3, RescaleIntercept=7)


def test_a_modality_table_comes_before_a_rescale(tmp_path):
    options = tables("ModalityLUTSequence", 0, 12, 4095 - np.arange(4096))
    check(tmp_path, RAMP, 255 - PLAIN, **TWELVE, RescaleSlope=-1, RescaleIntercept=0, **options)


# Windows: PS3.3 C.11.2.1.2 and C.11.2.1.3


def test_each_window_function_by_hand(tmp_path):
    words = np.array([[0, 1000], [1999, 2000], [2001, 3000]], dtype=np.uint16)
    tags = {**TWELVE, "WindowCenter": 2000, "WindowWidth": 2001}
    # LINEAR: (x - 1999.5) / 2000 + 0.5
    linear = np.array([[0, 0.00025], [0.49975, 0.50025], [0.50075, 1]]) * 255
    check(tmp_path, words, linear, **tags)
    check(tmp_path, words, linear, **tags, VOILUTFunction="linear ")
    # LINEAR_EXACT: (x - 2000) / 2000 + 0.5
    exact = np.array([[0, 0], [0.4995, 0.5], [0.5005, 1]]) * 255
    tags["WindowWidth"] = 2000
    check(tmp_path, words, exact, **tags, VOILUTFunction="LINEAR_EXACT")
    # SIGMOID: 1 / (1 + exp(-4 (x - 2000) / 2000)): exponents 4, 2, 0.002, 0, -0.002, -2
    sigmoid = np.array([[0.017986, 0.119203], [0.4995, 0.5], [0.5005, 0.880797]]) * 255
    check(tmp_path, words, sigmoid, **tags, VOILUTFunction="SIGMOID")


def test_a_window_of_width_1_is_a_threshold(tmp_path):
    # x <= c - 0.5 is black, above is white
    check(tmp_path, RAMP, (RAMP > 99.5) * 255, **TWELVE, WindowCenter=100, WindowWidth=1)


def test_an_unknown_window_function_is_rejected(tmp_path):
    path = write_dicom(tmp_path / "a.dcm", RAMP, **TWELVE, **WINDOW, VOILUTFunction="LOG")
    assert code_of(path) == "BAD_HEADER"


# Bits: PS3.5 8.1.1


def test_bits_above_the_stored_ones_are_cut_off(tmp_path):
    overlay = np.where(np.arange(1024).reshape(32, 32) % 3, 0xF000, 0).astype(np.uint16)
    check(tmp_path, RAMP | overlay, PLAIN, **TWELVE)
    check(tmp_path, (SIGNED.view(np.uint16) & 0xFFF | overlay).view(np.int16), PLAIN, **TWELVE)
    check(tmp_path, RAMP | overlay, WINDOWED, **TWELVE, **WINDOW)


def test_the_sign_is_extended_from_the_stored_bits(tmp_path):
    check(tmp_path, (SIGNED.view(np.uint16) & 0xFFF).view(np.int16), PLAIN, **TWELVE)
    window = {"WindowCenter": -1023.5, "WindowWidth": 1025}  # (x + 1024) / 1024 + 0.5
    expected = np.clip((SIGNED + 1536.0) / 1024, 0, 1) * 255
    check(tmp_path, (SIGNED.view(np.uint16) & 0xFFF).view(np.int16), expected, **TWELVE, **window)


@pytest.mark.parametrize("high", [12, 13, 15])
def test_values_below_a_high_bit_are_shifted_down(tmp_path, high):
    below = np.uint16(2 ** (high - 11) - 1)  # bits below the value are no value either
    words = (RAMP << (high - 11)) | below
    check(tmp_path, words, PLAIN, **TWELVE, HighBit=high)
    check(tmp_path, words, WINDOWED, **TWELVE, HighBit=high, **WINDOW)
    signed = ((SIGNED.view(np.uint16) << (high - 11)) | below).view(np.int16)
    check(tmp_path, signed, PLAIN, **TWELVE, HighBit=high)


def test_4_bits_at_the_top_of_a_byte_are_shifted_down(tmp_path):
    words = np.arange(256, dtype=np.uint8).reshape(16, 16)
    check(tmp_path, words, (words >> 4) * 17, BitsStored=4, HighBit=7)  # 15 * 17 = 255


@pytest.mark.parametrize("high", [0, 10, 16])
def test_a_high_bit_that_cannot_be_is_ignored(tmp_path, high):
    check(tmp_path, RAMP, PLAIN, **TWELVE, HighBit=high)


def jpeg_ls_of(words, bits=16):
    height, width = words.shape
    jpeg_ls = pytest.importorskip("jpeg_ls")
    size = {"rows": height, "columns": width, "samples_per_pixel": 1, "bits_stored": bits}
    return bytes(jpeg_ls.encode_pixel_data(words.tobytes(), lossy_error=0, **size))


def rle_of(words):
    """PS3.5 G: the high bytes, then the low bytes, each in literal runs of 128."""
    header, segments = [2], []
    for part in (words >> 8, words & 255):
        data = part.astype(np.uint8).tobytes()
        segments.append(b"".join(b"\x7f" + data[at : at + 128] for at in range(0, len(data), 128)))
    header += [64, 64 + len(segments[0])] + [0] * 13
    return np.array(header, "<u4").tobytes() + b"".join(segments)


@pytest.mark.parametrize(
    ("syntax", "encode"),
    [(RLELossless, rle_of), (JPEGLSLossless, jpeg_ls_of), (JPEG2000Lossless, jpeg_2000)],
    ids=["RLE", "JPEG-LS", "JPEG 2000"],
)
def test_encoded_words_lose_their_unused_bits_too(tmp_path, syntax, encode):
    overlay = np.where(np.arange(1024).reshape(32, 32) % 3, 0xF000, 0).astype(np.uint16)
    for words, high in ((RAMP | overlay, 11), (RAMP << 4 | 15, 15), (RAMP << 2 | overlay << 2, 13)):
        frame = encode(words)
        for signed, expected in ((0, PLAIN), (1, (PLAIN * 4095 / 255 + 2048) % 4096 * 255 / 4095)):
            path = write_dicom(
                tmp_path / "a.dcm",
                words,
                syntax=syntax,
                pixel_data=encapsulate([frame + b"\0" * (len(frame) % 2)]),
                **TWELVE,
                HighBit=high,
                PixelRepresentation=signed,
            )
            assert np.abs(dicom.read(path).image - expected).max() <= 0.5 + 1e-9, (high, signed)


@pytest.mark.parametrize(("stored", "high"), [(12, 11), (12, 15), (16, 15)])
def test_an_encoded_frame_of_12_bits_has_no_unused_ones(tmp_path, stored, high):
    """Some writers encode the values alone and keep the tags of the words they came from."""
    frame = jpeg_ls_of(RAMP, bits=12)
    path = write_dicom(
        tmp_path / "a.dcm",
        RAMP,
        syntax=JPEGLSLossless,
        pixel_data=encapsulate([frame + b"\0" * (len(frame) % 2)]),
        BitsStored=stored,
        HighBit=high,
    )
    assert np.abs(dicom.read(path).image - PLAIN).max() <= 0.5 + 1e-9


# Image Pixel module: PS3.3 C.7.6.3.1


@pytest.mark.parametrize("value", ["", None], ids=["empty", "missing"])
@pytest.mark.parametrize("name", ["PixelRepresentation", "SamplesPerPixel", "HighBit"])
def test_without_a_sign_a_number_of_samples_or_a_high_bit_values_are_plain(tmp_path, name, value):
    check(tmp_path, RAMP, PLAIN, **TWELVE, **{name: value})
    check(tmp_path, RAMP, WINDOWED, **TWELVE, **WINDOW, **{name: value})


def test_without_a_number_of_stored_bits_all_of_a_word_are_stored(tmp_path):
    words = RAMP * 16 + 15  # 15..65535
    path = write_dicom(tmp_path / "a.dcm", words)
    dataset = pydicom.dcmread(path)
    dataset.BitsStored = None
    dataset.save_as(path)
    assert np.abs(dicom.read(path).image - words * (255 / 65535)).max() <= 0.5 + 1e-9


def test_colours_without_a_planar_configuration_follow_each_other_in_each_pixel(tmp_path):
    grey = RAMP // 16
    colour = np.stack([grey] * 3, axis=-1).astype(np.uint8)
    for value in ("", None):
        path = write_dicom(
            tmp_path / "a.dcm", colour, PlanarConfiguration=value, SamplesPerPixel=value
        )
        np.testing.assert_array_equal(dicom.read(path).image, grey)


@pytest.mark.parametrize("length", [1, 999, 2048, 3 * 2048])  # the image has 2048 bytes
def test_what_follows_the_pixels_does_not_matter(tmp_path, length):
    data = RAMP.tobytes() + b"\xff" * length
    path = write_dicom(tmp_path / "a.dcm", RAMP, pixel_data=data, **TWELVE)
    assert np.abs(dicom.read(path).image - PLAIN).max() <= 0.5 + 1e-9


# Never one grey from values that vary


@pytest.mark.parametrize(
    "tags",
    [
        {"WindowCenter": 60000, "WindowWidth": 10},
        {"WindowCenter": -60000, "WindowWidth": 10},
        {"VOILUTSequence": sequence(table(0, 8, [9] * 4096))},
        {"ModalityLUTSequence": sequence(table(5000, 8, range(256)))},
        {"RescaleSlope": 1e300, "RescaleIntercept": 1e300, **WINDOW},
    ],
    ids=str,
)
@pytest.mark.parametrize("kind", ["MONOCHROME2", "MONOCHROME1"])
def test_transforms_that_make_one_grey_of_all_values_are_rejected(tmp_path, tags, kind):
    path = write_dicom(tmp_path / "a.dcm", RAMP, **TWELVE, **tags, PhotometricInterpretation=kind)
    assert code_of(path) == "BAD_HEADER"
    empty = np.full_like(RAMP, 7)  # an empty exposure is not the header's fault
    path = write_dicom(tmp_path / "b.dcm", empty, **TWELVE, **WINDOW)
    assert not dicom.read(path).image.any()


def test_few_values_of_16_bits_are_rejected_and_not_made_black(tmp_path):
    path = write_dicom(tmp_path / "a.dcm", RAMP // 64)  # 0..63 of 65,535
    assert code_of(path) == "BAD_HEADER"


def test_values_that_vary_in_unused_bits_alone_are_an_empty_exposure(tmp_path):
    words = np.where(np.eye(32), 0xF007, 7).astype(np.uint16)
    assert not dicom.read(write_dicom(tmp_path / "a.dcm", words, **TWELVE)).image.any()


@pytest.mark.parametrize(
    ("top", "is_narrow"),
    [(4095, True), (6500, True), (6700, False), (65535, False)],  # 25.3 and 26.07 grey levels
)
def test_an_image_with_less_than_a_tenth_of_the_grey_range_is_narrow(tmp_path, top, is_narrow):
    words = np.linspace(0, top, 64).astype(np.uint16).reshape(8, 8)
    assert dicom.read(write_dicom(tmp_path / "a.dcm", words)).is_narrow is is_narrow
