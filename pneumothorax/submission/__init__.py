"""The submission CSV: write, read, check, compare."""
