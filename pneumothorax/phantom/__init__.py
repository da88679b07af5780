"""The demo data: chest phantoms in real DICOM files."""
