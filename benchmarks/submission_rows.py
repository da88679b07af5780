"""Stage 04: a probability map -> its row of the submission.

Goal: at least 400 times the naive way. The maps are label masks, downsampled to 512 and
blurred, and 78 % empty ones, as in the competition.

ours    upsample to 1024, triplet, connected components, run lengths
naive   upsample as float, thresholds, a loop over connected components, run lengths by pixel

    python -m benchmarks.submission_rows --input DIR
"""

import cv2
import numpy as np
from scipy import ndimage

from benchmarks import timing
from benchmarks.run_lengths import encode_naive
from pneumothorax import png, rle
from pneumothorax.data import labels
from pneumothorax.masks import postprocess

SHAPE = (1024, 1024)
TRIPLET = postprocess.Triplet(top=0.7, min_area=600, bottom=0.3, min_component=300)
SHARE_POSITIVE = 0.22


def main() -> None:
    args = timing.parser(__doc__).parse_args()
    timing.machine("numpy", "opencv-python-headless", "scipy")
    with timing.material(args) as (_, path):
        rows = [rows for rows in labels.read(path).rows.values() if rows]
    positive = [soft_map(rle.union(texts, SHAPE)) for texts in rows[:4]]
    noise = np.random.default_rng(0).integers(0, 40, (512, 512), dtype=np.uint8)
    maps = positive + [noise] * round(len(positive) * (1 / SHARE_POSITIVE - 1))
    different = [naive(stored) != ours(stored) for stored in maps[:5]]
    print(f"{sum(different)} of 5 rows differ (float against 8-bit interpolation at the threshold)")
    ways = {
        "ours": lambda: [ours(stored) for stored in maps],
        "naive": lambda: [naive(stored) for stored in maps],
    }
    medians = timing.compare(ways, repeats=args.repeats, per=len(maps), unit="map")
    timing.ratio(medians, "naive", "ours", "at least 400")
    ways = {
        "ours, positive": lambda: [ours(stored) for stored in positive],
        "naive, positive": lambda: [naive(m) for m in positive],
    }
    medians = timing.compare(ways, repeats=args.repeats, per=len(positive), unit="map")
    timing.ratio(medians, "naive, positive", "ours, positive", "none set")


def soft_map(mask: np.ndarray) -> np.ndarray:
    return cv2.GaussianBlur(png.downsample(mask * np.uint8(255), 512), (0, 0), 3)


def ours(stored: np.ndarray) -> str:
    return rle.encode(postprocess.mask(stored, TRIPLET, SHAPE))


def naive(stored: np.ndarray) -> str:
    probabilities = cv2.resize(
        stored.astype(np.float64) / 255, SHAPE[::-1], interpolation=cv2.INTER_LINEAR
    )
    if (probabilities > TRIPLET.top).sum() < TRIPLET.min_area:
        return encode_naive(np.zeros(SHAPE, dtype=np.uint8))
    mask = probabilities > TRIPLET.bottom
    labelled, n = ndimage.label(mask, structure=np.ones((3, 3)))
    kept = np.zeros(SHAPE, dtype=np.uint8)
    for number in range(1, n + 1):
        component = labelled == number
        if component.sum() >= TRIPLET.min_component:
            kept[component] = 1
    return encode_naive(kept)


if __name__ == "__main__":
    main()
