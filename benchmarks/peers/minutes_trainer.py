"""nnU-Net's default trainer with a time limit instead of 1,000 epochs: trains and predicts a fold.

Runs in nnU-Net's environment, for nnunet.py. Everything else is nnU-Net's default: plans,
augmentation, loss, optimizer, and a polynomial schedule over all epochs. nnUNetv2_train
would do, but it imports every trainer that comes with nnU-Net, and they need torchvision.
"""

import json
import os
import sys
import time
from pathlib import Path

import torch
from nnunetv2.training.nnUNetTrainer.nnUNetTrainer import nnUNetTrainer

from benchmarks.peers.budget import epochs_within

# The default is 250 and 50, hours on a CPU. Short epochs let the schedule, which moves once per
# epoch, end on time; the share of time that validation takes stays the same.
TRAINING_ITERATIONS, VALIDATION_ITERATIONS = 5, 1


class MinutesTrainer(nnUNetTrainer):
    def train_within(self, seconds: float) -> list[dict[str, float]]:
        """As its own run_training, but the number of epochs follows from how long they take.

        Returns a row of artifacts.HISTORY_COLUMNS per epoch.
        """
        self.num_iterations_per_epoch = TRAINING_ITERATIONS
        self.num_val_iterations_per_epoch = VALIDATION_ITERATIONS
        history: list[dict[str, float]] = []
        self.on_train_start()
        started, elapsed = time.monotonic(), 0.0
        while self.current_epoch < self.num_epochs:
            self.run_epoch()
            before, elapsed = elapsed, time.monotonic() - started
            history.append(self.describe_epoch(elapsed - before))
            epochs = epochs_within(seconds, done=self.current_epoch, elapsed=elapsed)
            self.num_epochs = self.lr_scheduler.max_steps = epochs
        self.on_train_end()
        return history

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

    def describe_epoch(self, seconds: float) -> dict[str, float]:
        return {
            "epoch": self.current_epoch,
            "learning_rate": self.optimizer.param_groups[0]["lr"],
            "train_loss": float(self.logger.get_value("train_losses", step=-1)),
            "seconds": seconds,
            "images_per_second": self.num_iterations_per_epoch * self.batch_size / seconds,
        }


def main(folder: str, fold: str, seconds: str, history: str) -> None:
    """Train on the preprocessed data set in `folder`; the history goes to a JSON file."""
    torch.set_num_threads(os.cpu_count() or 1)  # as nnUNetv2_train does on a CPU
    plans, dataset = (
        json.loads(Path(folder, name).read_text("utf-8"))
        for name in ("nnUNetPlans.json", "dataset.json")
    )
    plans["continue_training"] = False
    trainer = MinutesTrainer(plans, "2d", int(fold), dataset, torch.device("cpu"))
    rows = trainer.train_within(float(seconds))
    Path(history).write_text(json.dumps(rows), "utf-8")
    trainer.perform_actual_validation(save_probabilities=True)


if __name__ == "__main__":
    main(*sys.argv[1:])
