"""Where work on many images is done: processes on this machine, or a Dask cluster.

Both call the same functions on the same files. The local processes are here, the
cluster is in cluster.py.
"""

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import joblib
from joblib.externals.loky.process_executor import TerminatedWorkerError

from pneumothorax.errors import BadInput
from pneumothorax.pipeline import cluster
from pneumothorax.pipeline.cluster import Calls, Result, Tasks
from pneumothorax.pipeline.progress import show_progress


@dataclass(frozen=True)
class Engine:
    """`workers` processes on this machine, or the cluster at the address `scheduler`.

    Attributes:
        shared: a file that every worker of a cluster must see with the same text as
            here.
    """

    workers: int
    scheduler: str | None = None
    shared: Path | None = None


def in_order(
    work: Callable[..., Result], calls: Calls, engine: Engine, *, per_task: int, title: str
) -> list[Result]:
    """[work(*arguments) for arguments in calls], with its progress shown."""
    results = dict(as_finished(work, calls, engine, per_task=per_task, title=title))
    return [results[position] for position in range(len(calls))]


def as_finished(
    work: Callable[..., Result], calls: Calls, engine: Engine, *, per_task: int, title: str
) -> Iterator[tuple[int, Result]]:
    """(position in calls, work(*arguments)) as each call finishes, with its progress shown.

    Args:
        per_task: calls that are sent to a worker at a time.
    """
    tasks = [(start, calls[start : start + per_task]) for start in range(0, len(calls), per_task)]
    if engine.scheduler:
        finished = cluster.as_finished(work, tasks, engine.scheduler, engine.shared)
    else:
        finished = _on_this_machine(work, tasks, max(1, engine.workers))
    with show_progress(total=len(calls), title=title) as bar:
        for start, results in finished:
            bar.update(len(results))
            yield from enumerate(results, start)


def _on_this_machine(
    work: Callable[..., Result], tasks: Tasks, workers: int
) -> Iterator[tuple[int, list[Result]]]:
    """(start, results) of each task. When a process dies, joblib ends all work."""
    parallel = joblib.Parallel(n_jobs=workers, return_as="generator_unordered")
    try:
        yield from parallel(joblib.delayed(_task)(work, *task) for task in tasks)
    except TerminatedWorkerError as error:
        raise BadInput(
            f"one of {workers} worker processes died, perhaps out of memory: run the same command "
            "again to resume, or with fewer --workers (each may need 1 GiB)"
        ) from error


def _task(work: Callable[..., Result], start: int, calls: Calls) -> tuple[int, list[Result]]:
    return start, [work(*arguments) for arguments in calls]
