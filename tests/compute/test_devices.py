"""The device: tried before anything is written, and no card is passed over in silence."""

import os
import re
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode

from pneumothorax.compute import devices, precisions
from pneumothorax.data.dataset import to_network
from pneumothorax.errors import BadConfig, BadInput
from pneumothorax.pipeline import stage
from pneumothorax.prediction import probability_maps
from tests.helpers.memory import OUT_OF_MEMORY
from tests.helpers.stages import ROOT, run_stage

CUDA_13 = "sm_75 sm_80 sm_86 sm_90 sm_100 sm_120 compute_120".split()
CUDA_12_6 = "sm_50 sm_60 sm_70 sm_75 sm_80 sm_86 sm_90".split()
CPU, MPS = torch.device("cpu"), torch.device("mps")
NO_KERNEL = "CUDA error: no kernel image is available for execution on the device\nCompile with ..."


def without_cuda(monkeypatch, *cards):
    """As where PyTorch sees no CUDA device, and nvidia-smi lists these cards."""
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    monkeypatch.setattr(devices, "cards", lambda: list(cards))
    monkeypatch.setattr(devices, "DEVICE_FILES", Path("nowhere"))


def with_cuda(monkeypatch, card, *, cuda, architectures, fails=None):
    """As where PyTorch sees one card, on which computing raises `fails`."""
    major, minor = card.capability
    facts = SimpleNamespace(total_memory=11 * 2**30, major=major, minor=minor)
    found = {
        "is_available": True,
        "is_initialized": True,
        "device_count": 1,
        "get_arch_list": architectures,
        "get_device_capability": card.capability,
        "get_device_name": card.name,
        "get_device_properties": facts,
        "set_device": None,
    }
    for name, value in found.items():
        monkeypatch.setattr(torch.cuda, name, lambda *_, value=value: value)
    monkeypatch.setattr(torch.version, "cuda", cuda)
    monkeypatch.setattr(devices, "cards", lambda: [card])

    def compute(device):
        if fails is not None:
            raise fails

    monkeypatch.setattr(devices, "_try", compute)


@pytest.fixture
def tf32_as_before():
    before = torch.backends.cudnn.allow_tf32, torch.backends.cuda.matmul.allow_tf32
    yield
    torch.backends.cudnn.allow_tf32, torch.backends.cuda.matmul.allow_tf32 = before


def refusal(script, output, capsys, *flags):
    """The exit code and the only line on stderr of a script that refuses to run."""
    if script == "predict_radiographs.py":
        flags = (*flags, "radiographs", "--to", output / "to")
    code = stage.exit_code(lambda: run_stage(script, "--output", output, *flags))
    [line] = capsys.readouterr().err.splitlines()
    return code, line


PASCAL = devices.Card("NVIDIA GeForce GTX 1080 Ti", "580.65.06", (6, 1))
OLD_DRIVER = devices.Card("NVIDIA GeForce RTX 3090", "535.104.05", (8, 6))


@pytest.mark.parametrize(
    "capability, driver, cuda, architectures, expected",
    [
        ((6, 1), "580.65.06", "13.0", CUDA_13, "no kernels for cards of capability 6.1: .*cu126"),
        ((7, 0), "580.65.06", "13.0", CUDA_13, "no kernels for cards of capability 7.0: .*cu126"),
        ((6, 1), "535.104.05", "13.0", CUDA_13, "no kernels for cards of capability 6.1: .*cu126"),
        ((6, 1), "580.65.06", None, [], "built without CUDA: .*cu126"),
        ((7, 5), "535.104.05", "13.0", CUDA_13, "driver 535.104.05 is too old .* 580 .*cu126"),
        ((8, 0), "550.54", "13.0", CUDA_13, "driver 550.54 is too old .* 580 .*cu126"),
        ((9, 0), "535.104.05", None, [], "built without CUDA: .*cu126"),
        ((9, 0), "580.65.06", None, [], "built without CUDA: .*cu130"),
        ((7, 5), "580.65.06", None, [], "built without CUDA: .*cu130"),
        ((10, 0), "570.86", None, [], "install NVIDIA driver 580 or newer$"),
        ((12, 0), "570.86", "13.0", CUDA_13, "install NVIDIA driver 580 or newer$"),
        ((12, 0), "580.65.06", "12.6", CUDA_12_6, "no kernels for cards of .* 12.0: .*cu130"),
        ((8, 6), "470.223.02", "12.6", CUDA_12_6, "too old: install NVIDIA driver 580"),
        (None, "535.104.05", "13.0", CUDA_13, "driver 535.104.05 is too old .*cu126"),
        ((3, 7), "470.223.02", "13.0", CUDA_13, "no kernels for cards of capability 3.7 any more"),
        ((5, 0), "525.60.13", "13.0", CUDA_13, "no kernels for cards of capability 5.0: .*cu126"),
        ((9, 0), "580.65.06", "13.0", CUDA_13, "docs/gpu.md"),  # nothing is known to be wrong
        ((6, 1), "580.65.06", "12.6", CUDA_12_6, "docs/gpu.md"),
        ((8, 9), "580.65.06", "13.0", CUDA_13, "docs/gpu.md"),  # code for 8.6 runs on 8.9
    ],
)
def test_the_advice_names_wheels_or_driver(capability, driver, cuda, architectures, expected):
    advice = devices.repair(capability, driver, cuda=cuda, architectures=architectures)
    assert re.search(expected, advice)


def test_the_wheels_of_the_advice_are_the_tested_versions():
    pins = (ROOT / "requirements.txt").read_text("utf-8").split()
    tested = [pin for pin in pins if pin.startswith(("torch==", "torchvision=="))]
    assert len(tested) == 2
    assert all(f"{pin}+cu126" in devices.OLD_WHEELS for pin in tested)


@pytest.mark.usefixtures("tf32_as_before")
@pytest.mark.parametrize(
    ("script", "name"),
    [("02_train.py", "auto"), ("03_predict.py", "cuda:0"), ("predict_radiographs.py", "cuda")],
)
def test_a_card_without_kernels_ends_a_script_before_anything_is_written(
    script, name, tmp_path, monkeypatch, capsys
):
    failure = torch.AcceleratorError(NO_KERNEL)
    with_cuda(monkeypatch, PASCAL, cuda="13.0", architectures=CUDA_13, fails=failure)
    code, line = refusal(script, tmp_path, capsys, "--device", name)
    assert code == 2
    for part in ("no kernel image is available", "capability 6.1", "cu126", "--device cpu"):
        assert part in line
    assert list(tmp_path.iterdir()) == []


def test_auto_refuses_the_cpu_where_the_driver_is_too_old_for_pytorch(
    tmp_path, monkeypatch, capsys
):
    without_cuda(monkeypatch, OLD_DRIVER)
    monkeypatch.setattr(torch.version, "cuda", "13.0")
    code, line = refusal("02_train.py", tmp_path, capsys)
    assert code == 2
    assert line.startswith("error: --device auto: NVIDIA GeForce RTX 3090 is here, but PyTorch")
    for part in ("driver 535.104.05 is too old", "cu126", "--device cpu"):
        assert part in line
    assert list(tmp_path.iterdir()) == []


def test_auto_refuses_the_cpu_where_only_the_system_shows_a_card(tmp_path, monkeypatch):
    without_cuda(monkeypatch)
    (tmp_path / "nvidia0").touch()
    monkeypatch.setattr(devices, "DEVICE_FILES", tmp_path)
    with pytest.raises(BadConfig, match="an NVIDIA card is here, but PyTorch cannot use it"):
        devices.choose("auto")


@pytest.mark.parametrize("hidden", ["", "-1", "NoDevFiles"])
def test_auto_takes_the_cpu_where_cards_are_hidden_on_purpose(monkeypatch, hidden):
    without_cuda(monkeypatch, OLD_DRIVER)
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", hidden)
    assert devices.choose("auto") == CPU


AUTO_BESIDE_A_CARD = """
import sys
from pathlib import Path
from pneumothorax.compute import devices

devices.DEVICE_FILES = Path(sys.argv[1])
print(devices.choose("auto"))
"""


def test_the_processes_that_tests_start_compute_on_the_cpu_beside_a_card(tmp_path):
    (tmp_path / "nvidia0").touch()
    command = [sys.executable, "-c", AUTO_BESIDE_A_CARD, tmp_path]
    done = subprocess.run(command, cwd=ROOT, check=True, capture_output=True, text=True)
    assert done.stdout == "cpu\n"


def test_auto_takes_the_cpu_where_no_card_is_even_with_pytorch_for_cuda(monkeypatch):
    without_cuda(monkeypatch)
    monkeypatch.setattr(torch.version, "cuda", "13.0")
    assert devices.choose("auto") == CPU


@pytest.mark.parametrize(
    "name, message",
    [
        ("gpu", "--device gpu is unknown: auto, cpu, cuda, cuda:1, mps"),
        ("meta", "--device meta is not supported"),
        ("cuda:1", "--device cuda:1 is not here: this process sees 1 CUDA devices"),
    ],
)
def test_a_device_that_is_unknown_or_absent_is_refused(monkeypatch, name, message):
    with_cuda(monkeypatch, PASCAL, cuda="12.6", architectures=CUDA_12_6)
    with pytest.raises(BadConfig, match=message):
        devices.choose(name)


@pytest.mark.parametrize("name", ["cuda", "cuda:1"])
def test_a_card_that_is_not_here_is_refused_without_advice_on_wheels(monkeypatch, name):
    without_cuda(monkeypatch)
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "")  # if there is one, it stays hidden
    with pytest.raises(BadConfig, match=r"no NVIDIA card is found here; --device cpu works") as one:
        devices.choose(name)
    assert "pip install" not in str(one.value)


@pytest.mark.usefixtures("tf32_as_before")
def test_a_card_whose_memory_others_fill_is_not_said_to_need_another_pytorch(monkeypatch):
    failure = torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 MiB. GPU 0 has")
    with_cuda(monkeypatch, PASCAL, cuda="12.6", architectures=CUDA_12_6, fails=failure)
    with pytest.raises(BadConfig, match="CUDA out of memory: end what else uses its memory"):
        devices.choose("cuda")


@pytest.mark.usefixtures("tf32_as_before")
def test_beside_an_older_card_the_advice_is_for_the_chosen_one(monkeypatch):
    blackwell = devices.Card("NVIDIA GeForce RTX 5090", "580.65.06", (12, 0))
    failure = torch.AcceleratorError(NO_KERNEL)
    with_cuda(monkeypatch, blackwell, cuda="12.6", architectures=CUDA_12_6, fails=failure)
    monkeypatch.setattr(devices, "cards", lambda: [PASCAL, blackwell])
    with pytest.raises(BadConfig, match=r"capability 12\.0: .*cu130"):
        devices.choose("cuda:0")


def test_mps_that_fails_is_refused_without_a_word_on_cards(monkeypatch):
    without_cuda(monkeypatch, PASCAL)

    def fail(device):
        raise RuntimeError("PyTorch is not linked with support for mps devices")

    monkeypatch.setattr(devices, "_try", fail)
    with pytest.raises(BadConfig, match=r"for mps devices: --device cpu works everywhere$"):
        devices.choose("mps")


@pytest.mark.usefixtures("tf32_as_before")
def test_a_card_is_made_current_and_computes_without_tf32(monkeypatch):
    with_cuda(monkeypatch, PASCAL, cuda="12.6", architectures=CUDA_12_6)
    current = []
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    monkeypatch.setattr(torch.cuda, "set_device", current.append)
    torch.backends.cudnn.allow_tf32 = True  # PyTorch's default
    assert devices.choose("cuda", local_rank=1) == torch.device("cuda:1")
    assert current == [torch.device("cuda:1")]
    assert not torch.backends.cudnn.allow_tf32
    assert not torch.backends.cuda.matmul.allow_tf32


@pytest.mark.usefixtures("tf32_as_before")
@pytest.mark.parametrize("name", ["auto", "cuda"])
def test_a_card_without_a_number_gets_that_of_the_current_one(monkeypatch, name):
    """Limiting its memory, for one, refuses "cuda" alone."""
    with_cuda(monkeypatch, PASCAL, cuda="12.6", architectures=CUDA_12_6)
    monkeypatch.setattr(torch.cuda, "current_device", lambda: 1)
    assert devices.choose(name) == torch.device("cuda:1")


@pytest.mark.parametrize(
    "card, asked, precision",
    [
        (PASCAL, "auto", "fp32"),
        (devices.Card("Tesla T4", "580.65.06", (7, 5)), "auto", "fp16"),
        (devices.Card("NVIDIA A100", "580.65.06", (8, 0)), "auto", "bf16"),
        (devices.Card("NVIDIA H100", "580.65.06", (9, 0)), "fp32", "fp32"),
    ],
)
def test_the_first_line_names_card_driver_and_precision(monkeypatch, card, asked, precision):
    with_cuda(monkeypatch, card, cuda="12.6", architectures=CUDA_12_6)
    monkeypatch.setattr(torch, "__version__", "2.13.0+cu126")
    line = precisions.first_line(torch.device("cuda:0"), asked, training=True)
    dotted = ".".join(map(str, card.capability))
    assert line == (
        f"device cuda:0: {card.name}, 11 GiB, capability {dotted}, driver 580.65.06, "
        f"PyTorch 2.13.0+cu126; precision {precision}, TF32 off"
    )


def test_the_first_line_of_a_cpu_names_threads_and_what_timing_decides(monkeypatch):
    monkeypatch.setattr(devices.platform, "machine", lambda: "x86_64")
    monkeypatch.setattr(torch, "get_num_threads", lambda: 2)
    monkeypatch.setattr(precisions, "cpu_has_bf16", lambda: True)
    start = "device cpu: x86_64 CPU, 2 threads; precision "
    assert precisions.first_line(CPU, "auto") == f"{start}bf16"
    line = precisions.first_line(CPU, "auto", training=True)
    assert line == f"{start}fp32 or bf16, whichever trains faster"


@pytest.mark.skipif(os.name != "posix", reason="a shell script stands in for nvidia-smi")
@pytest.mark.parametrize(
    "script, expected",
    [
        (
            "echo 'Tesla T4, 535.104.05, 7.5'; echo 'NVIDIA H100, 535.104.05, 9.0'",
            [("Tesla T4", "535.104.05", (7, 5)), ("NVIDIA H100", "535.104.05", (9, 0))],
        ),
        (  # before driver 510
            "case $1 in *cap*) exit 2 ;; esac; echo 'GeForce GTX 1080 Ti, 470.223.02'",
            [("GeForce GTX 1080 Ti", "470.223.02", None)],
        ),
        ('echo "couldn\'t communicate with the NVIDIA driver"; exit 9', []),
        ("echo 'No devices were found'", []),
    ],
)
def test_cards_are_those_that_nvidia_smi_lists(tmp_path, monkeypatch, script, expected):
    program = tmp_path / "nvidia-smi"
    program.write_text(f"#!/bin/sh\n{script}\n")
    program.chmod(0o755)
    monkeypatch.setenv("PATH", str(tmp_path))
    assert devices.cards() == expected


def test_without_nvidia_smi_there_are_no_cards(tmp_path, monkeypatch):
    monkeypatch.setenv("PATH", str(tmp_path))
    assert devices.cards() == []


def test_trying_the_cpu_leaves_its_random_numbers_alone():
    before = torch.get_rng_state()
    assert devices.choose("cpu") == CPU
    assert torch.equal(torch.get_rng_state(), before)


def test_a_device_is_tried_with_a_convolution_a_matrix_product_and_their_gradients():
    kernels = []

    class Kernels(TorchDispatchMode):
        def __torch_dispatch__(self, function, types, args=(), kwargs=None):
            kernels.append(str(function))
            return function(*args, **(kwargs or {}))

    with Kernels():
        devices.choose("cpu")
    for name in ("convolution", "convolution_backward", "_local_scalar_dense"):  # the last waits
        assert f"aten.{name}.default" in kernels
    assert kernels.count("aten.bmm.default") == 3  # forward, and a gradient for each factor


class Copied:
    """Notes how it is copied to a device."""

    def __init__(self):
        self.calls = []

    def to(self, device, **how):
        self.calls.append((device, how))
        return torch.zeros(1, dtype=torch.uint8)


@pytest.mark.parametrize("name, awaited", [("mps", True), ("cpu", True), ("cuda", False)])
def test_only_copies_to_cuda_are_not_awaited(name, awaited):
    images = Copied()
    to_network(images, torch.device(name))
    assert images.calls == [(torch.device(name), {"non_blocking": not awaited})]


def test_networks_are_contiguous_on_mps_and_channels_last_elsewhere():
    assert devices.memory_format(MPS) is torch.contiguous_format
    for name in ("cpu", "cuda"):
        assert devices.memory_format(torch.device(name)) is torch.channels_last


@pytest.mark.parametrize("error", OUT_OF_MEMORY, ids=str)
@pytest.mark.parametrize(("n", "advice"), [(16, "--batch-size 8"), (1, "--device cpu")])
def test_stage_03_says_what_to_try_where_memory_is_not_enough(error, n, advice):
    message = f"with {n} images at a time; .* with {advice}$"
    with pytest.raises(BadInput, match=message), probability_maps.memory_for(n):
        raise error


def test_other_errors_of_stage_03_stay_as_they_are():
    with pytest.raises(RuntimeError, match="mat1 and mat2"), probability_maps.memory_for(16):
        raise RuntimeError("mat1 and mat2 shapes cannot be multiplied")
