"""From probability maps to masks: post-processing, thresholds, blending, calibration (stage 04)."""
