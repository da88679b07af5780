"""Stages in several processes at once, without the ten seconds that each would import for."""

import multiprocessing
import os

import torch
from torch import distributed

from tests.helpers.stages import run_stage

# Imported once, by the process whose forks run the stages
IMPORTS = [
    "albumentations",
    "matplotlib.backends.backend_agg",
    "torch._dynamo",
    "torch.utils.tensorboard",
]


def run_at_once(folder, *commands):
    """Run stages at the same moment, with as many threads as here; returns what they print.

    Args:
        folder: an empty one, for files with what they print.
        commands: (environment variables, stage, flag, ...).
    """
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(IMPORTS)
    started = [
        context.Process(
            target=_run, args=(folder / f"printed{number}", torch.get_num_threads(), *command)
        )
        for number, command in enumerate(commands)
    ]
    for process in started:
        process.start()
    for process in started:
        process.join(300)
        process.kill()  # if it hangs
        process.join()
    printed = "".join(path.read_text("utf-8") for path in sorted(folder.glob("printed*")))
    assert [process.exitcode for process in started] == [0] * len(commands), printed[-3000:]
    return printed


def run_together(folder, *command):
    """Run a stage in two processes, joined as torchrun joins them; returns what they print."""
    store = distributed.TCPStore("127.0.0.1", 0, is_master=True, wait_for_workers=False)
    shared = {
        "TORCHELASTIC_RUN_ID": "test",
        "TORCHELASTIC_RESTART_COUNT": "0",
        "TORCHELASTIC_USE_AGENT_STORE": "True",
        "MASTER_ADDR": "127.0.0.1",
        "MASTER_PORT": str(store.port),
        "WORLD_SIZE": "2",
    }
    ranks = [shared | {"RANK": rank, "LOCAL_RANK": rank} for rank in "01"]
    return run_at_once(folder, *((environment, *command) for environment in ranks))


def _run(printed, threads, environment, *command):
    os.environ |= environment
    with open(printed, "w") as file:
        for descriptor in (1, 2):
            os.dup2(file.fileno(), descriptor)
    torch.set_num_threads(threads)  # another number rounds differently
    run_stage(*command)
