"""Radiographs that no stage prepared: read, predict, draw, write as DICOM (predict_radiographs)."""
