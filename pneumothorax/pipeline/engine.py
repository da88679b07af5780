"""Where the work on many images is done: in processes of this machine, or on a Dask cluster (cluster.py).

Both call the same functions on the same files.
"""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

import joblib
from joblib.externals.loky.process_executor import TerminatedWorkerError
from tqdm import tqdm

from pneumothorax.errors import BadInput
from pneumothorax.pipeline import cluster

Result = TypeVar("Result")
Calls = Sequence[tuple[Any, ...]]
Tasks = Sequence[tuple[int, Calls]]  # calls with the position of the first of them


@dataclass(frozen=True)
class Engine:
    """`workers` processes of this machine or, with the address of a `scheduler`, the workers of its cluster.

    shared: a file that each worker of a cluster must find, with the text that it has here.
    """

    workers: int
    scheduler: str | None = None
    shared: Path | None = None


def in_order(
    work: Callable[..., Result], calls: Calls, engine: Engine, *, per_task: int, title: str
) -> list[Result]:
    """[work(*arguments) for arguments in calls], with a progress bar."""
    results = dict(as_finished(work, calls, engine, per_task=per_task, title=title))
    return [results[position] for position in range(len(calls))]


def as_finished(
    work: Callable[..., Result], calls: Calls, engine: Engine, *, per_task: int, title: str
) -> Iterator[tuple[int, Result]]:
    """(position in calls, work(*arguments)) of all calls as they are done, with a progress bar."""
    tasks = [(start, calls[start : start + per_task]) for start in range(0, len(calls), per_task)]
    if engine.scheduler:
        finished = cluster.run(work, tasks, engine.scheduler, engine.shared)
    else:
        finished = _on_this_machine(work, tasks, max(1, engine.workers))
    with tqdm(total=len(calls), unit="image", desc=title) as bar:
        for start, results in finished:
            bar.update(len(results))
            yield from enumerate(results, start)


def _on_this_machine(
    work: Callable[..., Result], tasks: Tasks, workers: int
) -> Iterator[tuple[int, list[Result]]]:
    """The results of _task. joblib ends all work when a process dies; what was stored before is gone on with."""
    parallel = joblib.Parallel(n_jobs=workers, return_as="generator_unordered")
    try:
        yield from parallel(joblib.delayed(_task)(work, *task) for task in tasks)
    except TerminatedWorkerError as error:
        hint = "was memory short? Give the same command again, or with fewer --workers (each may need 1 GiB)"
        raise BadInput(f"one of {workers} working processes died: {hint}") from error


def _task(work: Callable[..., Result], start: int, calls: Calls) -> tuple[int, list[Result]]:
    return start, [work(*arguments) for arguments in calls]
