"""Figures written to files."""

from pneumothorax import plotting


def save(figure, path):
    path.write_bytes(plotting.rendered(figure, path.suffix.removeprefix(".")))
