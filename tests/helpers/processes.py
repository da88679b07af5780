"""Stages in two processes that are joined as torchrun joins them, without its start.

A new Python process spends ten seconds on imports. These are forks of one that has them.
"""

import multiprocessing
import os

import torch
from torch import distributed

from tests.helpers.stages import run_stage

PROCESSES = 2
IMPORTS = [
    "albumentations",
    "matplotlib.backends.backend_agg",
    "torch._dynamo",
    "torch.utils.tensorboard",
]


def run_together(folder, script, *flags):
    """Run a stage in two processes with one thread each; returns what they print.

    Args:
        folder: an empty one, for the files with what each process prints.
    """
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(IMPORTS)
    store = distributed.TCPStore("127.0.0.1", 0, is_master=True, wait_for_workers=False)
    started = [
        context.Process(target=_run_rank, args=(rank, store.port, folder, [script, *flags]))
        for rank in range(PROCESSES)
    ]
    for process in started:
        process.start()
    for process in started:
        process.join(300)
        process.kill()  # one that hangs
    printed = "".join(path.read_text("utf-8") for path in sorted(folder.iterdir()))
    assert [process.exitcode for process in started] == [0] * PROCESSES, printed[-3000:]
    return printed


def _run_rank(rank, port, folder, command):
    """What torchrun does in the process of one rank."""
    os.environ |= {
        "TORCHELASTIC_RUN_ID": "test",
        "TORCHELASTIC_RESTART_COUNT": "0",
        "TORCHELASTIC_USE_AGENT_STORE": "True",
        "MASTER_ADDR": "127.0.0.1",
        "MASTER_PORT": str(port),
        "WORLD_SIZE": str(PROCESSES),
        "RANK": str(rank),
        "LOCAL_RANK": str(rank),
    }
    with open(folder / f"rank{rank}", "w") as file:
        for descriptor in (1, 2):
            os.dup2(file.fileno(), descriptor)
    torch.set_num_threads(1)
    run_stage(*command)
