"""What the process runs on: device, several processes, interruption, workers, checkpoints."""
