"""What every stage script shares: its flags, its lock, its exit codes."""

import argparse
import errno
import os
import re
import shlex
import signal
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import joblib

from pneumothorax.errors import BadConfig, BadInput, OutputLocked, Stopped
from pneumothorax.pipeline import cluster

KAGGLE_INPUT, KAGGLE_WORKING = Path("/kaggle/input"), Path("/kaggle/working")

LARGEST_AREA = 1024 * 1024

DONE, UNEXPECTED, USAGE, BAD_INPUT, LOCKED = 0, 1, 2, 3, 4
NO_RIGHT = (errno.EACCES, errno.EPERM, errno.EROFS)
IN_THE_WAY = (
    errno.EISDIR,
    errno.ENOTDIR,
    errno.EEXIST,
    errno.ELOOP,
)  # a folder where a file belongs, and the like
NO_ROOM = {
    errno.ENOSPC: "the disk is full",
    errno.EDQUOT: "the disk quota is used up",
    errno.EFBIG: "a file grew too large",
}


def parser(manual: str) -> argparse.ArgumentParser:
    """A parser with the flags of every stage; the script's docstring is its manual."""
    made = argparse.ArgumentParser(
        description=manual, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    on_kaggle = KAGGLE_INPUT.is_dir()
    flag = made.add_argument
    flag("--input", type=place, default=KAGGLE_INPUT if on_kaggle else Path("input"), metavar="DIR",
         help="where raw data is read (default: %(default)s)")  # fmt: skip
    flag("--output", type=place, default=KAGGLE_WORKING if on_kaggle else Path("output"), metavar="DIR",
         help="folder that all stages share (default: %(default)s)")  # fmt: skip
    flag("--workers", type=count, default=joblib.cpu_count(), metavar="N",
         help="processes to use (default: the %(default)s cores this process may use)")  # fmt: skip
    flag(
        "--seed",
        type=count,
        default=None,
        help="seed of every random choice (default: 42 or the config's)",
    )
    flag(
        "--overwrite",
        action="store_true",
        help="make this stage's files anew instead of going on with them",
    )
    return made


def add_scheduler_flag(made: argparse.ArgumentParser) -> None:
    """For the stages that can work on a cluster."""
    told = (
        "work on the Dask cluster whose scheduler is at tcp://HOST:PORT, instead of on this machine"
    )
    made.add_argument("--scheduler", type=cluster.scheduler, metavar="ADDRESS", help=told)


def parse(made: argparse.ArgumentParser, argv: list[str] | None) -> argparse.Namespace:
    """The arguments; for a cluster, whose workers may run in another folder, with absolute paths."""
    args = made.parse_args(argv)
    if args.scheduler:
        for name, value in vars(args).items():
            setattr(args, name, value.absolute() if isinstance(value, Path) else value)
    return args


def count(text: str) -> int:
    """argparse type: a whole number from 0 up."""
    value = int(text)
    if value < 0:
        raise argparse.ArgumentTypeError(f"must be 0 or more, got {value}")
    return value


def place(text: str) -> Path:
    """argparse type: a path that is not empty, as that of an unset variable is: it would be the current folder."""
    if not text:
        raise argparse.ArgumentTypeError("is empty; the current folder is .")
    return Path(text)


def areas(text: str) -> tuple[int, ...]:
    """argparse type: areas in pixels of 1024 x 1024 with commas between -> ascending, each once."""
    values = tuple(sorted({count(part) for part in text.split(",")}))
    if values[-1] > LARGEST_AREA:
        raise argparse.ArgumentTypeError(f"an image has {LARGEST_AREA} pixels, got {values[-1]}")
    return values


def check_name(made: argparse.ArgumentParser, flag: str, name: str) -> None:
    """Names of runs and submissions become folders, and labels in figures, where a leading "_" would hide them."""
    if not re.fullmatch(r"[A-Za-z0-9][A-Za-z0-9._-]{0,63}", name):
        rule = "letters, digits, '.', '_' or '-', at most 64, the first a letter or digit"
        made.error(f"{flag} must be {rule}, got {name!r}")


def chosen_folds(text: str, n_folds: int) -> list[int]:
    """--fold: `all` or one number -> the folds to work on. Raises BadConfig for one that does not exist."""
    if text == "all":
        return list(range(n_folds))
    if not text.isdecimal() or int(text) >= n_folds:
        raise BadConfig(f"--fold {text}: there are folds 0 to {n_folds - 1}, or all")
    return [int(text)]


def run(main: Callable[[], Any]) -> None:
    """Call a stage's main and leave with its exit code; what the user can repair is printed without a traceback."""
    signal.signal(signal.SIGTERM, _terminate)
    sys.exit(exit_code(main))


def exit_code(main: Callable[[], Any]) -> int:
    try:
        main()
    except BadConfig as error:
        return _fail(USAGE, str(error))
    except BadInput as error:
        return _fail(BAD_INPUT, str(error))
    except OutputLocked as error:
        return _fail(LOCKED, str(error))
    except Stopped as stopped:
        again = shlex.join(argument for argument in sys.argv if argument != "--overwrite")
        launcher = "torchrun ... --" if os.environ.get("TORCHELASTIC_RUN_ID") else "python"
        print(
            f"stopped, the state is saved; to go on: {launcher} {again}",
            file=sys.stderr,
            flush=True,
        )
        return stopped.code
    except KeyboardInterrupt:
        return _fail(128 + signal.SIGINT, "interrupted; to go on, give the same command again")
    except OSError as error:
        if error.errno in (*NO_RIGHT, *IN_THE_WAY):
            return _fail(
                BAD_INPUT, f"{error.filename2 or error.filename or 'a file'}: {error.strerror}"
            )
        if error.errno not in NO_ROOM:
            raise
        return _fail(
            UNEXPECTED,
            f"{NO_ROOM[error.errno]} ({error.filename or 'output'}); files written before are whole",
        )
    return DONE


def _terminate(number: int, frame: object) -> None:
    print("terminated; to go on, give the same command again", file=sys.stderr, flush=True)
    sys.exit(128 + number)


def _fail(code: int, message: str) -> int:
    print(f"error: {message}", file=sys.stderr, flush=True)
    return code
