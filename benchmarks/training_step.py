"""A training step of stage 02: 32 and 16 bits, both memory formats, compiled or not.

Whether batches fit into the memory of a card is checked by benchmarks.gpu.

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
    half = precisions.half(device) or precisions.FP32
    print(f"{devices.device_name(device)}; {args.config}, {args.batch} x {args.size} x {args.size}")

    def way(
        memory_format: torch.memory_format, *, mixed: bool = False, compile: bool = False
    ) -> Callable[[], None]:
        precision = half if mixed else precisions.FP32
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


if __name__ == "__main__":
    main()
