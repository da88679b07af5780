"""What the process runs on: device, several processes, interruption, loader workers, checkpoints."""
