"""DataLoader workers."""

import pytest

from pneumothorax.compute import loading


@pytest.mark.parametrize(
    ("workers", "processes", "each"),
    [(2, "1", 2), (96, "1", 8), (16, "4", 4), (2, "4", 1), (0, "4", 0)],
)
def test_the_processes_on_a_machine_share_its_workers(workers, processes, each, monkeypatch):
    monkeypatch.setenv("LOCAL_WORLD_SIZE", processes)
    assert loading.workers_per_process(workers) == each
