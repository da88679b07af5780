"""Training one fold (stage 02)."""
