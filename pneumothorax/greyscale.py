"""Stored values of a DICOM image -> grey levels: the standard's transforms, arrays in, arrays out.

In the order of PS3.4 N.2: the modality LUT, the window or VOI LUT, the inversion of
MONOCHROME1, and last the fixed range of possible values to 0..255. An image of at most 16
bits has at most 65,536 different words, so all of this is done once per word
(`grey_levels`) and not once per pixel (`look_up`). Nothing is stretched to the range of
one image.
"""

from dataclasses import dataclass
from typing import NamedTuple

import numpy as np

FUNCTIONS = ("LINEAR", "LINEAR_EXACT", "SIGMOID")  # PS3.3 C.11.2.1.2 and C.11.2.1.3


class Span(NamedTuple):
    """The lowest and the highest value that is possible, whatever one image holds."""

    low: float
    high: float


@dataclass(frozen=True)
class Bits:
    """Where the values are in their words (PS3.5 8.1.1); what is around them is no value."""

    stored: int  # how many bits a value has
    high: int  # position of its highest bit, 0 for the lowest bit of the word
    signed: bool  # two's complement of `stored` bits

    @property
    def span(self) -> Span:
        """The values that `stored` bits can hold."""
        if self.signed:
            return Span(-(2.0 ** (self.stored - 1)), 2.0 ** (self.stored - 1) - 1)
        return Span(0.0, 2.0**self.stored - 1)

    def cut(self, words: np.ndarray) -> np.ndarray:
        """Unsigned words -> their values' bits alone, the lowest at 0, of the same type."""
        return (words >> (self.high + 1 - self.stored)) & (2**self.stored - 1)

    def values(self, words: np.ndarray) -> np.ndarray:
        """Unsigned words -> stored values, float64."""
        values = self.cut(words).astype(np.float64)
        if self.signed:
            values[values > self.span.high] -= 2.0**self.stored
        return values


@dataclass(frozen=True)
class Rescale:
    """Rescale slope and intercept (PS3.3 C.11.1)."""

    slope: float = 1.0
    intercept: float = 0.0

    def __call__(self, values: np.ndarray, span: Span) -> tuple[np.ndarray, Span]:
        """The rescaled values and their span."""
        ends = (end * self.slope + self.intercept for end in span)
        return values * self.slope + self.intercept, Span(*sorted(ends))


@dataclass(frozen=True, eq=False)
class Table:
    """A look-up table of the modality or VOI LUT module (PS3.3 C.11.1.1 and C.11.2.1.1)."""

    first: int  # the value of the first entry, as the 16 bits of the descriptor, unsigned
    bits: int  # of an entry, as declared
    entries: np.ndarray  # (N,), unsigned

    @property
    def span(self) -> Span:
        """All that the declared bits can hold; where the entries need other bits, their range.

        Tables of 10 bits that declare 16 are common: as declared, they are black.
        """
        low, high = int(self.entries.min()), int(self.entries.max())
        return Span(0.0, 2.0**self.bits - 1) if high.bit_length() == self.bits else Span(low, high)

    def __call__(self, values: np.ndarray, span: Span) -> tuple[np.ndarray, Span]:
        """The values' entries and their span; values outside the table get its ends."""
        index = np.rint(values) - self.first_mapped(span)
        index = np.clip(index, 0, len(self.entries) - 1).astype(np.intp)
        return self.entries[index].astype(np.float64), self.span

    def first_mapped(self, span: Span) -> int:
        """The value of the first entry, for a table of values in `span`.

        Its 16 bits are signed if those values can be negative, whatever VR the file
        declares; or if as unsigned no value could reach the second entry.
        """
        is_signed = span.low < 0 or self.first > span.high
        return self.first - 0x10000 if is_signed and self.first >= 0x8000 else self.first


@dataclass(frozen=True)
class Window:
    """A window (PS3.3 C.11.2.1.2 and C.11.2.1.3); its width is at least 1."""

    centre: float
    width: float
    function: str = "LINEAR"  # one of FUNCTIONS

    def __call__(self, values: np.ndarray) -> np.ndarray:
        """Values -> shares of the output range, 0..1."""
        centre, width = self.centre, self.width
        if self.function == "SIGMOID":
            return 1 / (1 + np.exp(-4 * (values - centre) / width))
        if self.function == "LINEAR":
            centre, width = centre - 0.5, width - 1
        if width == 0:
            return (values > centre).astype(np.float64)
        return np.clip((values - centre) / width + 0.5, 0, 1)


def grey_levels(
    values: np.ndarray,
    span: Span,
    *,
    modality: Rescale | Table,
    voi: Window | Table | None,
    inverted: bool,
) -> np.ndarray:
    """Stored values -> grey levels 0..255, uint8 of the same shape.

    Args:
        span: of the stored values.
        inverted: whether the lowest value is white (MONOCHROME1, PS3.3 C.7.6.3.1.2).

    Raises ValueError where the numbers are too large to compute with, or give no range.
    """
    with np.errstate(over="ignore", invalid="ignore"):
        values, span = modality(values, span)
        if isinstance(voi, Window):
            values, span = voi(values), Span(0.0, 1.0)
        elif voi is not None:
            values, span = voi(values, span)
    if not (np.isfinite(values).all() and span.low < span.high):
        raise ValueError("the header's numbers give no range of values")
    return _levels(span.low + span.high - values if inverted else values, span)


def to_8_bits(image: np.ndarray, bits: int) -> np.ndarray:
    """(H, W) unsigned values of `bits` bits -> (H, W) uint8, by the range of these bits."""
    if bits == 8:
        return image
    values = np.arange(2**bits)
    return look_up(_levels(values, Span(0, 2**bits - 1)), image)


def _levels(values: np.ndarray, span: Span) -> np.ndarray:
    """Values in the span -> uint8 in 0..255, rounded and clipped."""
    scaled = (values - span.low) * (255.0 / (span.high - span.low))
    return np.clip(np.rint(scaled), 0, 255).astype(np.uint8)


def look_up(levels: np.ndarray, words: np.ndarray) -> np.ndarray:
    """Replace each word by its level.

    Args:
        levels: (2 ** bits,) uint8, the level of every possible word.
        words: (H, ...) unsigned, of at most that many bits.
    """
    image = np.empty(words.shape, np.uint8)
    for top in range(0, len(words), 16):  # numpy widens indices to 64 bits: not all at once
        image[top : top + 16] = levels.take(words[top : top + 16], mode="clip")  # clips nothing
    return image
