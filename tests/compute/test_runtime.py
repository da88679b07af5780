"""Memory: errors that say it is not enough, and freed memory that is used again."""

import platform
import subprocess
import sys

import pytest
import torch

from pneumothorax.compute import runtime
from tests.helpers.memory import OUT_OF_MEMORY, peak_mib
from tests.helpers.stages import ROOT


@pytest.mark.parametrize("error", OUT_OF_MEMORY, ids=str)
def test_all_ways_to_say_that_memory_is_not_enough_are_understood(error):
    assert runtime.is_out_of_memory(error)


@pytest.mark.parametrize(
    "error",
    [
        RuntimeError("CUDA error: an illegal memory access was encountered"),
        RuntimeError("cuDNN error: CUDNN_STATUS_EXECUTION_FAILED"),
        RuntimeError("stack expects each tensor to be equal size"),
        OSError("out of memory"),
    ],
    ids=str,
)
def test_other_errors_are_not_taken_for_it(error):
    assert not runtime.is_out_of_memory(error)


def test_what_is_free_on_a_card_includes_what_the_allocator_holds_in_reserve(monkeypatch):
    for name, found in (
        ("mem_get_info", (1000, 5000)),
        ("memory_reserved", 300),
        ("memory_allocated", 200),
    ):
        monkeypatch.setattr(torch.cuda, name, lambda device, found=found: found)
    assert runtime.free_bytes(torch.device("cuda:0")) == 1000 + 300 - 200


def test_random_numbers_of_cpu_and_card_are_saved_and_restored(monkeypatch):
    card, restored = torch.device("cuda:1"), []
    monkeypatch.setattr(torch.cuda, "get_rng_state", lambda device: f"state of {device}")
    monkeypatch.setattr(torch.cuda, "set_rng_state", lambda *state: restored.append(state))
    saved = runtime.random_state(card)
    drawn = torch.rand(3)
    runtime.set_random_state(saved, card)
    assert torch.equal(torch.rand(3), drawn)
    assert restored == [("state of cuda:1", card)]
    runtime.set_random_state(saved, torch.device("cpu"))  # resumed without a card
    runtime.set_random_state(runtime.random_state(torch.device("cpu")), card)  # and with one
    assert len(restored) == 1


def test_peak_memory_is_that_of_the_card_or_of_the_process(monkeypatch):
    monkeypatch.setattr(torch.cuda, "max_memory_allocated", lambda device: 3 << 20)
    assert runtime.peak_memory_mib(torch.device("cuda:0")) == 3
    if sys.platform == "linux":
        # A process inherits ru_maxrss from its parent, so the upper limit only tells the unit.
        found = runtime.peak_memory_mib(torch.device("cpu"))
        assert 0.9 * peak_mib() <= found < 100 * peak_mib()


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


@pytest.mark.parametrize(
    ("available", "parts"),
    [
        (2000, 1),  # 100 + 16 * 100 = 1700 <= 1800
        (1800, 2),  # 1620 < 1700, and half of the batch takes 900
        (999, 4),  # 899 < 900, and a quarter takes 500
        (400, 8),  # 360 >= 300 for two images
        (10, 8),  # nothing fits: as small as can be
    ],
)
def test_a_batch_is_cut_into_as_few_parts_as_fit(available, parts):
    found = runtime.fewest_parts(16, lambda images: 100 + 100 * images, available)
    assert found == parts


@pytest.mark.parametrize(
    ("available", "parts"),
    [
        (1000, 1),  # each of two processes takes 8 images: 900 <= 900
        (999, 2),  # 899 < 900, and 4 images take 500
        (400, 4),  # 360 >= 300 for two images
        (10, 8),
    ],
)
def test_processes_share_the_images_of_each_part(available, parts):
    found = runtime.fewest_parts(16, lambda images: 100 + 100 * images, available, processes=2)
    assert found == parts


def test_a_trial_that_does_not_fit_gives_the_smallest_parts():
    def trial(images):
        if images > 2:
            raise OUT_OF_MEMORY[0]
        return 300

    assert runtime.fewest_parts(16, trial, 10**9) == 8


def test_other_errors_of_a_trial_are_not_hidden():
    def trial(images):
        raise RuntimeError("mat1 and mat2 shapes cannot be multiplied")

    with pytest.raises(RuntimeError, match="mat1 and mat2"):
        runtime.fewest_parts(16, trial, 10**9)


def test_a_batch_that_cannot_be_cut_needs_no_trial():
    def trial(images):
        raise AssertionError("no trial is needed")

    assert runtime.fewest_parts(3, trial, 0) == 1
