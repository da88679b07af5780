"""The submission CSV: write, read, check, compare (stage 04)."""
