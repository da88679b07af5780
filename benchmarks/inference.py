"""Stage 03: probability maps with mirror averaging, in images per second.

Goal: at least 2.4 times eager fp32 on CPU. Measured: eager fp32, channels_last in fp32
(stage 03) and in bf16, and on a CPU onnxruntime in fp32 (stage 03 with --backend
onnxruntime; needs requirements-extra.txt), each with its largest difference in
probability.

    python -m benchmarks.inference --size 512 --batch 2
"""

import tempfile
from pathlib import Path

import torch

import models
from benchmarks import timing
from pneumothorax.compute import devices
from pneumothorax.prediction import onnx_graph, onnx_runtime, probability_maps


def main() -> None:
    parser = timing.bare_parser(__doc__)
    parser.add_argument("--size", type=int, default=512)
    parser.add_argument("--batch", type=int, default=2)
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--device", default="auto")
    args = parser.parse_args()
    timing.machine("torch", "segmentation_models_pytorch")
    device = devices.choose(args.device)
    torch.manual_seed(0)
    plain = models.build("ica_resunet", encoder_weights="none").to(device).eval()
    images = torch.rand(args.batch, 1, args.size, args.size, device=device)
    last = {"memory_format": torch.channels_last}
    reference, _ = probability_maps.probabilities([plain], images)

    def run(network: torch.nn.Module, batch: torch.Tensor, *, bf16: bool) -> torch.Tensor:
        with torch.autocast(device.type, dtype=torch.bfloat16, enabled=bf16):
            found, _ = probability_maps.probabilities([network], batch)
        if device.type == "cuda":
            torch.cuda.synchronize()
        return found

    other = models.build("ica_resunet", encoder_weights="none").to(device).eval()
    other.load_state_dict(plain.state_dict())
    other = other.to(**last)
    ways = {
        "fp32": lambda: run(plain, images, bf16=False),
        "fp32, channels_last (stage 03)": lambda: run(other, images.to(**last), bf16=False),
        "bf16, channels_last": lambda: run(other, images.to(**last), bf16=True),
    }
    if device.type == "cpu":
        exported = in_onnxruntime(plain, args.size)
        ways["onnxruntime, fp32"] = lambda: run(exported, images, bf16=False)
    for name, way in ways.items():
        print(f"{name:32s} differs by at most {(way() - reference).abs().max().item():.5f}")
    medians = timing.compare(ways, repeats=args.repeats, per=args.batch, unit="image")
    for name in list(ways)[1:]:
        timing.ratio(medians, "fp32", name, "at least 2.4")


def in_onnxruntime(network: torch.nn.Module, size: int) -> onnx_runtime.OnnxNetwork:
    with tempfile.TemporaryDirectory() as temporary:
        path = Path(temporary) / "network.onnx"
        path.write_bytes(onnx_graph.export({0: network}, image_size=size, facts={}))
        return onnx_runtime.load(path, [0])[0].network


if __name__ == "__main__":
    main()
