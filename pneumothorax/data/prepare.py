"""All input files -> the image cache.

Worker processes prepare one file at a time (one_image); what needs a view of all files
follows (outcome).

A journal next to the cache lists the finished files, so an interrupted run resumes.
"""

from collections.abc import Iterator
from pathlib import Path

from pneumothorax.data import one_image
from pneumothorax.data.discovery import Found, source_name, why_not_a_file
from pneumothorax.data.jobs import Job
from pneumothorax.data.layouts.listed import Layout
from pneumothorax.data.one_image import Entry
from pneumothorax.data.outcome import Outcome, account
from pneumothorax.pipeline import artifacts, atomic
from pneumothorax.pipeline.engine import Engine, as_finished
from pneumothorax.pipeline.journal import Journal

FILES_PER_TASK = 16  # handing over a task costs about a tenth of preparing an image


def prepare_all(
    found: Found, root: Path, job: Job, *, engine: Engine, overwrite: bool = False
) -> Outcome:
    """Prepare every file found below `root`; resume an earlier run unless `overwrite`.

    Raises BadInput when the label tables are wrong. Bad files are in the outcome.
    """
    images = job.layout.images(found.images)
    if job.output is None:
        entries = dict(_prepare_files(images, root, job, known={}, engine=engine))
    else:
        if overwrite:
            (job.output / artifacts.Cache(job.size).journal).unlink(missing_ok=True)
        entries = _prepare_with_journal(images, root, job, job.output, engine)
    for path in not_files(found, job.layout):
        entries[source_name(path, root)] = {"code": "NOT_A_FILE", "message": why_not_a_file(path)}
    for path in found.unreadable:
        entries[source_name(path, root)] = {"code": "IO", "message": "the folder cannot be listed"}
    outcome = account(entries, {source_name(path, root): path for path in images}, job)
    for image_id in outcome.ambiguous:
        one_image.remove_cached(image_id, job)
    return outcome


def not_files(found: Found, layout: Layout) -> list[Path]:
    """What is named like an image or a mask of the layout, but is no regular file."""
    masks = set(layout.mask_folders)
    images = set(layout.images(found.not_files))
    return [
        path for path in found.not_files if path in images or not masks.isdisjoint(path.parents)
    ]


def n_sources(found: Found, layout: Layout) -> int:
    """How many files and folders stage 00 has to account for."""
    images = layout.images(found.images)
    return len(images) + len(not_files(found, layout)) + len(found.unreadable)


def bytes_needed(found: Found, job: Job, output: Path) -> int:
    """An estimate of the disk space for the images that are not in the cache yet."""
    folder = (output / artifacts.Cache(job.size).image("x")).parent
    cached = sum(1 for _ in folder.glob("[!.]*.png"))
    images = min(len(job.layout.images(found.images)), len(job.listed.image_ids))
    return max(0, images - cached) * job.size * (job.size + 1)  # a filter byte per row


def _prepare_with_journal(
    images: tuple[Path, ...], root: Path, job: Job, output: Path, engine: Engine
) -> dict[str, Entry]:
    """Entries by source; each is in the journal as soon as its file is done."""
    cache = artifacts.Cache(job.size)
    folders = [(output / file("x")).parent for file in (cache.image, cache.mask)]
    for folder in folders:
        folder.mkdir(parents=True, exist_ok=True)
        atomic.sweep(folder)
    with Journal(output / cache.journal) as journal:
        known = dict(journal.entries)
        entries: dict[str, Entry] = {}
        for source, entry in _prepare_files(images, root, job, known=known, engine=engine):
            entries[source] = entry
            if entry != known.get(source):
                journal.append(source, entry)
    for folder in folders:
        atomic.sweep(folder)  # again: workers of a cluster may have been killed in the meantime
    return entries


def _prepare_files(
    images: tuple[Path, ...], root: Path, job: Job, *, known: dict[str, Entry], engine: Engine
) -> Iterator[tuple[str, Entry]]:
    """(source, entry) of every file, in any order, with the progress shown."""
    sources = [source_name(path, root) for path in images]
    calls = [
        (path, root, job, known.get(source)) for path, source in zip(images, sources, strict=True)
    ]
    finished = as_finished(
        one_image.prepare, calls, engine, per_task=FILES_PER_TASK, title="preparing"
    )
    for position, entry in finished:
        yield sources[position], entry
