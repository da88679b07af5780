"""Probability maps of whole splits, by one or several processes; resumable."""

import functools
import hashlib
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pandas as pd
import torch
from torch.utils.data import DataLoader

from pneumothorax import png
from pneumothorax.compute import beside, distributed, precisions
from pneumothorax.compute.loading import (
    PATIENCE_S,
    DeadWorker,
    Workers,
    start_worker,
    worker_deaths,
)
from pneumothorax.data import cache
from pneumothorax.data.dataset import InOrder, RadiographDataset, to_network
from pneumothorax.errors import BadInput, bad_list, counted
from pneumothorax.masks import postprocess
from pneumothorax.pipeline import artifacts, atomic, journal, records
from pneumothorax.pipeline.journal import Journal
from pneumothorax.pipeline.progress import show_progress
from pneumothorax.prediction import probability_maps
from pneumothorax.prediction.probability_maps import Predictor

Entries = dict[str, dict[str, Any]]  # of the journal, by "<split>/<image id>"


@dataclass(frozen=True)
class PredictionTask:
    """Where images come from, where maps go, and how they are computed."""

    output: Path
    run: str
    cache_size: int
    batch_size: int
    workers: int
    device: torch.device
    precision: str  # fp32, bf16 or fp16

    def map_path(self, split: str, image_id: str) -> Path:
        return self.output / artifacts.Run(self.run).probability_map(split, image_id)

    def key(self, weights: str, image_hash: str) -> str:
        """What a map is made from: weights (hashes), cached image, precision, what is averaged."""
        return f"{weights}:{image_hash}:{self.precision}:{probability_maps.AVERAGED}"


class Group(NamedTuple):
    """Images that the same networks predict."""

    split: str
    fold: int | None  # None where all folds' networks predict
    rows: pd.DataFrame  # of the manifest
    networks: list[Predictor]
    weights: str  # hashes


class Map(NamedTuple):
    """The (S, S) float32 probabilities of one image."""

    image_id: str
    image_hash: str  # of the cached image
    probabilities: np.ndarray
    p_classification: float | None  # None without a classification head


def rows(output: Path, folds: Sequence[int], names: Sequence[str]) -> dict[str, pd.DataFrame]:
    """Manifest rows of the splits `names` that have images; those of OOF have a `fold`.

    Raises BadInput where no split has any.
    """
    train = artifacts.training_rows(output)
    manifest = artifacts.read_table(output, artifacts.MANIFEST)
    of_split = {
        artifacts.OOF: train[train["fold"].isin(folds)],
        artifacts.TEST: manifest[manifest["split"] == artifacts.TEST],
    }
    found = {
        split: frame for split, frame in of_split.items() if split in names and not frame.empty
    }
    if not found:
        raise BadInput(f"no images to predict: the manifest has no {' or '.join(names)} images")
    return found


def checked_cache(output: Path, images: Mapping[str, pd.DataFrame], *, workers: int) -> int:
    """The size of the cached images, after comparing `images` with the manifest.

    Raises BadInput with a list of the damaged or missing ones.
    """
    size = cache.size(output)
    cache.verify(output, size, pd.concat(images.values()), workers=workers)
    return size


def predict(
    networks: Mapping[int, Predictor],
    images: Mapping[str, pd.DataFrame],
    *,
    task: PredictionTask,
    weights: Mapping[int, str],
) -> pd.DataFrame:
    """Write the maps that are missing or out of date; returns the predictions table.

    Training images are predicted by the network that has not seen them, test images by
    all networks. Several processes share the images batch by batch. Batches are those of
    a single process, and so are the maps, but for rounding with another number of threads.

    Args:
        networks, weights: by the fold that was held out in training; `weights` are hashes.
        images: `rows`.
    """
    run = artifacts.Run(task.run)
    known: Entries = {}
    for path in run.prediction_journals(task.output):
        known.update(journal.read(path))
    distributed.gather(None)  # every process has read before one writes
    with Journal(task.output / run.prediction_journal(distributed.rank())) as own:
        for group in _groups(networks, images, weights):
            _predict(group, task, known, own)
        if distributed.is_main():
            for name, entry in known.items():
                if own.entries.get(name) != entry:
                    own.append(name, entry)
    if distributed.is_main():
        for path in run.prediction_journals(task.output)[1:]:
            path.unlink()
    entries = [
        {"image_id": image_id, "split": split, **known[f"{split}/{image_id}"]}
        for split, frame in images.items()
        for image_id in frame["image_id"]
    ]
    return _table(entries, list(run.predictions.columns))


def is_current(output: Path, run: str, made_from: Mapping[str, Any]) -> bool:
    """Whether the run's maps are whole and made from these `settings` and `inputs`."""
    names = artifacts.Run(run)
    if not records.is_current(output, names.predicted, **made_from):
        return False
    table = artifacts.read_table(output, names.predictions)
    return all(
        _has_hash(output / names.probability_map(split, image_id), digest)
        for split, image_id, digest in zip(
            table["split"], table["image_id"], table["sha256"], strict=True
        )
    )


def seal(output: Path, run: str, frame: pd.DataFrame, made_from: Mapping[str, Any]) -> None:
    """Write the predictions table and its record of `settings` and `inputs`."""
    names = artifacts.Run(run)
    artifacts.write_table(output, names.predictions, frame)
    records.write(output, names.predicted, **made_from, outputs=[names.predictions.path])


def forget(output: Path, run: str) -> None:
    """Make the next `predict` compute every map from scratch."""
    for path in artifacts.Run(run).prediction_journals(output):
        path.unlink()


def _groups(
    networks: Mapping[int, Predictor],
    images: Mapping[str, pd.DataFrame],
    weights: Mapping[int, str],
) -> Iterator[Group]:
    """Out-of-fold images fold by fold, then test images with all networks."""
    for split, frame in images.items():
        if split != artifacts.OOF:
            yield Group(split, None, frame, list(networks.values()), "+".join(weights.values()))
            continue
        for fold, network in networks.items():
            yield Group(split, fold, frame[frame["fold"] == fold], [network], weights[fold])


def _predict(group: Group, task: PredictionTask, known: Entries, own: Journal) -> None:
    """Write the missing maps of a group.

    Their entries go to this process's journal `own` and to every process's `known`.
    """
    folder = task.map_path(group.split, "x").parent
    distributed.on_main(_clear, folder)
    missing = frozenset(
        position
        for position, row in enumerate(group.rows.itertuples())
        if not _is_done(known, group, row, task)
    )
    made: Entries = {}
    broken = []
    store = functools.partial(_store, group, task)
    try:
        with worker_deaths(), Workers():
            for image_id, entry in beside.in_order(store, _maps(group, missing, task)):
                if entry is None:
                    broken.append(image_id)
                    continue
                own.append(f"{group.split}/{image_id}", entry)
                made[f"{group.split}/{image_id}"] = entry
    except DeadWorker as death:
        raise BadInput(
            f"loading images failed ({death}); what is written so far is kept. "
            "Run the same command with fewer --workers"
        ) from death
    for entries, names in distributed.gather((made, broken)):
        known.update(entries)
        broken = sorted({*broken, *names})
    if broken:
        raise bad_list(
            f"run {task.run}: {counted(len(broken), 'probability map is', 'probability maps are')} "
            "not finite: "
            f"train it again with 02_train.py --run {task.run} --overwrite",
            broken,
        )


def _store(group: Group, task: PredictionTask, found: Map) -> tuple[str, dict[str, Any] | None]:
    """Write a map -> the image's id, and its entry, or None if a probability is not finite."""
    of_image = () if found.p_classification is None else (found.p_classification,)
    if not (np.isfinite(found.probabilities).all() and np.isfinite(of_image).all()):
        return found.image_id, None
    data = png.encode_small(postprocess.quantise(found.probabilities))
    atomic.write_bytes(task.map_path(group.split, found.image_id), data, sync=False)
    entry = {
        "key": task.key(group.weights, found.image_hash),
        "fold": group.fold,
        "p_max": float(found.probabilities.max()),
        "p_classification": found.p_classification,
        "sha256": hashlib.sha256(data).hexdigest(),
    }
    return found.image_id, entry


def _maps(group: Group, missing: frozenset[int], task: PredictionTask) -> Iterator[Map]:
    """The maps of this process's share of the rows at the positions `missing`.

    Batches are cut from all rows, not from the missing ones: a resumed run rounds as an
    undisturbed one does.
    """
    image_ids, digests = group.rows["image_id"].tolist(), group.rows["sha256"].tolist()
    images = RadiographDataset(
        task.output,
        group.rows.assign(positive=0),
        cache_size=task.cache_size,
        image_size=group.networks[0].image_size,
    )
    batches = InOrder(
        len(images),
        task.batch_size,
        needed=missing,
        rank=distributed.rank(),
        size=distributed.size(),
    )
    loader = DataLoader(
        images,
        batch_sampler=batches,
        num_workers=task.workers,
        worker_init_fn=start_worker,
        timeout=PATIENCE_S if task.workers else 0,
    )
    networks = [one.network for one in group.networks]
    title = group.split if group.fold is None else f"fold {group.fold}"
    with show_progress(total=len(missing), title=title, visible=distributed.is_main()) as bar:
        for batch in loader:
            pixels = to_network(batch.image, task.device)
            with precisions.autocast(task.device, task.precision):
                maps, classification = probability_maps.probabilities(networks, pixels)
            classifications = (
                [None] * len(maps) if classification is None else classification.tolist()
            )
            for position, one, p_classification in zip(
                batch.position.tolist(), maps[:, 0].cpu().numpy(), classifications, strict=True
            ):
                if position in missing:
                    yield Map(image_ids[position], digests[position], one, p_classification)
            bar.update(min(len(maps) * distributed.size(), len(missing) - bar.n))


def _is_done(known: Entries, group: Group, row: Any, task: PredictionTask) -> bool:
    """Whether the map of a manifest row exists, made from these weights and image."""
    entry = known.get(f"{group.split}/{row.image_id}")
    if entry is None or entry["key"] != task.key(group.weights, row.sha256):
        return False
    return _has_hash(task.map_path(group.split, row.image_id), entry["sha256"])


def _has_hash(path: Path, digest: str) -> bool:
    return path.is_file() and records.sha256(path) == digest


def _clear(folder: Path) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    atomic.sweep(folder)


def _table(entries: list[dict[str, Any]], columns: list[str]) -> pd.DataFrame:
    """Rows of the predictions table; empty cells for None."""
    filled = [
        {name: "" if value is None else value for name, value in entry.items()} for entry in entries
    ]
    return pd.DataFrame(filled, columns=columns)
