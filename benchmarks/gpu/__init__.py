"""What docs/gpu.md claims, checked and timed on the card that is here."""
