"""DataLoader workers."""

import errno

import pytest
from torch.utils.data import DataLoader

from pneumothorax.compute import loading


@pytest.mark.parametrize(
    ("workers", "processes", "each"),
    [(2, "1", 2), (96, "1", 8), (16, "4", 4), (2, "4", 1), (0, "4", 0)],
)
def test_the_processes_on_a_machine_share_its_workers(workers, processes, each, monkeypatch):
    monkeypatch.setenv("LOCAL_WORLD_SIZE", processes)
    assert loading.workers_per_process(workers) == each


class Unsendable:
    """A batch for which the shared memory has no room."""

    def __init__(self, _):
        pass

    def __reduce__(self):
        raise RuntimeError(
            "unable to allocate shared memory(shm) for file </torch_71_3_0>: "
            "No space left on device (28)"
        )


def test_a_worker_that_cannot_send_its_batch_says_so_at_once():
    loader = DataLoader(
        range(4),
        collate_fn=Unsendable,
        num_workers=1,
        worker_init_fn=loading.start_worker,
        timeout=60,
    )
    with (
        loading.Workers(),
        pytest.raises(OSError, match="No space left"),
        loading.worker_deaths(),
    ):
        next(iter(loader))


@pytest.mark.parametrize(
    "message",
    [
        "Caught RuntimeError in DataLoader worker process 0.\nOriginal Traceback: ...\n"
        "RuntimeError: unable to write to file </torch_71_3_0>: No space left on device (28)",
        "unable to allocate shared memory(shm) for file </torch_71_3_0>: Success (0)",
        "DataLoader worker (pid 7) is killed by signal: Bus error. It is possible that "
        "dataloader's workers are out of shared memory. Please try to raise your shared memory "
        "limit.",
    ],
)
def test_workers_without_room_in_shared_memory_are_not_taken_for_dead_ones(message):
    with pytest.raises(OSError, match="No space left") as caught, loading.worker_deaths():
        raise RuntimeError(message)
    assert (caught.value.errno, caught.value.filename) == (errno.ENOSPC, "/dev/shm")


def test_a_worker_that_dies_for_another_reason_is_a_dead_worker():
    message = "DataLoader worker (pid 7) is killed by signal: Killed."
    with pytest.raises(loading.DeadWorker), loading.worker_deaths():
        raise RuntimeError(message)
