"""Precision: 16 bits where the device has units for it. Memory that is used again."""

import platform
import subprocess
import sys

import pytest
import torch

from pneumothorax.compute import runtime
from tests.helpers.stages import ROOT


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


COUNT_FAULTS = """
import resource, sys
import torch
from pneumothorax.compute import runtime

def faults():
    before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
    for _ in range(20):
        torch.ones(16 << 20)  # 64 MiB
    return resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before

print(faults())
runtime.keep_freed_memory()
faults()  # the heap grows to what is needed
print(faults())
"""


@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="other systems have no mallopt")
def test_freed_memory_is_used_again_without_mapping_it_anew():
    done = subprocess.run(
        [sys.executable, "-c", COUNT_FAULTS], cwd=ROOT, check=True, capture_output=True, text=True
    )
    returned, kept = map(int, done.stdout.split())
    assert kept < returned / 100
