"""Precision: 16 bits where the device has units for it."""

import pytest
import torch

from pneumothorax.compute import runtime


def test_on_a_cpu_mixed_precision_is_bf16_without_loss_scaling():
    cpu = torch.device("cpu")
    for enabled, dtype in ((True, torch.bfloat16), (False, torch.float32)):
        with runtime.autocast(cpu, enabled=enabled):
            assert torch.nn.Conv2d(1, 1, 3)(torch.rand(1, 1, 8, 8)).dtype == dtype
        assert not runtime.loss_scaler(cpu, enabled=enabled).is_enabled()


@pytest.mark.parametrize("has_bf16, dtype", [(True, torch.bfloat16), (False, torch.float16)])
def test_a_gpu_without_bf16_gets_fp16(monkeypatch, has_bf16, dtype):
    monkeypatch.setattr(torch.cuda, "is_bf16_supported", lambda including_emulation: has_bf16)
    assert runtime.half(torch.device("cuda")) is dtype


@pytest.mark.parametrize(
    "units, expected", [({"avx512_bf16": True}, True), ({"amx_bf16": True}, True), ({}, False)]
)
def test_a_cpu_computes_in_bf16_if_it_has_units_for_it(monkeypatch, units, expected):
    monkeypatch.setattr(torch.cpu, "get_capabilities", lambda: {"avx512_f": True, **units})
    assert runtime.computes_in_bf16(torch.device("cpu")) is expected
