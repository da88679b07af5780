"""One process or many (torchrun): the same batches, one loss over all, one process that writes.

Everything here also works in a single process. torch.distributed does the work, with gloo
between CPUs and nccl between GPUs. Numbers and objects always travel between CPUs.
"""

import os
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, ParamSpec, TypeVar

import torch
from torch import distributed as dist

from pneumothorax.compute import devices, runtime
from pneumothorax.errors import BadConfig
from pneumothorax.pipeline import locks

P = ParamSpec("P")
T = TypeVar("T")
Criterion = Callable[[torch.Tensor, torch.Tensor], torch.Tensor]  # logits, masks -> scalar


@contextmanager
def processes(device_name: str) -> Iterator[torch.device]:
    """Join the processes that torchrun started, if any, and yield this process's device."""
    runtime.keep_freed_memory()
    launched = is_launched()
    device = devices.choose(
        device_name, local_rank=int(os.environ["LOCAL_RANK"]) if launched else None
    )
    if not launched:
        yield device
        return
    if device.type == "mps":
        raise BadConfig("--device mps computes in one process: start without torchrun")
    # torchrun's store still holds the addresses of dead processes: use a prefix per restart.
    store, own_rank, n_processes = next(iter(dist.rendezvous("env://")))
    own_store = dist.PrefixStore(f"attempt {_restarts()}", store)
    backend = "cpu:gloo,cuda:nccl" if device.type == "cuda" else "gloo"
    dist.init_process_group(backend, store=own_store, rank=own_rank, world_size=n_processes)
    try:
        yield device
        dist.barrier()  # so that no connection closes while another process reads from it
    finally:
        dist.destroy_process_group()


def is_launched() -> bool:
    """Whether torchrun started this process."""
    return dist.is_available() and dist.is_torchelastic_launched()


def rank() -> int:
    return dist.get_rank() if _several() else 0


def size() -> int:
    return dist.get_world_size() if _several() else 1


def is_main() -> bool:
    """Whether this process writes."""
    return rank() == 0


def is_restart() -> bool:
    """Whether torchrun restarted the processes after one of them died (--max-restarts)."""
    return _restarts() > 0


def gather(value: T) -> list[T]:
    """The values of all processes, by rank."""
    if not _several():
        return [value]
    values: list[Any] = [None] * size()
    dist.all_gather_object(values, value)
    return values


def sums(values: Sequence[float]) -> list[float]:
    """Each value summed over the processes."""
    if not _several():
        return list(values)
    total = torch.tensor(values, dtype=torch.float64)
    dist.all_reduce(total)
    return total.tolist()


def on_main(function: Callable[P, T], *arguments: P.args, **keywords: P.kwargs) -> T:
    """Call `function` on the main process alone; every process waits for and gets its result.

    An error ends the main process, and torchrun then ends the others.
    """
    return gather(function(*arguments, **keywords) if is_main() else None)[0]  # type: ignore[return-value]


@contextmanager
def lock(output: Path, name: str, *, patience_s: float = 0, alone: bool = False) -> Iterator[None]:
    """locks.lock, held by the main process."""
    if not is_main():
        yield
        return
    with locks.lock(output, name, patience_s=patience_s, alone=alone):
        yield


def say(line: str) -> None:
    """Print a line from the main process alone."""
    if is_main():
        print(line, flush=True)


def take_buffers_of_main(network: torch.nn.Module) -> None:
    """Copy the main process's batch norm statistics, which differ between processes."""
    if _several():
        for buffer in network.buffers():
            dist.broadcast(buffer, 0)


def average_buffers(network: torch.nn.Module) -> None:
    """Average batch norm statistics, each taken from the same number of batches."""
    if _several():
        for buffer in network.buffers():
            if buffer.is_floating_point():
                dist.all_reduce(buffer)
                buffer.div_(size())


def over_all_processes(
    criterion: Criterion, logits: torch.Tensor, masks: torch.Tensor, *, counts: Sequence[int]
) -> torch.Tensor:
    """The criterion of the whole batch: the same value and gradient as in one process.

    A ratio of sums over the batch, such as Dice, is not the mean of the ratios that the
    processes would find for their shares. A loss that a network adds itself (that of a
    classification head or of Mask R-CNN) is a mean over the processes, and includes the
    repeated images that fill up the last batch of an epoch.

    Args:
        logits, masks: this process's share, (N, 1, H, W).
        counts: for each process, how many of its first images count.
    """
    if not _several():
        return criterion(logits, masks)
    everything: torch.Tensor = _AllLogits.apply(logits.float())
    all_masks = [torch.empty_like(masks) for _ in range(size())]
    dist.all_gather(all_masks, masks.contiguous())
    n = len(logits)
    kept = [n * process + place for process, count in enumerate(counts) for place in range(count)]
    return criterion(everything[kept], torch.cat(all_masks)[kept])


class _AllLogits(torch.autograd.Function):
    """The logits of all processes; gradients flow to this process's own."""

    @staticmethod
    def forward(ctx: Any, own: torch.Tensor) -> torch.Tensor:
        ctx.n = len(own)
        everything = [
            torch.empty_like(own, memory_format=torch.contiguous_format) for _ in range(size())
        ]
        dist.all_gather(everything, own.contiguous())
        return torch.cat(everything)

    @staticmethod
    def backward(ctx: Any, *gradients: torch.Tensor) -> torch.Tensor:
        own = gradients[0][ctx.n * rank() : ctx.n * (rank() + 1)]
        return own * size()  # we need the sum; DistributedDataParallel takes the mean


def _restarts() -> int:
    return int(os.environ.get("TORCHELASTIC_RESTART_COUNT", "0"))


def _several() -> bool:
    return dist.is_available() and dist.is_initialized()
