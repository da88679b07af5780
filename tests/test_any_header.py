"""Any legal header over a ramp gives the image of a slow reading of the standard, or a code.

`slow_image` goes from pixel to pixel in plain Python, and shares no code with the package.
"""

import math
from dataclasses import dataclass, field

import numpy as np
import pydicom
import pytest
from hypothesis import HealthCheck, event, given, settings
from hypothesis import strategies as st
from pydicom.uid import ExplicitVRBigEndian, ExplicitVRLittleEndian, ImplicitVRLittleEndian

from pneumothorax import dicom
from tests.helpers.dicoms import write_dicom
from tests.helpers.tables import sequence, table

SIDE = 8
SYNTAXES = [ExplicitVRLittleEndian, ImplicitVRLittleEndian, ExplicitVRBigEndian]
NOTHING = [None, "", "NaN", "inf", "-Infinity"]  # absent, empty, not finite


@dataclass
class LookUp:
    first: int  # may be negative
    bits: int
    entries: list[int]
    packed: bool


@dataclass
class Ramp:
    allocated: int
    stored: int
    high: int
    signed: bool
    inverted: bool
    syntax: pydicom.uid.UID
    noise: int  # what is in the unused bits
    slope: object
    intercept: object
    modality: list[LookUp] | None  # None: no such sequence
    voi: list[LookUp] | None
    windows: list[tuple[object, object]] = field(default_factory=list)
    function: str | None = None


def number(text):
    """The number, or None if it says nothing."""
    value = float(text) if text not in (None, "") else math.nan
    return value if math.isfinite(value) else None


# The slow reading


def patterns(ramp):
    """The stored bits of each pixel: a ramp over all that `stored` bits can hold."""
    top = 2**ramp.stored - 1
    return [round(top * at / (SIDE * SIDE - 1)) for at in range(SIDE * SIDE)]


def stored_value(pattern, ramp):
    """PS3.5 8.1.1: two's complement of the stored bits."""
    if ramp.signed and pattern & 2 ** (ramp.stored - 1):
        return pattern - 2**ramp.stored
    return pattern


def entry(value, look_up):
    """PS3.3 C.11.1.1 and C.11.2.1.1: outside the table its first or its last entry."""
    at = round(value) - look_up.first
    if at < 0:
        return look_up.entries[0]
    if at >= len(look_up.entries):
        return look_up.entries[-1]
    return look_up.entries[at]


def range_of(look_up):
    """What the declared bits can hold, or what the entries use if that needs other bits."""
    lowest, highest, bits = min(look_up.entries), max(look_up.entries), 0
    while 2**bits <= highest:
        bits += 1
    return (0, 2**look_up.bits - 1) if bits == look_up.bits else (lowest, highest)


def in_window(x, c, w, function):
    """PS3.3 C.11.2.1.2.1, C.11.2.1.3.1 and C.11.2.1.3.2, with the output range 0..1."""
    if function == "SIGMOID":
        exponent = -4 * (x - c) / w
        return 0.0 if exponent > 700 else 1 / (1 + math.exp(exponent))
    if function == "LINEAR_EXACT":
        if x <= c - w / 2:
            return 0.0
        return 1.0 if x > c + w / 2 else (x - c) / w + 0.5
    if x <= c - 0.5 - (w - 1) / 2:
        return 0.0
    return 1.0 if x > c - 0.5 + (w - 1) / 2 else (x - (c - 0.5)) / (w - 1) + 0.5


def slow_image(ramp):
    """Grey levels 0..255, not rounded; None where there is no range to scale."""
    slope, intercept = number(ramp.slope), number(ramp.intercept)
    slope, intercept = slope or 1.0, intercept or 0.0
    window = next(
        (
            (number(centre), number(width))
            for centre, width in ramp.windows
            if number(centre) is not None and number(width) is not None and number(width) >= 1
        ),
        None,
    )
    ends = [stored_value(pattern, ramp) for pattern in (0, 2**ramp.stored - 1)]
    if ramp.signed:
        ends = [-(2 ** (ramp.stored - 1)), 2 ** (ramp.stored - 1) - 1]
    if ramp.voi or ramp.modality:
        bottom, top = range_of((ramp.voi or ramp.modality)[0])
    else:
        bottom, top = sorted(end * slope + intercept for end in ends)
    image = []
    for pattern in patterns(ramp):
        value = stored_value(pattern, ramp)
        value = entry(value, ramp.modality[0]) if ramp.modality else value * slope + intercept
        if window:
            share = in_window(value, *window, ramp.function or "LINEAR")
        else:
            if bottom == top:
                return None
            value = entry(value, ramp.voi[0]) if ramp.voi else value
            share = (value - bottom) / (top - bottom)
        image.append(255 * (1 - share if ramp.inverted else share))
    return image


# Ramps


@st.composite
def look_ups(draw, low, high):
    """A table for values from low to high."""
    bits = draw(st.sampled_from([8, 8, 10, 12, 16]))
    first = draw(st.integers(max(low, -32768), min(max(low, high // 2), 65535)))
    if low < 0:
        first = min(first, 32767)
    length = draw(st.sampled_from([1, 2, 3, 16, 255, 256, 257, 1000, 1000, 4096, 4096, 65536]))
    top = draw(st.sampled_from([2**bits - 1, 2**bits - 1, 2 ** (bits - 2) - 1, 200, 1, 0]))
    bottom = draw(st.sampled_from([0, 0, top // 3]))
    steps = np.arange(length) * (top - bottom) // max(1, length - 1)
    entries = (bottom + steps).tolist()
    if draw(st.booleans()):
        entries.reverse()
    packed = bits == 8 and length > 1 and draw(st.booleans())
    return LookUp(first, bits, entries, packed)


@st.composite
def ramps(draw):
    allocated = draw(st.sampled_from([8, 16, 16]))
    stored = draw(st.integers(1, allocated))
    high = draw(st.one_of(st.just(stored - 1), st.integers(stored - 1, allocated - 1)))
    signed = draw(st.booleans()) and stored > 1
    numbers = st.sampled_from([*NOTHING, 1, 1, 2, -1, 0.5, -0.25, 2.5, 0.001, 300])
    slope = draw(numbers)
    intercept = draw(st.sampled_from([*NOTHING, 0, -1024, 100.5, 2048, -0.25]))
    ends = (-(2 ** (stored - 1)), 2 ** (stored - 1) - 1) if signed else (0, 2**stored - 1)
    some = st.sampled_from([None, None, [], "one"])
    modality = draw(some)
    if modality == "one":
        modality = [draw(look_ups(*ends))]
        low, high_value = range_of(modality[0])
    else:
        factor, shift = number(slope) or 1.0, number(intercept) or 0.0
        low, high_value = sorted(end * factor + shift for end in ends)
    voi = draw(some)
    if voi == "one":
        voi = [draw(look_ups(math.floor(low), math.ceil(high_value)))]
    centres = st.one_of(
        st.sampled_from(["", "NaN", 0, 40, 128.5, 2048]),
        st.integers(-(2**15), 2**16),
        st.integers(math.floor(low), math.ceil(high_value)),
    )
    widths = st.sampled_from(["", "NaN", "inf", -5, 0, 0.5, 1, 1.5, 2, 100, 400, 4096, 65536])
    return Ramp(
        allocated=allocated,
        stored=stored,
        high=high,
        signed=signed,
        inverted=draw(st.booleans()),
        syntax=draw(st.sampled_from(SYNTAXES)),
        noise=draw(st.integers(0, 2**16 - 1)),
        slope=slope,
        intercept=intercept,
        modality=modality,
        voi=voi,
        windows=draw(st.lists(st.tuples(centres, widths), max_size=3)),
        function=draw(st.sampled_from([None, "", "LINEAR", "LINEAR_EXACT", "SIGMOID"])),
    )


def written(ramp, path):
    shift = ramp.high + 1 - ramp.stored
    mask = (2**ramp.stored - 1) << shift
    words = [
        (pattern << shift) | (ramp.noise & ~mask & (2**ramp.allocated - 1))
        for pattern in patterns(ramp)
    ]
    big_endian = not ramp.syntax.is_little_endian
    order = ">" if big_endian else "<"
    pixels = np.array(words, f"u{ramp.allocated // 8}").reshape(SIDE, SIDE)
    tags = {
        "BitsStored": ramp.stored,
        "HighBit": ramp.high,
        "PixelRepresentation": int(ramp.signed),
        "PhotometricInterpretation": "MONOCHROME1" if ramp.inverted else "MONOCHROME2",
        "RescaleSlope": ramp.slope,
        "RescaleIntercept": ramp.intercept,
        "VOILUTFunction": ramp.function,
    }
    if ramp.windows:
        centres, widths = zip(*ramp.windows, strict=True)
        tags |= {"WindowCenter": list(centres), "WindowWidth": list(widths)}
    for name, look_ups_of in (("ModalityLUTSequence", ramp.modality), ("VOILUTSequence", ramp.voi)):
        if look_ups_of is not None:
            tags[name] = sequence(
                *(
                    table(
                        one.first, one.bits, one.entries, packed=one.packed, big_endian=big_endian
                    )
                    for one in look_ups_of
                )
            )
    data = pixels.astype(pixels.dtype.newbyteorder(order)).tobytes()
    return write_dicom(path, pixels, syntax=ramp.syntax, pixel_data=data, **tags)


def check(ramp, folder):
    path = written(ramp, folder / "a.dcm")
    expected = slow_image(ramp)
    spread = 0.0 if expected is None else max(expected) - min(expected)
    try:
        image = dicom.read(path).image
    except dicom.Rejected as error:
        event(error.code)
        assert error.code == "BAD_HEADER"
        assert spread <= 1, "rejected, though the transforms give an image"
        return
    event("read")
    assert image.min() < image.max(), "one grey from values that vary"
    assert expected is not None
    assert np.abs(image.ravel() - np.array(expected)).max() <= 1


quickly = {"deadline": None, "suppress_health_check": list(HealthCheck)}


@settings(max_examples=200, **quickly)
@given(ramps())
def test_a_ramp_with_any_legal_header_is_what_the_standard_says_or_has_a_code(tmp_path, ramp):
    check(ramp, tmp_path)


@pytest.mark.slow
@settings(max_examples=20_000, **quickly)
@given(ramps())
def test_20_000_ramps_are_what_the_standard_says_or_have_a_code(tmp_path, ramp):
    check(ramp, tmp_path)


def test_the_slow_reading_by_hand():
    """A 12-bit ramp without transforms: the first pixel is 0, the last 4095, the second 65."""
    ramp = Ramp(16, 12, 11, False, False, SYNTAXES[0], 0, None, None, None, None)
    assert patterns(ramp)[:2] == [0, 65]
    assert slow_image(ramp)[1] == pytest.approx(65 * 255 / 4095)
    ramp.windows = [("NaN", 5), (65, 3)]  # (x - 64.5) / 2 + 0.5
    assert slow_image(ramp)[:3] == [0, 0.75 * 255, 255]
    ramp.windows, ramp.voi = [], [LookUp(64, 8, [3, 7, 255], packed=False)]
    assert slow_image(ramp)[:3] == [3, 7, 255]
    ramp.signed, ramp.inverted, ramp.voi = True, True, None
    assert slow_image(ramp)[0] == pytest.approx(255 - 2048 * 255 / 4095)
