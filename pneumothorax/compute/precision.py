"""Mixed precision: which 16-bit type a device computes in, where that is fast, and the loss scaling that fp16 needs."""

import torch


def autocast(device: torch.device, *, enabled: bool) -> torch.autocast:
    """A context in which convolutions and matrix products run in 16 bits; may be entered any number of times."""
    return torch.autocast(device.type, dtype=half(device), enabled=enabled)


def scaler(device: torch.device, *, enabled: bool) -> torch.amp.GradScaler:
    """Scales losses where fp16 is used: its gradients would vanish otherwise. Does nothing with bf16 and fp32."""
    return torch.amp.GradScaler(device.type, enabled=enabled and half(device) is torch.float16)


def half(device: torch.device) -> torch.dtype:
    """bf16 on CPUs and on CUDA devices that have it (Ampere and newer), else fp16."""
    if device.type == "cuda" and not torch.cuda.is_bf16_supported(including_emulation=False):
        return torch.float16
    return torch.bfloat16


def computes_in_bf16(device: torch.device) -> bool:
    """Whether the device has units for bf16: GPUs from Ampere on, CPUs with AVX512-BF16 or AMX. Others emulate it."""
    if device.type == "cuda":
        return torch.cuda.is_bf16_supported(including_emulation=False)
    has = torch.cpu.get_capabilities()
    return bool(has.get("avx512_bf16") or has.get("amx_bf16"))


def for_prediction(name: str, device: torch.device) -> bool:
    """--precision: whether convolutions run in bf16. `auto` takes it where the device has units for it."""
    return name == "bf16" or (name == "auto" and computes_in_bf16(device))
