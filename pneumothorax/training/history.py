"""The history of a fold's training: history.csv, the source of truth, and what is drawn from it."""

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
from pneumothorax.training.validation import Example

Row = dict[str, Any]


class Log:
    """with Log(folder, ...) as log: one row, one picture and one line on the terminal per epoch, by the main process.

    Args:
        folder: the fold's.
        epochs: of the whole training.
        title: of the picture.
    """

    def __init__(self, output: Path, files: artifacts.Fold, *, epochs: int) -> None:
        self.output, self.files, self.epochs = output, files, epochs
        self.finished_epochs = 0

    def rewrite(self, rows: Sequence[Row]) -> None:
        """Go on after these rows: an epoch may be in the file that the state to go on from does not have."""
        self.finished_epochs = len(rows)
        if distributed.is_main():
            self._write(rows)

    def __enter__(self) -> Self:
        if distributed.is_main():
            from pneumothorax.training.tensorboard_log import TensorBoardLog

            folder = self.output / self.files.tensorboard
            self.tensorboard = TensorBoardLog(folder, finished_epochs=self.finished_epochs)
        return self

    def epoch(self, rows: Sequence[Row], examples: Sequence[Example], line: str) -> None:
        """Log the last of all rows so far."""
        if not distributed.is_main():
            return
        from pneumothorax.training import progress

        self._write(rows)
        progress.draw(
            self.output / self.files.progress,
            rows,
            epochs=self.epochs,
            title=f"{self.files.run}, fold {self.files.number}",
        )
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
    """Whether the best score is at least `patience` validations old; one that is only equalled is not renewed."""
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
