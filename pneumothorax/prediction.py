"""Probability maps of many images by one or several networks, averaged over a horizontal flip, in bounded memory."""

import hashlib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pandas as pd
import torch
from torch.utils.data import DataLoader
from tqdm import tqdm

from pneumothorax import artifacts, atomic, png, postprocess, records
from pneumothorax.dataset import InOrder, RadiographDataset, start_worker, to_network
from pneumothorax.errors import bad_list
from pneumothorax.journal import Journal


class Predictor(NamedTuple):
    """A network in evaluation mode and the height and width of the images it was trained on."""

    network: torch.nn.Module
    image_size: int


@dataclass(frozen=True)
class Source:
    """Where images come from and where maps go."""

    output: Path
    run: str
    cache_size: int
    batch_size: int
    workers: int
    device: torch.device


def ready(network: torch.nn.Module, device: torch.device) -> torch.nn.Module:
    """The network in evaluation mode on the device, in the memory format in which its convolutions are fastest."""
    return network.to(device).to(memory_format=torch.channels_last).eval()  # type: ignore[call-overload]


@torch.inference_mode()
def probabilities(networks: Sequence[torch.nn.Module], images: torch.Tensor) -> torch.Tensor:
    """(N, 1, H, W) images in [0, 1] -> (N, 1, H, W) float32: the networks' mean over image and mirror."""
    mirrored = images.flip(3)
    total = torch.zeros_like(images)
    for network in networks:
        total += network(images).sigmoid().float()
        total += network(mirrored).sigmoid().float().flip(3)
    return total / (2 * len(networks))


def predict_splits(
    networks: Sequence[Predictor],
    folds: Sequence[int],
    rows: dict[str, pd.DataFrame],
    splits: Sequence[str],
    *,
    source: Source,
    keys: Sequence[str],
) -> pd.DataFrame:
    """Out-of-fold maps fold by fold, then test maps with all networks; returns the predictions table.

    Args:
        networks, folds, keys: one network per fold, the fold it was not trained on, and the hash of its weights.
        rows: manifest rows by split; those of OOF have their `fold`.
    """
    frames = []
    with Journal(artifacts.prediction_journal(source.output, source.run)) as journal:
        for split in splits:
            if split == artifacts.OOF:
                for network, fold, key in zip(networks, folds, keys, strict=True):
                    held_out = rows[split][rows[split]["fold"] == fold]
                    _predict([network], held_out, source, journal, split=split, fold=fold, key=key)
            else:
                _predict(networks, rows[split], source, journal, split=split, fold=None, key="+".join(keys))
            frames.append(_table(journal, rows[split], split))
    return pd.concat(frames, ignore_index=True)


def maps_are_whole(output: Path, run: str) -> bool:
    """Whether every map of the predictions table is there with its hash."""
    table = artifacts.read_table(output, artifacts.predictions(run))
    for split, image_id, digest in zip(table["split"], table["image_id"], table["sha256"], strict=True):
        path = artifacts.probability_map(output, run, split, image_id)
        if not path.is_file() or records.sha256(path) != digest:
            return False
    return True


def _predict(
    networks: Sequence[Predictor],
    rows: pd.DataFrame,
    source: Source,
    journal: Journal,
    *,
    split: str,
    fold: int | None,
    key: str,
) -> None:
    """Write the map of every manifest row that has none made from the same weights (`key`) and image."""
    folder = artifacts.probability_map(source.output, source.run, split, "x").parent
    folder.mkdir(parents=True, exist_ok=True)
    atomic.sweep(folder)
    todo = rows[[not _is_done(journal, source, row, split, key) for row in rows.itertuples()]].reset_index(drop=True)
    broken = []
    for image_id, digest, probability in _maps(networks, todo, source, f"fold {fold}" if fold is not None else split):
        if not np.isfinite(probability).all():
            broken.append(image_id)
            continue
        data = png.encode_small(postprocess.quantise(probability))
        atomic.write_bytes(artifacts.probability_map(source.output, source.run, split, image_id), data, sync=False)
        entry = {
            "key": _entry_key(key, digest),
            "fold": fold,
            "p_max": float(probability.max()),
            "sha256": hashlib.sha256(data).hexdigest(),
        }
        journal.append(f"{split}/{image_id}", entry)
    if broken:
        raise bad_list(f"run {source.run}: {len(broken)} maps are not finite numbers: train the run again", broken)


def _table(journal: Journal, rows: pd.DataFrame, split: str) -> pd.DataFrame:
    """The predictions table's rows of one split, in the order of `rows`."""
    entries: list[dict[str, Any]] = []
    for image_id in rows["image_id"]:
        entry = journal.entries[f"{split}/{image_id}"]
        fold = "" if entry["fold"] is None else entry["fold"]
        facts = {"fold": fold, "p_max": entry["p_max"], "sha256": entry["sha256"]}
        entries.append({"image_id": image_id, "split": split, **facts})
    return pd.DataFrame(entries, columns=list(artifacts.predictions(split).columns))


def _maps(
    networks: Sequence[Predictor], rows: pd.DataFrame, source: Source, title: str
) -> Iterator[tuple[str, str, np.ndarray]]:
    """(image id, hash of the cached image, (S, S) float32 probabilities) of every row."""
    if rows.empty:
        return
    image_size = networks[0].image_size
    image_ids, digests = rows["image_id"].tolist(), rows["sha256"].tolist()
    images = RadiographDataset(
        source.output, rows.assign(positive=0), cache_size=source.cache_size, image_size=image_size, config=None
    )
    batches = InOrder(len(images), source.batch_size)
    loader = DataLoader(images, batch_sampler=batches, num_workers=source.workers, worker_init_fn=start_worker)
    with tqdm(total=len(rows), unit="image", desc=title) as bar:
        for batch in loader:
            maps = probabilities([one.network for one in networks], to_network(batch.image, source.device))
            for position, probability in zip(batch.position.tolist(), maps[:, 0].cpu().numpy(), strict=True):
                yield image_ids[position], digests[position], probability
            bar.update(len(maps))


def _is_done(journal: Journal, source: Source, row: Any, split: str, key: str) -> bool:
    entry = journal.entries.get(f"{split}/{row.image_id}")
    if entry is None or entry["key"] != _entry_key(key, row.sha256):
        return False
    path = artifacts.probability_map(source.output, source.run, split, row.image_id)
    return path.is_file() and records.sha256(path) == entry["sha256"]


def _entry_key(key: str, image_hash: str) -> str:
    return f"{key}:{image_hash}"
