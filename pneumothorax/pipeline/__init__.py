"""The contract between the stages: files, records, flags and exit codes, locks, where work is done."""
