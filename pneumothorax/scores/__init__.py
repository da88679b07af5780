"""Believable numbers: per image, with intervals over patients, compared, by stratum, as curves."""
