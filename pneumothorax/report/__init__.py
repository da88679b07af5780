"""The report: page, gallery, figures (stage 05)."""
