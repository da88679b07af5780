"""The history of a fold's training: history.csv, the source of truth, and its pictures."""

import csv
import io
import math
from collections.abc import Sequence
from pathlib import Path
from types import TracebackType
from typing import Any, Self

from tqdm import tqdm

from pneumothorax.compute import distributed
from pneumothorax.pipeline import artifacts, atomic
from pneumothorax.training import drawing
from pneumothorax.training.validation import Example

Row = dict[str, Any]  # artifacts.HISTORY_COLUMNS


class Log:
    """with Log(...) as log: log.epoch(...) after every epoch; the main process alone writes.

    Args:
        files: where the fold's files are, below `output`.
        epochs: of the whole training.
    """

    def __init__(self, output: Path, files: artifacts.Fold, *, epochs: int) -> None:
        self.output, self.files, self.epochs = output, files, epochs
        self.finished_epochs = 0

    def rewrite(self, rows: Sequence[Row]) -> None:
        """Resume after these rows: the file may have an epoch that the checkpoint lacks."""
        self.finished_epochs = len(rows)
        if distributed.is_main():
            self._write(rows)

    def __enter__(self) -> Self:
        if distributed.is_main():
            folder = self.output / self.files.tensorboard
            self.tensorboard = drawing.TensorBoardLog(folder, finished_epochs=self.finished_epochs)
        return self

    def epoch(self, rows: Sequence[Row], examples: Sequence[Example], line: str) -> None:
        """Write the last of all rows so far, and print the line."""
        if not distributed.is_main():
            return
        self._write(rows)
        title = f"{self.files.run}, fold {self.files.number}"
        path = self.output / self.files.progress
        drawing.write_progress(path, rows, epochs=self.epochs, title=title)
        self.tensorboard.scalars(rows[-1])
        if examples:
            images, masks, maps = zip(*examples, strict=True)
            self.tensorboard.overlays(images, masks, maps, epoch=rows[-1]["epoch"])
        tqdm.write(line)

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        if distributed.is_main():
            self.tensorboard.close()

    def _write(self, rows: Sequence[Row]) -> None:
        text = io.StringIO(newline="")
        writer = csv.DictWriter(text, artifacts.HISTORY_COLUMNS, lineterminator="\n")
        writer.writeheader()
        writer.writerows({key: _rounded(value) for key, value in row.items()} for row in rows)
        atomic.write_text(self.output / self.files.history.path, text.getvalue())


def has_stalled(rows: Sequence[Row], *, patience: int | None) -> bool:
    """Whether the first best score is at least `patience` validations old."""
    scores = [row["siim_dice"] for row in rows if not math.isnan(row["siim_dice"])]
    return (
        patience is not None
        and bool(scores)
        and len(scores) - 1 - scores.index(max(scores)) >= patience
    )


def _rounded(value: float) -> float | str:
    if isinstance(value, int):
        return value
    return "" if math.isnan(value) else f"{value:.6g}"
