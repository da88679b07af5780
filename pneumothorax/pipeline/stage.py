"""What every script shares: its flags and its exit codes."""

import argparse
import errno
import io
import math
import os
import re
import select
import shlex
import shutil
import signal
import subprocess
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from pneumothorax import rle
from pneumothorax.errors import BadConfig, BadInput, OutputLocked, Stopped
from pneumothorax.pipeline import cluster

KAGGLE_INPUT, KAGGLE_WORKING = Path("/kaggle/input"), Path("/kaggle/working")

COMMON_FLAGS = ("--input", "--output", "--workers", "--seed", "--overwrite", "--no-lock")

DONE, UNEXPECTED, USAGE, BAD_INPUT, LOCKED = 0, 1, 2, 3, 4
NOBODY_READS = 141  # what a shell says of a program that a closed pipe ends: 128 + SIGPIPE
NOT_ALLOWED = (errno.EACCES, errno.EPERM, errno.EROFS)
IN_THE_WAY = (errno.EISDIR, errno.ENOTDIR, errno.EEXIST, errno.ELOOP)  # e.g. a folder, not a file
DISK_FULL = {
    errno.ENOSPC: "the disk is full",
    errno.EDQUOT: "the disk quota is used up",
    errno.EFBIG: "a file grew too large",
}
SHARED_MEMORY = Path("/dev/shm")  # noqa: S108 (Linux: where processes share data)


def manual(docstring: str | None) -> argparse.ArgumentParser:
    """A parser without flags whose --help is the script's docstring."""
    return argparse.ArgumentParser(
        description=docstring, formatter_class=argparse.RawDescriptionHelpFormatter
    )


def parser(docstring: str | None, flags: Sequence[str] = COMMON_FLAGS) -> argparse.ArgumentParser:
    """A parser with the common flags named, whose --help is the script's docstring."""
    made = manual(docstring)
    known: dict[str, dict[str, Any]] = {
        "--input": {
            "type": place,
            "default": KAGGLE_INPUT if KAGGLE_INPUT.is_dir() else Path("input"),
            "metavar": "DIR",
            "help": "folder with the raw data, never written to (default: %(default)s)",
        },
        "--output": {
            "type": place,
            "default": default_output(),
            "metavar": "DIR",
            "help": "folder that all stages share (default: %(default)s)",
        },
        "--workers": {
            "type": count,
            "default": _cores() if "--workers" in flags else None,
            "metavar": "N",
            "help": "processes to use (default: %(default)s, the cores this process may use)",
        },
        "--seed": {
            "type": count,
            "help": "seed of every random choice (default: 42, or the config's)",
        },
        "--overwrite": {
            "action": "store_true",
            "help": "start from scratch instead of resuming or reusing files",
        },
        "--no-lock": {
            "action": "store_true",
            "help": "on a disk without locks: the process that holds the output is gone",
        },
    }
    for flag in flags:
        made.add_argument(flag, **known[flag])
    return made


def _cores() -> int:
    import joblib

    return int(joblib.cpu_count())


def default_output() -> Path:
    return KAGGLE_WORKING if KAGGLE_INPUT.is_dir() else Path("output")


def add_scheduler_flag(made: argparse.ArgumentParser) -> None:
    """For the stages that can work on a cluster."""
    made.add_argument(
        "--scheduler",
        type=cluster.scheduler,
        metavar="ADDRESS",
        help="use the Dask cluster whose scheduler is at tcp://HOST:PORT instead of this machine",
    )


def add_device_flag(made: argparse.ArgumentParser, more: str = "") -> None:
    """For the scripts that run a network; `more` is added to the flag's help."""
    devices = f"auto, cpu, cuda, cuda:1, mps, ...{more} (default: %(default)s)"
    made.add_argument("--device", default="auto", help=devices)


def add_prediction_flags(made: argparse.ArgumentParser) -> None:
    """For the scripts that predict: --batch-size, --device, --precision."""
    images = "images at a time (default: %(default)s)"
    made.add_argument("--batch-size", type=int, default=16, help=images)
    add_device_flag(made)
    made.add_argument(
        "--precision",
        choices=("auto", "fp32", "bf16", "fp16"),
        default="auto",
        help="auto: 16 bits where the device has units for them (default: %(default)s)",
    )


def parse(made: argparse.ArgumentParser, argv: list[str] | None) -> argparse.Namespace:
    """The arguments, with absolute paths for a cluster: its workers run elsewhere."""
    args = made.parse_args(argv)
    if args.scheduler:
        for name, value in vars(args).items():
            setattr(args, name, value.absolute() if isinstance(value, Path) else value)
    return args


def count(text: str) -> int:
    """argparse type: a whole number, 0 or more."""
    value = int(text)
    if value < 0:
        raise argparse.ArgumentTypeError(f"must be 0 or more, got {value}")
    return value


def minutes(text: str) -> float:
    """argparse type: a number above 0."""
    value = float(text)
    if not value > 0:
        raise argparse.ArgumentTypeError(f"must be above 0, got {text}")
    return value


def place(text: str) -> Path:
    """argparse type: a path. An empty one, from an unset variable, would mean the cwd."""
    if not text:
        raise argparse.ArgumentTypeError("is empty; the current folder is .")
    return Path(text)


def areas(text: str) -> tuple[int, ...]:
    """argparse type: "500,0,..." pixels of 1024 x 1024 -> (0, 500, ...), each once."""
    largest = math.prod(rle.KAGGLE_SHAPE)
    values = tuple(sorted({count(part) for part in text.split(",")}))
    if values[-1] > largest:
        raise argparse.ArgumentTypeError(f"an image has {largest} pixels, got {values[-1]}")
    return values


def check_name(made: argparse.ArgumentParser, flag: str, name: str) -> None:
    """Usage error for a run's or submission's name that cannot be a folder and a label.

    Names become labels in figures, where a leading "_" would hide them.
    """
    if not re.fullmatch(r"[A-Za-z0-9][A-Za-z0-9._-]{0,63}", name):
        rule = "1 to 64 letters, digits, '.', '_' or '-', starting with a letter or digit"
        made.error(f"{flag} must be {rule}, got {name!r}")


def chosen_folds(text: str, n_folds: int) -> list[int]:
    """--fold, `all` or a number -> folds. Raises BadConfig if there is no such fold."""
    if text == "all":
        return list(range(n_folds))
    if not text.isdecimal() or int(text) >= n_folds:
        raise BadConfig(f"--fold must be 0 to {n_folds - 1} or all, got {text!r}")
    return [int(text)]


def run(main: Callable[[], Any]) -> None:
    """Call a script's main and leave with its exit code."""
    escape_unprintable()
    signal.signal(signal.SIGTERM, _terminate)
    try:
        code = exit_code(main)
    finally:
        _nobody_reads()  # or the flush at exit would end in a traceback
    sys.exit(code)


def escape_unprintable() -> None:
    """From now on, print what the terminal cannot show as `\\xe9`, not as a traceback."""
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="backslashreplace")


def exit_code(main: Callable[[], Any]) -> int:
    """Call `main`; what a user can repair is printed without a traceback."""
    try:
        main()
    except BadConfig as error:
        return _fail(USAGE, str(error))
    except BadInput as error:
        return _fail(BAD_INPUT, str(error))
    except OutputLocked as error:
        return _fail(LOCKED, str(error))
    except Stopped as stopped:
        print(
            f"stopped; the state is saved. To resume: {_command_to_resume()}",
            file=sys.stderr,
            flush=True,
        )
        return stopped.code
    except KeyboardInterrupt:
        return _fail(128 + signal.SIGINT, f"interrupted; to resume: {_command_to_resume()}")
    except OSError as error:
        if isinstance(error, BrokenPipeError) and _nobody_reads():
            return NOBODY_READS
        return _fail_on_disk(error)
    return DONE


def _nobody_reads() -> bool:
    """Whether the program behind a pipe has ended, as `| head` does; what is printed is lost."""
    try:
        events = select.poll()
        events.register(sys.stdout, select.POLLOUT)
        ended = any(event & select.POLLERR for _, event in events.poll(0))
    except (AttributeError, TypeError, ValueError):  # on Windows; where output goes to no file
        return False
    if ended:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
    return ended


def _fail_on_disk(error: OSError) -> int:
    """Raises the error again where the user can do nothing about it."""
    name = error.filename2 or error.filename
    if error.errno in (*NOT_ALLOWED, *IN_THE_WAY):
        return _fail(BAD_INPUT, f"{name or 'a file'}: {error.strerror}")
    if error.errno == errno.ENOSPC and _is_of_shared_memory(error):
        return _fail(
            UNEXPECTED,
            f"the shared memory {SHARED_MEMORY} is full, not the output: start the container with "
            "more of it (docker run --shm-size 2g ...), or use --workers 0",
        )
    if error.errno in DISK_FULL:
        reason = f"{DISK_FULL[error.errno]} ({error.filename or 'output'})"
        return _fail(UNEXPECTED, f"{reason}; files written before are complete")
    raise error


def _is_of_shared_memory(error: OSError) -> bool:
    """Whether processes had no room to share data, rather than a disk for files.

    Semaphores and queues do not name their file. joblib's files have its name.
    """
    if error.filename is not None:
        name = os.fsdecode(error.filename)
        return name == str(SHARED_MEMORY) or name.startswith(f"{SHARED_MEMORY}/joblib")
    return SHARED_MEMORY.is_dir() and shutil.disk_usage(SHARED_MEMORY).free < 2**20


def quoted(*words: object) -> str:
    """Part of a command to print: a shell reads it as these words, spaces included."""
    texts = [str(word) for word in words]
    return subprocess.list2cmdline(texts) if os.name == "nt" else shlex.join(texts)


def next_step(output: Path, script: str, *flags: object) -> str:
    """The line that ends a stage: the command of the stage after it."""
    return f"next: python {quoted(script, *flags, '--output', output)}"


def _command_to_resume() -> str:
    """The command that started this process, without what is meant for one call only."""
    launcher = "torchrun ... --" if os.environ.get("TORCHELASTIC_RUN_ID") else "python"
    words = [word for word in sys.argv if word not in ("--overwrite", "--no-lock")]
    return f"{launcher} {quoted(*words)}"


def _terminate(number: int, frame: object) -> None:
    print(f"terminated; to resume: {_command_to_resume()}", file=sys.stderr, flush=True)
    sys.exit(128 + number)


def _fail(code: int, message: str) -> int:
    print(f"error: {message}", file=sys.stderr, flush=True)
    return code
