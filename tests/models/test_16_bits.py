"""Under CUDA's rules of autocast every network stays in 16 bits (no card is needed)."""

import pytest
import torch
from torch import nn
from torch.nn import functional

import models
from models import interpolation
from models.coord_attention import POOLINGS, ImprovedCoordAttention, row_and_column_profile
from pneumothorax.training.losses import bce_dice
from tests.helpers import fake_cuda
from tests.helpers.networks import RANDOM_RESNET18, SMALL, small

HALVES = [torch.float16, torch.bfloat16]
MIB = 2**20
BATCH = 2
DECODERS = "UnetPlusPlus MAnet Linknet PSPNet DeepLabV3 DeepLabV3Plus PAN UPerNet".split()
OTHERS = {
    **{f"smp/{name}": {**RANDOM_RESNET18, "attention": "improved"} for name in DECODERS},
    "smp/Segformer": {"encoder": "mit_b0", "encoder_weights": "none"},
    "smp/DPT": {"encoder": "tu-vit_tiny_patch16_224", "encoder_weights": "none"},
}
# These normalise groups, layers or softmax, which autocast computes in fp32 for accuracy.
NORMALISING = {"smp/FPN", "smp/MAnet", "smp/UPerNet", "smp/Segformer", "smp/DPT"}


def images(batch, size):
    return torch.empty(batch, 1, size, size, device="meta")


def interpolated(kernels):
    """The 16- or 32-bit types of all interpolated feature maps.

    Antialiased ones are weights: vision transformers fit their positions to the image so.
    """
    return [
        kernel.outputs[0].dtype
        for kernel in kernels
        if "upsample" in kernel.name and "_aa." not in kernel.name
    ]


def wide(kernels):
    """Kernels that write fp32 values of the images, other than single-channel maps.

    Those are the images, normalised before the first convolution.
    """
    return [
        (kernel.name, tuple(tensor.shape))
        for kernel in kernels
        for tensor in kernel.outputs
        if tensor.dtype == torch.float32 and tensor.ndim > 2 and tensor.shape[1] > 1
    ]


@pytest.mark.parametrize("dtype", HALVES)
@pytest.mark.parametrize("name", [name for name in SMALL if name != "chexlocnet"])
def test_every_network_interpolates_in_16_bits(name, dtype):
    kernels = fake_cuda.forward(small(name), images(BATCH, 64), dtype=dtype).kernels
    assert set(interpolated(kernels)) <= {dtype}
    if name not in NORMALISING:
        assert wide(kernels) == []
    convolutions = [kernel for kernel in kernels if "convolution" in kernel.name]
    assert {kernel.outputs[0].dtype for kernel in convolutions} == {dtype}


@pytest.mark.parametrize("name", OTHERS)
def test_every_architecture_of_smp_interpolates_in_16_bits(name):
    network = models.build(name, **OTHERS[name])
    kernels = fake_cuda.forward(network, images(BATCH, 128), dtype=torch.bfloat16).kernels
    assert set(interpolated(kernels)) == ({torch.bfloat16} if name != "smp/Linknet" else set())
    if name not in NORMALISING:
        assert wide(kernels) == []


def test_the_feature_pyramid_of_chexlocnet_interpolates_in_16_bits():
    class Pyramid(nn.Module):
        def __init__(self):
            super().__init__()
            self.network = small("chexlocnet")
            self.network.proposer.forward = lambda *arguments: (None, {})  # fp32 from here on
            self.network.instance_heads.forward = lambda *arguments: (None, {})

        def forward(self, pixels):
            return self.network.detect(pixels, targets=[])[1]

    kernels = fake_cuda.forward(Pyramid(), images(BATCH, 64), dtype=torch.float16).kernels
    assert interpolated(kernels) == [torch.float16] * 3


@pytest.mark.parametrize("dtype", HALVES)
@pytest.mark.parametrize("merge", ["concat", "sum", "shared"])
@pytest.mark.parametrize("pooling", POOLINGS)
def test_attention_widens_nothing_to_fp32(pooling, merge, dtype):
    block = ImprovedCoordAttention(16, pooling=pooling, merge=merge)
    features = torch.empty(BATCH, 16, 8, 8, device="meta", dtype=dtype)
    assert wide(fake_cuda.forward(block, features, dtype=dtype).kernels) == []


class Loss(nn.Module):
    """Images, masks -> the training loss of the network of configs/ica_resunet.yaml."""

    def __init__(self):
        super().__init__()
        with torch.device("meta"):
            self.network = models.build("ica_resunet", encoder_weights="none")

    def forward(self, pixels, masks):
        return self.network.training_loss(pixels, masks, bce_dice)["loss"]


@pytest.mark.parametrize("dtype", HALVES)
def test_ica_resunet_moves_at_most_700_mib_and_keeps_at_most_199_per_image_of_512(dtype):
    few, many = (
        fake_cuda.forward(Loss(), images(batch, 512), images(batch, 512), dtype=dtype)
        for batch in (BATCH, 8)
    )
    assert 500 * MIB < many.traffic / 8 <= 700 * MIB  # its weights and the loss included
    assert (many.kept - few.kept) / (8 - BATCH) <= 199 * MIB


def test_traffic_and_kept_memory_by_hand():
    class Network(nn.Module):
        def __init__(self):
            super().__init__()
            self.convolution = nn.Conv2d(1, 4, 1, bias=False)

        def forward(self, pixels):
            return functional.relu(self.convolution(pixels)).transpose(2, 3).sigmoid()

    found = fake_cuda.forward(Network(), images(2, 8), dtype=None)
    # 2 x 8 x 8 pixels of 4 bytes are 512. The convolution reads 512 and 16 of weights and writes
    # 4 x 512, the other two read and write 4 x 512 each; the transpose moves nothing.
    assert found.traffic == 528 + 2048 + 2 * (2048 + 2048)
    # The convolution keeps its input, the others their outputs.
    assert found.kept == 512 + 2 * 2048
    # In 16 bits all but the casts of images (512 -> 256) and weights (16 -> 8) is half as much.
    found = fake_cuda.forward(Network(), images(2, 8), dtype=torch.float16)
    assert found.traffic == 512 + 256 + 16 + 8 + (528 + 2048 + 2 * 4096) // 2


@pytest.mark.parametrize("dtype, precision", [(torch.float16, 2**-11), (torch.bfloat16, 2**-8)])
@pytest.mark.parametrize("memory_format", [torch.contiguous_format, torch.channels_last])
def test_profiles_of_16_bit_features_at_512_px_are_rounded_only_once(
    dtype, precision, memory_format
):
    # Layer 1 at 512 x 512: 128 x 128 pixels. fp16 has 11 significant bits, bf16 has 8.
    features = torch.rand(1, 64, 128, 128, generator=torch.Generator().manual_seed(0)) * 100
    features = features.to(dtype).contiguous(memory_format=memory_format)
    exact = features.double()
    mean = row_and_column_profile(features, torch.mean)
    assert mean.dtype == dtype
    torch.testing.assert_close(
        mean.double(), row_and_column_profile(exact, torch.mean), rtol=1.01 * precision, atol=0
    )
    largest = row_and_column_profile(features, torch.amax)
    assert torch.equal(largest.double(), row_and_column_profile(exact, torch.amax))


def test_gates_of_16_bit_features_at_512_px_are_off_by_at_most_a_hundredth():
    torch.manual_seed(0)
    block = ImprovedCoordAttention(64).train()
    features = torch.randn(2, 64, 128, 128)
    with torch.no_grad():
        exact = block(features) / features - 1
        with torch.autocast("cpu", dtype=torch.bfloat16):
            # Logits near 0 are off by a few times 2^-8, gates by a quarter of that.
            profiles = [row_and_column_profile(features.bfloat16(), one) for one in block.reducers]
            rows, cols = block.gate_logits(profiles, height=128)
        assert rows.dtype == torch.bfloat16
        gates = rows.float().sigmoid().unsqueeze(3) * cols.float().sigmoid().unsqueeze(2)
    assert (gates - exact)[features.abs() > 0.1].abs().max() < 0.01


class Upsampling(nn.Module):
    """Two ways to interpolate, as libraries write them."""

    def __init__(self):
        super().__init__()
        self.bilinear = nn.Upsample(scale_factor=2, mode="bilinear")

    def forward(self, x):
        with interpolation.in_16_bits(x.device):
            return self.bilinear(x), functional.interpolate(x, size=(9, 9), mode="nearest")


def types(tensors):
    return [tensor.dtype for tensor in tensors]


@pytest.mark.parametrize("compiled", [False, True])
def test_interpolation_takes_autocasts_type_and_without_autocast_its_inputs(compiled):
    torch.compiler.reset()
    network = Upsampling()
    run = torch.compile(network, backend="eager", fullgraph=True) if compiled else network
    x = torch.rand(1, 2, 4, 4)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert types(run(x)) == [torch.bfloat16] * 2
    assert types(run(x)) == [torch.float32] * 2
    assert types(run(x.double())) == [torch.float64] * 2
    with torch.autocast("cpu", dtype=torch.bfloat16), torch.autocast("cpu", enabled=False):
        assert types(run(x)) == [torch.float32] * 2
    expected = functional.interpolate(x.double(), scale_factor=2, mode="bilinear")
    torch.testing.assert_close(run(x)[0].double(), expected, rtol=1e-6, atol=1e-6)
