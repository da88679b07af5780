"""The attention block: the published one as a special case, gradients, memory formats."""

import itertools
import math

import pytest
import torch
from torch import nn

from models.coord_attention import MERGES, POOLINGS, ImprovedCoordAttention

# merge only matters for "avg+max".
SWITCHES = [
    {"pooling": pooling, "merge": merge, "residual": residual}
    for pooling, merge, residual in itertools.product(POOLINGS, MERGES, [True, False])
    if pooling == "avg+max" or merge == "concat"
]


class PublishedCoordAtt(nn.Module):
    """Hou, Zhou, Feng (arXiv:2103.02907), equations 4 to 9, with pooling and 2-D convolutions."""

    def __init__(self, channels, reduction=32):
        super().__init__()
        squeezed = max(8, channels // reduction)
        self.pool_h = nn.AdaptiveAvgPool2d((None, 1))  # equation 4
        self.pool_w = nn.AdaptiveAvgPool2d((1, None))  # equation 5
        self.f1 = nn.Conv2d(channels, squeezed, 1)
        self.norm = nn.BatchNorm2d(squeezed)
        self.delta = nn.Hardswish()
        self.f_h = nn.Conv2d(squeezed, channels, 1)
        self.f_w = nn.Conv2d(squeezed, channels, 1)

    def forward(self, x):
        height, width = x.shape[2:]
        z = torch.cat([self.pool_h(x), self.pool_w(x).transpose(2, 3)], dim=2)
        f = self.delta(self.norm(self.f1(z)))  # equation 6
        f_h, f_w = f.split([height, width], dim=2)
        g_h = self.f_h(f_h).sigmoid()  # equation 7
        g_w = self.f_w(f_w.transpose(2, 3)).sigmoid()  # equation 8
        return x * g_h * g_w  # equation 9


def features(channels=16, height=12, width=20, *, dtype=torch.float32):
    return torch.randn(
        2, channels, height, width, generator=torch.Generator().manual_seed(0), dtype=dtype
    )


def block(channels=16, **settings):
    torch.manual_seed(0)
    return ImprovedCoordAttention(channels, **settings)


@pytest.mark.parametrize("training", [True, False])
@pytest.mark.parametrize("memory_format", [torch.contiguous_format, torch.channels_last])
@pytest.mark.parametrize("channels, reduction", [(16, 32), (96, 4)])
def test_average_without_residual_is_the_published_block(
    training, memory_format, channels, reduction
):
    ours = block(channels, reduction=reduction, pooling="avg", residual=False).train(training)
    published = PublishedCoordAtt(channels, reduction).train(training)
    for theirs, mine in zip(
        published.state_dict().values(), ours.state_dict().values(), strict=True
    ):
        theirs.copy_(mine.reshape(theirs.shape))
    x = features(channels).contiguous(memory_format=memory_format)
    torch.testing.assert_close(ours(x), published(x), rtol=0, atol=1e-6)
    torch.testing.assert_close(ours.squeeze[1].running_var, published.norm.running_var)


def constant_gates(attention, *, row_logit, col_logit):
    """Sets every convolution's weight to 0, so that the gates are given by the biases."""
    with torch.no_grad():
        for convolution in (attention.squeeze[0], attention.gate_rows, attention.gate_cols):
            convolution.weight.zero_()
        attention.gate_rows.bias.fill_(row_logit)
        attention.gate_cols.bias.fill_(col_logit)


@pytest.mark.parametrize(
    "residual, factor",
    [
        (False, 0.75 * 0.25),  # sigmoid(log 3) = 3/4, sigmoid(-log 3) = 1/4
        (True, 1 + 0.75 * 0.25),
    ],
)
def test_constant_gates_by_hand(residual, factor):
    attention = block(residual=residual, merge="concat").eval()
    constant_gates(attention, row_logit=math.log(3), col_logit=-math.log(3))
    torch.testing.assert_close(attention(features()), features() * factor)


def test_shared_adds_the_logits_of_both_profiles():
    attention = block(residual=False, merge="shared").eval()
    # Counted twice, so log 3 and -log 3.
    constant_gates(attention, row_logit=math.log(3) / 2, col_logit=-math.log(3) / 2)
    torch.testing.assert_close(attention(features()), features() * 0.75 * 0.25)


@pytest.mark.parametrize(
    "pooling, row_profile", [("avg", [2.0, 5.0]), ("max", [3.0, 6.0]), ("avg+max", [5.0, 11.0])]
)
def test_profiles_by_hand(pooling, row_profile):
    # Rows 1 2 3 and 4 5 6. The squeeze passes the profile on: batch norm of a fresh block in eval
    # mode only divides by sqrt(1 + 1e-5), and hard-swish is the identity from 3 on. So the gate of
    # a row is sigmoid(weight x profile).
    x = torch.tensor([[[[1.0, 2.0, 3.0], [4.0, 5.0, 6.0]]]])
    attention = block(1, merge="sum", pooling=pooling, residual=False).eval()
    constant_gates(attention, row_logit=0.0, col_logit=100.0)  # columns: gate 1
    with torch.no_grad():
        attention.squeeze[0].weight[0] = 1.0
        attention.squeeze[0].bias[0] = 3.0
        attention.gate_rows.weight[0, 0] = 0.1
    rows = torch.sigmoid(0.1 * (torch.tensor(row_profile) + 3.0))
    torch.testing.assert_close(attention(x), x * rows.view(1, 1, 2, 1), rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("settings", SWITCHES, ids=str)
@pytest.mark.parametrize("memory_format", [torch.contiguous_format, torch.channels_last])
def test_gradients_are_correct(settings, memory_format):
    attention = block(3, **settings).double()
    x = (
        features(3, 3, 4, dtype=torch.float64)
        .contiguous(memory_format=memory_format)
        .requires_grad_()
    )

    def run(x, *parameters):
        return torch.func.functional_call(
            attention, dict(zip(names, parameters, strict=True)), (x,)
        )

    names = [name for name, _ in attention.named_parameters()]
    assert torch.autograd.gradcheck(run, (x, *attention.parameters()), fast_mode=True)


@pytest.mark.parametrize("settings", SWITCHES, ids=str)
def test_both_memory_formats_agree_and_are_preserved(settings):
    attention = block(**settings).eval()
    x = features()
    plain, last = attention(x), attention(x.contiguous(memory_format=torch.channels_last))
    assert plain.is_contiguous()
    assert last.is_contiguous(memory_format=torch.channels_last)
    assert plain.shape == last.shape == x.shape
    torch.testing.assert_close(plain, last)


@pytest.mark.parametrize("settings", SWITCHES, ids=str)
def test_height_and_width_are_treated_alike(settings):
    attention = block(**settings).eval()
    swapped = block(**settings).eval()
    swapped.gate_rows, swapped.gate_cols = swapped.gate_cols, swapped.gate_rows
    torch.testing.assert_close(
        attention(features()), swapped(features().transpose(2, 3)).transpose(2, 3)
    )


@pytest.mark.parametrize(
    "settings, message",
    [
        ({"pooling": "median"}, "avg, max, avg"),
        ({"merge": "product"}, "concat, sum, shared"),
        ({"reduction": 0}, "at least 1"),
    ],
)
def test_a_wrong_setting_lists_the_choices(settings, message):
    with pytest.raises(ValueError, match=message):
        ImprovedCoordAttention(16, **settings)
