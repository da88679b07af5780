"""Our way against the naive way and the floor: `python -m benchmarks.NAME`."""
