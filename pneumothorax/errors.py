"""Errors that a user can repair; everything else is a bug and keeps its traceback."""

MAX_LISTED = 50
INSTALL_EXTRA = "python -m pip install -r requirements-extra.txt"  # Dask, ONNX, DICOM-SEG


class BadInput(ValueError):
    """A file, table or folder is missing, wrong or out of date.

    The message says what is wrong, where, and which command repairs it.
    """


class BadConfig(BadInput):
    """A setting or flag is wrong; the message lists the known ones."""


class Stopped(Exception):
    """A stage was asked to stop and has saved its state; `code` is its exit code."""

    def __init__(self, code: int) -> None:
        super().__init__(code)
        self.code = code


class OutputLocked(RuntimeError):
    """Another process is writing the same part of the output folder."""


def counted(number: int, one: str, many: str = "") -> str:
    """The number with the words that fit it: "1 file is", "2 files are"; `many` is one + "s"."""
    return f"{number} {one if number == 1 else many or one + 's'}"


def bad_list(headline: str, problems: list[str], *, limit: int = MAX_LISTED) -> BadInput:
    """A BadInput that lists the first `limit` problems and counts the rest."""
    shown = problems[:limit]
    rest = [f"... and {len(problems) - limit} more"] if len(problems) > limit else []
    return BadInput("\n  ".join([headline, *shown, *rest]))
