"""What a blend gains over the best of its runs, with its interval over patients."""

from collections.abc import Mapping
from typing import Any

import pandas as pd

from pneumothorax.scores import comparison, per_image


def over_best_single(
    blend: pd.DataFrame,
    singles: Mapping[str, pd.DataFrame],
    manifest: pd.DataFrame,
    folds: pd.DataFrame,
    *,
    seed: int,
) -> dict[str, Any]:
    """The run with the highest SIIM Dice, its score, and the blend's minus it: difference, low, high (95 %), p.

    The best run is chosen by the score that it is compared with, which favours it: the gain is rather understated.

    Args:
        blend, singles: artifacts.Submission.out_of_fold rows, nested alike; their `rle` is not needed.
        manifest, folds: artifacts.MANIFEST and artifacts.FOLDS rows.
    """
    best = max(singles, key=lambda run: singles[run]["dice"].mean())
    blended, single = (
        per_image.table(images, manifest, folds, best) for images in (blend, singles[best])
    )
    found = comparison.paired(blended, single, ["siim_dice"], seed=seed).iloc[0]
    numbers = {name: float(found[name]) for name in ("difference", "low", "high", "p")}
    return {"run": best, "siim_dice": float(singles[best]["dice"].mean()), **numbers}


def sentence(found: Mapping[str, Any]) -> str:
    """For the terminal."""
    interval = f"{found['low']:+.4f} to {found['high']:+.4f}, p = {found['p']:.3f}"
    single = f"best single run {found['run']} {found['siim_dice']:.4f}"
    return f"{single}: the blend gains {found['difference']:+.4f} ({interval})"
