"""Scores you can trust: per image, with intervals over patients, compared, by stratum, curves."""
