"""A training step on a CPU, with freed memory kept (as stage 02 does) and returned (as glibc does).

python -m benchmarks.freed_memory --config configs/demo/ica_resunet.yaml --size 256 --batch 16
"""

import ctypes
from collections.abc import Callable
from pathlib import Path

import torch

from benchmarks import timing, training_step
from pneumothorax.compute import runtime


def main() -> None:
    parser = timing.bare_parser(__doc__)
    parser.add_argument("--config", type=Path, default=Path("configs/demo/ica_resunet.yaml"))
    parser.add_argument("--size", type=int, default=256)
    parser.add_argument("--batch", type=int, default=16)
    parser.add_argument("--repeats", type=int, default=7)
    args = parser.parse_args()
    timing.machine("torch", "segmentation_models_pytorch")
    device = torch.device("cpu")
    step = training_step.step(
        training_step.load(args.config, args.batch),
        args.size,
        device,
        memory_format=torch.channels_last,
    )
    ways: dict[str, Callable[[], object]] = {
        "returned": lambda: (return_freed_memory(), step()),
        "kept": lambda: (runtime.keep_freed_memory(), step()),
    }
    medians = timing.compare(ways, repeats=args.repeats, per=args.batch, unit="image")
    timing.ratio(medians, "kept", "returned", "< 1")


def return_freed_memory() -> None:
    """Undo `keep_freed_memory`: the limits that glibc's own thresholds rise to."""
    mallopt = ctypes.CDLL(None).mallopt
    mallopt(runtime.M_MMAP_THRESHOLD, 32 << 20)
    mallopt(runtime.M_TRIM_THRESHOLD, 64 << 20)


if __name__ == "__main__":
    main()
