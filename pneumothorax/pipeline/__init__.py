"""The contract between stages: files, records, flags, exit codes, locks, engines."""
