"""The cost of improved coordinate attention in ICA-ResUNet.

Forward pass (inference mode) and training step (forward, backward, Adam) with and
without attention, in both memory formats. "naive" is the same block as most code writes
it: adaptive pooling modules and x + x * a_h * a_w.

    python -m benchmarks.attention
    python -m benchmarks.attention --shapes 4x512 --repeats 20 --encoder resnet50
"""

import statistics
from collections.abc import Callable

import torch
from torch import nn

import models
from benchmarks import timing
from models.coord_attention import ImprovedCoordAttention

FORMATS = {"NCHW": torch.contiguous_format, "channels_last": torch.channels_last}


class NaiveAttention(nn.Module):
    """x (N, C, H, W) -> x + x * a_h * a_w, by the weights of ImprovedCoordAttention.

    The block must have merge="concat".
    """

    def __init__(self, block: ImprovedCoordAttention) -> None:
        super().__init__()
        self.squeeze = block.squeeze
        self.gate_rows, self.gate_cols = block.gate_rows, block.gate_cols
        self.pool_rows = nn.ModuleList(
            [nn.AdaptiveAvgPool2d((None, 1)), nn.AdaptiveMaxPool2d((None, 1))]
        )
        self.pool_cols = nn.ModuleList(
            [nn.AdaptiveAvgPool2d((1, None)), nn.AdaptiveMaxPool2d((1, None))]
        )

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        rows = torch.cat([pool(x).flatten(2) for pool in self.pool_rows], dim=1)
        cols = torch.cat([pool(x).flatten(2) for pool in self.pool_cols], dim=1)
        squeezed = self.squeeze(torch.cat([rows, cols], dim=2))
        squeezed_rows, squeezed_cols = squeezed.split(x.shape[2:], dim=2)
        by_row = self.gate_rows(squeezed_rows).sigmoid().unsqueeze(3)
        by_col = self.gate_cols(squeezed_cols).sigmoid().unsqueeze(2)
        return x + x * by_row * by_col


def parse_args(argv=None):
    parser = timing.bare_parser(__doc__)
    parser.add_argument(
        "--shapes",
        nargs="+",
        type=shape,
        default=[(1, 512), (2, 512), (8, 128)],
        metavar="BATCHxSIZE",
    )
    parser.add_argument(
        "--repeats", type=int, default=9, help="timed rounds (default: %(default)s)"
    )
    parser.add_argument("--encoder", default="resnet34", help="(default: %(default)s)")
    parser.add_argument(
        "--threads",
        type=int,
        default=torch.get_num_threads(),
        help="of the CPU (default: %(default)s)",
    )
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    return parser.parse_args(argv)


def shape(text: str) -> tuple[int, int]:
    batch, size = text.split("x")
    return int(batch), int(size)


def variants(encoder: str) -> dict[str, nn.Module]:
    def build(**settings):
        return models.build("ica_resunet", encoder=encoder, encoder_weights="none", **settings)

    naive = build(merge="concat")
    naive.attention = nn.ModuleList(NaiveAttention(block) for block in naive.attention)
    return {"without": build(attention=False), "ours": build(merge="concat"), "naive": naive}


def forward_step(network: nn.Module, images: torch.Tensor) -> Callable[[], None]:
    def run():
        network.eval()
        with torch.inference_mode():
            network(images)
        synchronise(images)

    return run


def training_step(network: nn.Module, images: torch.Tensor) -> Callable[[], None]:
    optimizer = torch.optim.Adam(network.parameters(), lr=1e-6)
    masks = (images > 0.9).float()

    def run():
        network.train()
        optimizer.zero_grad()
        criterion = nn.functional.binary_cross_entropy_with_logits
        network.training_loss(images, masks, criterion)["loss"].backward()
        optimizer.step()
        synchronise(images)

    return run


def synchronise(images: torch.Tensor) -> None:
    if images.device.type == "cuda":
        torch.cuda.synchronize()


def main(argv=None):
    args = parse_args(argv)
    torch.set_num_threads(args.threads)
    cuda = torch.device(args.device).type == "cuda"
    timing.machine("torch", "segmentation_models_pytorch")
    hardware = torch.cuda.get_device_name() if cuda else f"{args.threads} threads"
    print(f"{hardware}; {args.encoder}, fp32, medians of {args.repeats}")
    columns = f"{'without ms':>10} {'ours ms':>9} {'ratio':>6} {'naive ms':>9} {'ratio':>6}"
    print(f"{'batch':>5} {'size':>5} {'format':14} {'step':9} {columns}")
    for batch, size in args.shapes:
        for format_name in FORMATS:
            measure(args, batch, size, format_name)


def measure(args, batch: int, size: int, format_name: str) -> None:
    """Print a line for the forward pass and one for the training step."""
    memory_format = FORMATS[format_name]
    images = torch.rand(batch, 1, size, size, device=args.device)
    images = images.contiguous(memory_format=memory_format)
    networks = {
        name: network.to(args.device, memory_format=memory_format)
        for name, network in variants(args.encoder).items()
    }
    for step_name, make in (("forward", forward_step), ("training", training_step)):
        steps = {name: make(network, images) for name, network in networks.items()}
        seconds = timing.alternate(steps, repeats=args.repeats, warmup=2)
        base, ours, naive = (
            1000 * statistics.median(seconds[name]) for name in ("without", "ours", "naive")
        )
        ratios = f"{base:10.1f} {ours:9.1f} {ours / base:6.3f} {naive:9.1f} {naive / base:6.3f}"
        print(f"{batch:5} {size:5} {format_name:14} {step_name:9} {ratios}", flush=True)


if __name__ == "__main__":
    main()
