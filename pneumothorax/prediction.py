"""Probability maps of many images by one or several networks, averaged over a horizontal flip, in bounded memory."""

import hashlib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import torch
from torch.utils.data import DataLoader
from tqdm import tqdm

from pneumothorax import artifacts, atomic, png, postprocess, records
from pneumothorax.dataset import InOrder, RadiographDataset, start_worker, to_network
from pneumothorax.journal import Journal


@dataclass(frozen=True)
class Source:
    """Where images come from and where maps go."""

    output: Path
    run: str
    cache_size: int
    image_size: int
    batch_size: int
    workers: int
    device: torch.device


@torch.inference_mode()
def probabilities(networks: Sequence[torch.nn.Module], images: torch.Tensor) -> torch.Tensor:
    """(N, 1, H, W) images in [0, 1] -> (N, 1, H, W) float32: the networks' mean over image and mirror."""
    mirrored = images.flip(3)
    total = torch.zeros_like(images)
    for network in networks:
        total += network(images).sigmoid().float()
        total += network(mirrored).sigmoid().float().flip(3)
    return total / (2 * len(networks))


def predict(
    networks: Sequence[torch.nn.Module],
    rows: pd.DataFrame,
    source: Source,
    journal: Journal,
    *,
    split: str,
    fold: int | None,
    key: str,
) -> None:
    """Write the map of every manifest row that has none made from the same weights (`key`) and image."""
    artifacts.probability_map(source.output, source.run, split, "x").parent.mkdir(parents=True, exist_ok=True)
    atomic.sweep(artifacts.probability_map(source.output, source.run, split, "x").parent)
    todo = rows[[not _is_done(journal, source, row, split, key) for row in rows.itertuples()]].reset_index(drop=True)
    for image_id, digest, stored in _maps(networks, todo, source, _title(split, fold)):
        data = png.encode_small(stored)
        atomic.write_bytes(artifacts.probability_map(source.output, source.run, split, image_id), data, sync=False)
        entry = {
            "key": _entry_key(key, digest),
            "split": split,
            "fold": fold,
            "p_max": int(stored.max()) / 255,
            "sha256": hashlib.sha256(data).hexdigest(),
        }
        journal.append(f"{split}/{image_id}", entry)


def table(journal: Journal, rows: pd.DataFrame, split: str) -> pd.DataFrame:
    """The predictions table's rows of one split, in the order of `rows`."""
    entries: list[dict[str, Any]] = []
    for image_id in rows["image_id"]:
        entry = journal.entries[f"{split}/{image_id}"]
        fold = "" if entry["fold"] is None else entry["fold"]
        entries.append(
            {"image_id": image_id, "split": split, "fold": fold, "p_max": entry["p_max"], "sha256": entry["sha256"]}
        )
    return pd.DataFrame(entries, columns=["image_id", "split", "fold", "p_max", "sha256"])


def _maps(
    networks: Sequence[torch.nn.Module], rows: pd.DataFrame, source: Source, title: str
) -> Iterator[tuple[str, str, np.ndarray]]:
    """(image id, hash of the cached image, (S, S) uint8 map) of every row."""
    if rows.empty:
        return
    images = RadiographDataset(
        source.output, rows.assign(positive=0), cache_size=source.cache_size, image_size=source.image_size, config=None
    )
    batches = InOrder(len(images), source.batch_size)
    loader = DataLoader(images, batch_sampler=batches, num_workers=source.workers, worker_init_fn=start_worker)
    with tqdm(total=len(rows), unit="image", desc=title) as bar:
        for batch in loader:
            maps = probabilities(networks, to_network(batch.image, source.device)).cpu().numpy()
            for index, probability in zip(batch.position.tolist(), maps[:, 0], strict=True):
                row = rows.iloc[index]
                yield row["image_id"], row["sha256"], postprocess.quantise(probability)
            bar.update(len(maps))


def _is_done(journal: Journal, source: Source, row: Any, split: str, key: str) -> bool:
    entry = journal.entries.get(f"{split}/{row.image_id}")
    if entry is None or entry["key"] != _entry_key(key, row.sha256):
        return False
    path = artifacts.probability_map(source.output, source.run, split, row.image_id)
    return path.is_file() and records.sha256(path) == entry["sha256"]


def _entry_key(key: str, image_hash: str) -> str:
    return f"{key}:{image_hash}"


def _title(split: str, fold: int | None) -> str:
    return f"fold {fold}" if fold is not None else split
