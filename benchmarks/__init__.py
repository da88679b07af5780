"""Our way against the naive way and the floor, in one run: `python -m benchmarks.NAME`."""
