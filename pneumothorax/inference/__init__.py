"""Radiographs that no stage prepared: read, predict, draw, export."""
