"""The memory that one more image in a batch takes in training, at 512 x 512.

On a CUDA device it is the peak of allocated memory in a step; elsewhere the bytes that
autograd keeps for the backward pass, which are most of it. Goal for ICA-ResUNet in
mixed precision: at most 240 MiB per image.

    python -m benchmarks.training_memory
    python -m benchmarks.training_memory configs/unet.yaml configs/chexlocnet.yaml --size 256
"""

from pathlib import Path

import torch

import models
from benchmarks import timing
from benchmarks.training_step import load, step
from pneumothorax.compute import devices, precisions
from pneumothorax.training import losses
from pneumothorax.training.config import TrainConfig


def main() -> None:
    parser = timing.bare_parser(__doc__)
    parser.add_argument("configs", nargs="*", type=Path, default=[Path("configs/ica_resunet.yaml")])
    parser.add_argument("--size", type=int, default=512)
    parser.add_argument("--device", default="auto")
    args = parser.parse_args()
    timing.machine("torch", "segmentation_models_pytorch")
    device = devices.choose(args.device)
    measured, how = (
        (peak, "peak of a step") if device.type == "cuda" else (kept, "kept for the backward pass")
    )
    print(f"{devices.device_name(device)}; MiB per image at {args.size} x {args.size}, {how}")
    for path in args.configs:
        numbers = []
        for precision in (precisions.FP32, precisions.half(device) or precisions.FP32):
            few, many = (
                measured(load(path, batch, precision=precision), args.size, device)
                for batch in (2, 4)
            )
            numbers.append((many - few) / 2 / 2**20)
        print(f"{path!s:32} fp32 {numbers[0]:7.0f}   mixed precision {numbers[1]:7.0f}", flush=True)


def peak(chosen: TrainConfig, size: int, device: torch.device) -> int:
    """The most bytes allocated in a training step, including the optimizer's state."""
    run = step(chosen, size, device, memory_format=torch.channels_last)
    run()
    torch.cuda.reset_peak_memory_stats(device)
    run()
    return torch.cuda.max_memory_allocated(device)


def kept(chosen: TrainConfig, size: int, device: torch.device) -> int:
    """Bytes of the tensors that autograd saves in a forward pass.

    Each storage counts once, weights do not.
    """
    network = models.build(chosen.model, **chosen.model_settings).to(
        device, memory_format=torch.channels_last
    )
    weights = {
        one.untyped_storage().data_ptr() for one in (*network.parameters(), *network.buffers())
    }
    images = torch.rand(chosen.batch_size, 1, size, size, device=device)
    masks = (images > 0.99).float()
    storages: dict[int, int] = {}

    def save(tensor: torch.Tensor) -> torch.Tensor:
        storage = tensor.untyped_storage()
        if storage.data_ptr() not in weights:
            storages[storage.data_ptr()] = storage.nbytes()
        return tensor

    with (
        torch.autograd.graph.saved_tensors_hooks(save, lambda tensor: tensor),
        precisions.autocast(device, chosen.precision),
    ):
        loss = network.training_loss(images, masks, losses.CRITERIA[chosen.loss])["loss"]
    assert loss.requires_grad  # what the loss refers to lives until here
    return sum(storages.values())


if __name__ == "__main__":
    main()
