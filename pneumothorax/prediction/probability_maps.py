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

from pneumothorax import png
from pneumothorax.compute import distributed, runtime
from pneumothorax.compute.loading import start_worker
from pneumothorax.data.dataset import InOrder, RadiographDataset, to_network
from pneumothorax.errors import bad_list
from pneumothorax.masks import postprocess
from pneumothorax.pipeline import artifacts, atomic, journal, records
from pneumothorax.pipeline.journal import Journal

Entries = dict[str, dict[str, Any]]  # of the journal, by "<split>/<image id>"


class Predictor(NamedTuple):
    """A network in evaluation mode and the height and width of the images it was trained on."""

    network: Any
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
    bf16: bool  # convolutions in 16 bits


def ready(network: torch.nn.Module, device: torch.device) -> torch.nn.Module:
    """The network in evaluation mode on the device, in the memory format in which its convolutions are fastest."""
    return network.to(device).to(memory_format=torch.channels_last).eval()  # type: ignore[call-overload]


@torch.inference_mode()
def probabilities(
    networks: Sequence[Any], images: torch.Tensor
) -> tuple[torch.Tensor, torch.Tensor | None]:
    """The networks' mean over image and mirror.

    Args:
        networks: each with `outputs` (models.network).
        images: (N, 1, H, W) in [0, 1].

    Returns (N, 1, H, W) float32 probabilities of pixels, and (N,) of an image to be positive where all networks have a
    classification head.
    """
    mirrored = images.flip(3)
    total = torch.zeros_like(images)
    classifications = []
    for network in networks:
        logits, classification = network.outputs(images)
        logits_mirrored, classification_mirrored = network.outputs(mirrored)
        total += logits.float().sigmoid()
        total += logits_mirrored.float().sigmoid().flip(3)
        if classification is not None and classification_mirrored is not None:
            classifications += [
                classification.float().sigmoid(),
                classification_mirrored.float().sigmoid(),
            ]
    complete = len(classifications) == 2 * len(networks)
    return total / (2 * len(networks)), torch.stack(classifications).mean(0) if complete else None


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

    Several processes share the images batch by batch: a batch is the same as in one process, and so are its maps (but
    for rounding, where the number of threads differs).

    Args:
        networks, folds, keys: one network per fold, the fold it was not trained on, and the hash of its weights.
        rows: manifest rows by split; those of OOF have their `fold`.
    """
    known: Entries = {}
    for path in artifacts.Run(source.run).prediction_journals(source.output):
        known.update(journal.read(path))
    distributed.gather(None)  # all have read before anyone writes
    with Journal(
        source.output / artifacts.Run(source.run).prediction_journal(distributed.rank())
    ) as own:
        for split in splits:
            if split == artifacts.OOF:
                for network, fold, key in zip(networks, folds, keys, strict=True):
                    held_out = rows[split][rows[split]["fold"] == fold]
                    _predict(
                        [network], held_out, source, known, own, split=split, fold=fold, key=key
                    )
            else:
                _predict(
                    networks,
                    rows[split],
                    source,
                    known,
                    own,
                    split=split,
                    fold=None,
                    key="+".join(keys),
                )
        if distributed.is_main():
            for name, entry in known.items():
                if own.entries.get(name) != entry:
                    own.append(name, entry)
    if distributed.is_main():
        for path in artifacts.Run(source.run).prediction_journals(source.output)[1:]:
            path.unlink()
    return pd.concat([_table(known, rows[split], split) for split in splits], ignore_index=True)


def maps_are_whole(output: Path, run: str) -> bool:
    """Whether every map of the predictions table is there with its hash."""
    table = artifacts.read_table(output, artifacts.Run(run).predictions)
    for split, image_id, digest in zip(
        table["split"], table["image_id"], table["sha256"], strict=True
    ):
        path = output / artifacts.Run(run).probability_map(split, image_id)
        if not path.is_file() or records.sha256(path) != digest:
            return False
    return True


def _predict(
    networks: Sequence[Predictor],
    rows: pd.DataFrame,
    source: Source,
    known: Entries,
    own: Journal,
    *,
    split: str,
    fold: int | None,
    key: str,
) -> None:
    """Write the map of every manifest row that has none made from the same weights (`key`) and image.

    Its entry goes to this process's journal `own` and to everyone's `known`.
    """
    folder = (source.output / artifacts.Run(source.run).probability_map(split, "x")).parent
    distributed.on_main(_clear, folder)
    todo = rows[
        [not _is_done(known, source, row, split, key) for row in rows.itertuples()]
    ].reset_index(drop=True)
    made: Entries = {}
    broken = []
    for found in _maps(networks, todo, source, f"fold {fold}" if fold is not None else split):
        if not np.isfinite(found.probabilities).all():
            broken.append(found.image_id)
            continue
        data = png.encode_small(postprocess.quantise(found.probabilities))
        path = source.output / artifacts.Run(source.run).probability_map(split, found.image_id)
        atomic.write_bytes(path, data, sync=False)
        entry = {
            "key": _entry_key(source, key, found.image_hash),
            "fold": fold,
            "p_max": float(found.probabilities.max()),
            "p_classification": found.p_classification,
            "sha256": hashlib.sha256(data).hexdigest(),
        }
        own.append(f"{split}/{found.image_id}", entry)
        made[f"{split}/{found.image_id}"] = entry
    for entries, names in distributed.gather((made, broken)):
        known.update(entries)
        broken = sorted({*broken, *names})
    if broken:
        raise bad_list(
            f"run {source.run}: {len(broken)} maps are not finite numbers: train the run again",
            broken,
        )


def _clear(folder: Path) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    atomic.sweep(folder)


def _table(known: Entries, rows: pd.DataFrame, split: str) -> pd.DataFrame:
    """The predictions table's rows of one split, in the order of `rows`."""
    entries: list[dict[str, Any]] = []
    for image_id in rows["image_id"]:
        entry = {"image_id": image_id, "split": split, **known[f"{split}/{image_id}"]}
        entries.append({name: "" if value is None else value for name, value in entry.items()})
    return pd.DataFrame(entries, columns=list(artifacts.Run(split).predictions.columns))


class Map(NamedTuple):
    """One image's (S, S) float32 probabilities, and the classification head's where there is one."""

    image_id: str
    image_hash: str  # of the cached image
    probabilities: np.ndarray
    p_classification: float | None


def _maps(
    networks: Sequence[Predictor], rows: pd.DataFrame, source: Source, title: str
) -> Iterator[Map]:
    """The maps of this process's share of the rows."""
    if rows.empty:
        return
    image_size = networks[0].image_size
    image_ids, digests = rows["image_id"].tolist(), rows["sha256"].tolist()
    images = RadiographDataset(
        source.output,
        rows.assign(positive=0),
        cache_size=source.cache_size,
        image_size=image_size,
    )
    batches = InOrder(
        len(images), source.batch_size, rank=distributed.rank(), size=distributed.size()
    )
    loader = DataLoader(
        images, batch_sampler=batches, num_workers=source.workers, worker_init_fn=start_worker
    )
    with tqdm(total=len(rows), unit="image", desc=title, disable=not distributed.is_main()) as bar:
        for batch in loader:
            with runtime.autocast(source.device, enabled=source.bf16):
                maps, classification = probabilities(
                    [one.network for one in networks], to_network(batch.image, source.device)
                )
            classifications = (
                [None] * len(maps) if classification is None else classification.tolist()
            )
            for position, one, p_classification in zip(
                batch.position.tolist(), maps[:, 0].cpu().numpy(), classifications, strict=True
            ):
                yield Map(image_ids[position], digests[position], one, p_classification)
            bar.update(min(len(maps) * distributed.size(), len(rows) - bar.n))


def _is_done(known: Entries, source: Source, row: Any, split: str, key: str) -> bool:
    entry = known.get(f"{split}/{row.image_id}")
    if (
        entry is None
        or entry["key"] != _entry_key(source, key, row.sha256)
        or "p_classification" not in entry
    ):
        return False
    path = source.output / artifacts.Run(source.run).probability_map(split, row.image_id)
    return path.is_file() and records.sha256(path) == entry["sha256"]


def _entry_key(source: Source, key: str, image_hash: str) -> str:
    return f"{key}:{image_hash}:{'bf16' if source.bf16 else 'fp32'}"
