"""A training step of stage 02: 32 and 16 bits, both memory formats, compiled or not.

On a CUDA device images per second and peak memory at 512 x 512 follow, with an
allocator limited to 11 GB, for the batches that have to fit: 16 in fp32 and 32 in mixed
precision.

    python -m benchmarks.training_step
    python -m benchmarks.training_step --config configs/unet.yaml --size 256 --batch 4 --compile
"""

from collections.abc import Callable
from pathlib import Path

import torch

import models
from benchmarks import timing
from pneumothorax.compute import devices, precisions
from pneumothorax.training import config
from pneumothorax.training.config import TrainConfig
from pneumothorax.training.optimization import Optimization

CARD_GB = 11
FITTING = {16: "fp32", 32: "mixed"}  # batch size: precision


def main() -> None:
    parser = timing.bare_parser(__doc__)
    parser.add_argument("--config", type=Path, default=Path("configs/ica_resunet.yaml"))
    parser.add_argument("--size", type=int, default=512)
    parser.add_argument("--batch", type=int, default=2)
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument(
        "--compile",
        action="store_true",
        help="also measure torch.compile (on a CPU this needs a C++ compiler)",
    )
    parser.add_argument("--device", default="auto")
    args = parser.parse_args()
    timing.machine("torch", "segmentation_models_pytorch")
    device = devices.choose(args.device)
    print(f"{devices.device_name(device)}; {args.config}, {args.batch} x {args.size} x {args.size}")

    def way(
        memory_format: torch.memory_format, *, mixed: bool = False, compile: bool = False
    ) -> Callable[[], None]:
        precision = precision_of("mixed" if mixed else "fp32", device)
        return step(
            load(args.config, args.batch, precision=precision, compile=compile),
            args.size,
            device,
            memory_format=memory_format,
        )

    ways = {
        "fp32, NCHW": way(torch.contiguous_format),
        "fp32, channels_last": way(torch.channels_last),
        "mixed, NCHW": way(torch.contiguous_format, mixed=True),
        "mixed, channels_last": way(torch.channels_last, mixed=True),
    }
    if args.compile:
        ways["fp32, compiled"] = way(torch.channels_last, compile=True)
        ways["mixed, compiled"] = way(torch.channels_last, mixed=True, compile=True)
    medians = timing.compare(ways, repeats=args.repeats, per=args.batch, unit="image")
    for name in list(ways)[1:]:
        print(f"{name:24s} {medians['fp32, NCHW'] / medians[name]:.2f} times fp32, NCHW")
    if device.type == "cuda":
        ways.clear()
        fit(args.config, device)


def precision_of(name: str, device: torch.device) -> str:
    """fp32, or the device's 16 bits for "mixed"."""
    half = precisions.half(device)
    return half if name == "mixed" and half is not None else precisions.FP32


def load(path: Path, batch: int, **settings: bool | str) -> TrainConfig:
    """The experiment with random encoder weights and another batch size."""
    changes = [f"{name}={str(value).lower()}" for name, value in settings.items()]
    chosen = config.load(path, [f"batch_size={batch}", *changes])
    if "encoder_weights" in chosen.model_settings:
        chosen = chosen.model_copy(
            update={"model_settings": {**chosen.model_settings, "encoder_weights": "none"}}
        )
    return chosen


def step(
    chosen: TrainConfig, size: int, device: torch.device, *, memory_format: torch.memory_format
) -> Callable[[], None]:
    """A function that trains one step on random images with a square as truth."""
    network = models.build(chosen.model, **chosen.model_settings).to(
        device, memory_format=memory_format
    )
    optimization = Optimization(network, chosen, device)
    optimization.start_epoch(0)
    images = torch.rand(chosen.batch_size, 1, size, size, device=device)
    masks = torch.zeros_like(images)
    masks[:, :, size // 4 : size // 2, size // 4 : size // 2] = 1

    def run() -> None:
        optimization.step([(images, masks, [len(images)])], 1, len(images))
        if device.type == "cuda":
            torch.cuda.synchronize(device)

    return run


def fit(path: Path, device: torch.device) -> None:
    """Images per second and peak memory at 512 x 512, as on a card of 11 GB."""
    total = torch.cuda.get_device_properties(device).total_memory
    torch.cuda.set_per_process_memory_fraction(min(1.0, CARD_GB * 1e9 / total), device)
    for batch, precision in FITTING.items():
        torch.cuda.empty_cache()
        torch.cuda.reset_peak_memory_stats(device)
        name = f"batch {batch}, {precision}"
        try:
            run = step(
                load(path, batch, precision=precision_of(precision, device)),
                512,
                device,
                memory_format=torch.channels_last,
            )
            medians = timing.compare({name: run}, repeats=10, per=batch, unit="image")
        except torch.OutOfMemoryError:
            print(f"{name:24s} does not fit into {CARD_GB} GB")
            continue
        peak = torch.cuda.max_memory_allocated(device) / 2**30
        print(f"{name:24s} {1000 / medians[name]:.1f} images/s, {peak:.2f} GiB at most")


if __name__ == "__main__":
    main()
