"""Run lengths of real masks, against a loop per pixel (encode) and per run (decode).

Goal: encoding at least 400 times, decoding at least 8 times as fast. All ways give the
same text and the same contiguous (H, W) uint8 mask.

Masks in Fortran order, as most other decoders return them, are encoded in at most 1.2 times
the time of those in C order.

    python -m benchmarks.run_lengths --input DIR
"""

from collections import deque
from collections.abc import Iterable

import numpy as np

from benchmarks import timing
from pneumothorax import rle
from pneumothorax.data import labels

SHAPE = (1024, 1024)


def main() -> None:
    args = timing.parser(__doc__).parse_args()
    timing.machine("numpy", "opencv-python-headless")
    with timing.material(args) as (_, path):
        texts = [text for rows in labels.read(path).rows.values() for text in rows][: args.images]
    masks = [rle.decode(text, SHAPE) for text in texts]
    assert all(encode_naive(mask) == text for mask, text in zip(masks[:5], texts, strict=False))
    assert all((decode_naive(text) == mask).all() for mask, text in zip(masks, texts, strict=True))

    fortran = [np.asfortranarray(mask) for mask in masks]
    medians = timing.compare(
        {
            "encode, C order": lambda: [rle.encode(mask) for mask in masks],
            "encode, Fortran order": lambda: [rle.encode(mask) for mask in fortran],
        },
        repeats=args.repeats,
        per=len(masks),
        unit="mask",
    )
    timing.ratio(medians, "encode, Fortran order", "encode, C order", "at most 1.2")
    few = masks[:5]  # the naive encoder takes a fifth of a second per mask
    medians = timing.compare(
        {
            "encode, ours": lambda: [rle.encode(mask) for mask in few],
            "encode, naive": lambda: [encode_naive(m) for m in few],
        },
        repeats=args.repeats,
        per=len(few),
        unit="mask",
    )
    timing.ratio(medians, "encode, naive", "encode, ours", "at least 400")
    medians = timing.compare(
        {
            "decode, ours": lambda: drop(rle.decode(text, SHAPE) for text in texts),
            "decode, naive": lambda: drop(decode_naive(text) for text in texts),
        },
        repeats=args.repeats,
        per=len(texts),
        unit="mask",
    )
    timing.ratio(medians, "decode, naive", "decode, ours", "at least 8")


def drop(masks: Iterable[np.ndarray]) -> None:
    """Decode each mask and drop it, as the stages do: keeping them takes time."""
    deque(masks, maxlen=0)


def encode_naive(mask: np.ndarray) -> str:
    """One step per pixel, as most published solutions do, with the last run kept."""
    numbers, gap, length = [], 0, 0
    for column in range(mask.shape[1]):
        for row in range(mask.shape[0]):
            if mask[row][column]:
                length += 1
                continue
            if length:
                numbers += [gap, length]
                gap = length = 0
            gap += 1
    if length:
        numbers += [gap, length]
    return " ".join(str(number) for number in numbers) or rle.EMPTY


def decode_naive(text: str) -> np.ndarray:
    """One step per run."""
    mask = np.zeros(SHAPE[0] * SHAPE[1], dtype=np.uint8)
    numbers = [int(number) for number in text.split()]
    position = 0
    for gap, length in zip(numbers[0::2], numbers[1::2], strict=True):
        position += gap
        mask[position : position + length] = 1
        position += length
    return np.ascontiguousarray(mask.reshape(SHAPE[1], SHAPE[0]).T)


if __name__ == "__main__":
    main()
