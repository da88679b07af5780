"""Precision: 16 bits where the device has units for them, and what is only emulated is refused."""

import pytest
import torch

from pneumothorax.compute import precisions
from pneumothorax.errors import BadConfig

CPU, MPS = torch.device("cpu"), torch.device("mps")


@pytest.mark.parametrize(
    "capability, card, expected",
    [
        ((6, 1), "NVIDIA GeForce GTX 1080 Ti", "fp32"),
        ((7, 0), "Tesla V100-SXM2-16GB", "fp16"),
        ((7, 5), "Tesla T4", "fp16"),
        ((7, 5), "NVIDIA GeForce RTX 2080 Ti", "fp16"),
        ((7, 5), "NVIDIA GeForce GTX 1660 SUPER", "fp32"),  # no tensor cores; fp16 gives NaN
        ((7, 5), "NVIDIA T600 Laptop GPU", "fp32"),
        ((7, 5), "NVIDIA GeForce MX450", "fp32"),
        ((8, 0), "NVIDIA A100-SXM4-40GB", "bf16"),
        ((8, 9), "NVIDIA L4", "bf16"),
        ((9, 0), "NVIDIA H100 80GB HBM3", "bf16"),
        ((12, 0), "NVIDIA GeForce RTX 5090", "bf16"),
    ],
)
def test_auto_is_16_bits_on_cards_with_tensor_cores(capability, card, expected):
    assert precisions.on_card("auto", capability, card) == expected


def test_a_card_that_only_emulates_bf16_refuses_it_and_takes_fp16():
    with pytest.raises(BadConfig, match="precision bf16: Tesla T4 only emulates it: use fp16"):
        precisions.on_card("bf16", (7, 5), "Tesla T4")
    assert precisions.on_card("fp16", (6, 1), "NVIDIA GeForce GTX 1080 Ti") == "fp16"
    assert precisions.on_card("fp32", (9, 0), "NVIDIA H100 80GB HBM3") == "fp32"


def test_mps_computes_in_fp32_and_refuses_16_bits():
    assert precisions.resolve("auto", MPS) == precisions.of_training("auto", MPS) == "fp32"
    for asked in ("fp16", "bf16"):
        with pytest.raises(BadConfig, match=f"precision {asked} is not tested on MPS: use fp32"):
            precisions.resolve(asked, MPS)


@pytest.mark.parametrize(
    "capability, expected", [((6, 1), "fp16"), ((7, 5), "fp16"), ((8, 0), "bf16")]
)
def test_16_bits_save_memory_on_every_card(monkeypatch, capability, expected):
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device: capability)
    assert precisions.half(torch.device("cuda:0")) == expected
    assert precisions.half(CPU) == "bf16"
    assert precisions.half(MPS) is None


@pytest.mark.parametrize(
    "units, expected", [({"avx512_bf16": True}, "bf16"), ({"amx_bf16": True}, "bf16"), ({}, "fp32")]
)
def test_a_cpu_predicts_in_bf16_if_it_has_units_for_it(monkeypatch, units, expected):
    monkeypatch.setattr(torch.cpu, "get_capabilities", lambda: {"avx512_f": True, **units})
    assert precisions.resolve("auto", CPU) == expected
    assert precisions.resolve("bf16", CPU) == "bf16"  # emulated, slowly
    assert precisions.of_training("auto", CPU) == (None if units else "fp32")  # None: by timing
    assert precisions.of_training("bf16", CPU) == "bf16"


@pytest.mark.parametrize(
    "precision, dtype",
    [("fp32", torch.float32), ("bf16", torch.bfloat16), ("fp16", torch.float16)],
)
def test_only_fp16_scales_the_loss(precision, dtype):
    with precisions.autocast(CPU, precision):
        assert torch.nn.Conv2d(1, 1, 3)(torch.rand(1, 1, 8, 8)).dtype == dtype
    assert precisions.loss_scaler(CPU, precision).is_enabled() == (precision == "fp16")


@pytest.mark.parametrize(
    "seconds_in_bf16, expected", [(5.0, "bf16"), (8.0, "bf16"), (9.0, "fp32"), (24.0, "fp32")]
)
def test_bf16_must_be_clearly_faster(monkeypatch, seconds_in_bf16, expected):
    """A step takes 10 seconds in fp32 by this clock, and a forward pass takes 1 in both.

    The very first step takes much longer.
    """
    now = 0.0
    monkeypatch.setattr(precisions.time, "perf_counter", lambda: now)

    class Loss:
        def __init__(self, seconds):
            self.seconds = seconds

        def backward(self):
            nonlocal now
            now += self.seconds

    def loss():
        nonlocal now
        seconds = seconds_in_bf16 if torch.is_autocast_enabled("cpu") else 10.0
        now += 1
        return Loss(seconds - 1 + (100 if now < 100 else 0))

    precision, ratio = precisions.faster(loss, CPU)
    assert precision == expected
    assert ratio == pytest.approx(10 / seconds_in_bf16)
