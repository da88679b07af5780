"""Scores with intervals: per image, bootstrap over patients, comparisons, strata, curves."""
