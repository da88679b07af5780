"""The demo data: chest phantoms, written as real DICOM files."""
