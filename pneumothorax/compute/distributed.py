"""One process or many (torchrun): the same batches, one loss over all of them, one process that writes.

Everything here works unchanged in a single process. The engine is torch.distributed: gloo between CPUs, nccl between
GPUs; numbers and objects always travel between CPUs.
"""

import os
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, nullcontext
from pathlib import Path
from typing import Any, ParamSpec, TypeVar

import torch
from torch import distributed as dist

from pneumothorax.compute import runtime
from pneumothorax.pipeline import locks

P = ParamSpec("P")
T = TypeVar("T")
Criterion = Callable[[torch.Tensor, torch.Tensor], torch.Tensor]


@contextmanager
def processes(device_name: str) -> Iterator[torch.device]:
    """Join the processes that torchrun started, if it did, and give this one its device."""
    launched = dist.is_available() and dist.is_torchelastic_launched()
    device = runtime.device(
        device_name, local_rank=int(os.environ["LOCAL_RANK"]) if launched else None
    )
    if not launched:
        yield device
        return
    if device.type == "cuda":
        torch.cuda.set_device(device)
    # Processes started again find the addresses of the dead ones in torchrun's store, unless they look elsewhere.
    store, own_rank, n_processes = next(iter(dist.rendezvous("env://")))
    own_store = dist.PrefixStore(f"attempt {_restarts()}", store)
    backend = "cpu:gloo,cuda:nccl" if device.type == "cuda" else "gloo"
    dist.init_process_group(backend, store=own_store, rank=own_rank, world_size=n_processes)
    try:
        yield device
        dist.barrier()  # none tears its connections down while another still reads from them
    finally:
        dist.destroy_process_group()


def rank() -> int:
    return dist.get_rank() if _several() else 0


def size() -> int:
    return dist.get_world_size() if _several() else 1


def is_main() -> bool:
    """Whether this process writes."""
    return rank() == 0


def is_restart() -> bool:
    """Whether torchrun started the processes again after one of them died (--max-restarts)."""
    return _restarts() > 0


def gather(value: T) -> list[T]:
    """The value of every process, by rank."""
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
    """What `function` returns on the main process; the others wait for it.

    An error ends the main process and so, by torchrun, all of them.
    """
    return gather(function(*arguments, **keywords) if is_main() else None)[0]  # type: ignore[return-value]


@contextmanager
def lock(output: Path, name: str, *, patience_s: float = 0) -> Iterator[None]:
    """stage.lock, held by the process that writes."""
    with locks.lock(output, name, patience_s=patience_s) if is_main() else nullcontext():
        yield


def say(line: str) -> None:
    """Print it once, however many processes there are."""
    if is_main():
        print(line, flush=True)


def take_buffers_of_main(network: torch.nn.Module) -> None:
    """Statistics of batch norms are each process's own: use the main process's."""
    if _several():
        for buffer in network.buffers():
            dist.broadcast(buffer, 0)


def average_buffers(network: torch.nn.Module) -> None:
    """The mean over the processes of statistics that each took from as many batches of its own."""
    if _several():
        for buffer in network.buffers():
            if buffer.is_floating_point():
                dist.all_reduce(buffer)
                buffer.div_(size())


class OverAllProcesses:
    """A criterion of the whole batch: the same number, and the same gradient, as in a single process.

    A sum over the batch inside a ratio, as in Dice, is no mean of what the processes would find for their own shares.
    `counts` says how many of each process's first images count. What a network adds by itself (a classification head's loss,
    Mask R-CNN's) is a mean over the processes, in which images that fill up the last batch of an epoch count as well.
    """

    def __init__(self, criterion: Criterion) -> None:
        self.criterion = criterion
        self.counts: list[int] = []

    def __call__(self, logits: torch.Tensor, masks: torch.Tensor) -> torch.Tensor:
        if not _several():
            return self.criterion(logits, masks)
        everything: torch.Tensor = _AllLogits.apply(logits.float())
        all_masks = [torch.empty_like(masks) for _ in range(size())]
        dist.all_gather(all_masks, masks.contiguous())
        n = len(logits)
        kept = [
            n * process + place
            for process, count in enumerate(self.counts)
            for place in range(count)
        ]
        return self.criterion(everything[kept], torch.cat(all_masks)[kept])


class _AllLogits(torch.autograd.Function):
    """The logits of all processes, of which the own ones carry a gradient."""

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
        return own * size()  # DistributedDataParallel takes the mean of what we need the sum of


def _restarts() -> int:
    return int(os.environ.get("TORCHELASTIC_RESTART_COUNT", "0"))


def _several() -> bool:
    return dist.is_available() and dist.is_initialized()
