"""nnU-Net's default trainer with a time limit instead of 1,000 epochs.

nnU-Net imports this file in its own environment (nnUNet_extTrainer). Everything else is its
default: plans, augmentation, loss, optimizer, and a polynomial schedule over all epochs.
"""

import json
import os
import time
from pathlib import Path

import torch
from nnunetv2.training.nnUNetTrainer.nnUNetTrainer import nnUNetTrainer

from benchmarks.peers.budget import epochs_within

SECONDS = "PEER_SECONDS"  # environment variable: the time for all epochs
HISTORY = "peer_history.json"  # written to the folder of the fold

# The default is 250 and 50, hours on a CPU. Short epochs let the schedule, which moves once per
# epoch, end on time; the share of time that validation takes stays the same.
TRAINING_ITERATIONS, VALIDATION_ITERATIONS = 5, 1


class MinutesTrainer(nnUNetTrainer):
    # The names are nnU-Net's: it looks its arguments up by the names in the subclass.
    def __init__(self, plans, configuration, fold, dataset_json, device) -> None:
        super().__init__(plans, configuration, fold, dataset_json, device)
        self.num_iterations_per_epoch = TRAINING_ITERATIONS
        self.num_val_iterations_per_epoch = VALIDATION_ITERATIONS
        self.history: list[dict[str, float]] = []

    def run_training(self) -> None:
        """As nnU-Net's own, but the number of epochs follows from how long they take."""
        seconds = float(os.environ[SECONDS])
        self.on_train_start()
        started = time.monotonic()
        while self.current_epoch < self.num_epochs:
            self.run_epoch()
            elapsed = time.monotonic() - started
            self.describe_epoch(elapsed)
            epochs = epochs_within(seconds, done=self.current_epoch, elapsed=elapsed)
            self.num_epochs = self.lr_scheduler.max_steps = epochs
        Path(self.output_folder, HISTORY).write_text(json.dumps(self.history), "utf-8")
        self.on_train_end()

    def run_epoch(self) -> None:
        self.on_epoch_start()
        self.on_train_epoch_start()
        steps = range(self.num_iterations_per_epoch)
        self.on_train_epoch_end([self.train_step(next(self.dataloader_train)) for _ in steps])
        with torch.no_grad():
            self.on_validation_epoch_start()
            steps = range(self.num_val_iterations_per_epoch)
            self.on_validation_epoch_end(
                [self.validation_step(next(self.dataloader_val)) for _ in steps]
            )
        self.on_epoch_end()

    def describe_epoch(self, elapsed: float) -> None:
        """Add a row of artifacts.HISTORY_COLUMNS for the epoch that has just ended."""
        seconds = elapsed - sum(row["seconds"] for row in self.history)
        images = self.num_iterations_per_epoch * self.batch_size
        row = {
            "epoch": self.current_epoch,
            "learning_rate": self.optimizer.param_groups[0]["lr"],
            "train_loss": float(self.logger.get_value("train_losses", step=-1)),
            "seconds": seconds,
            "images_per_second": images / seconds,
        }
        self.history.append(row)
