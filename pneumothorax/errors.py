"""The errors a user can repair; everything else is a bug and keeps its traceback."""

MAX_LISTED = 50


class BadInput(ValueError):
    """A file, table or folder is missing, odd or out of date; the message says which, what and what to do."""


class BadConfig(BadInput):
    """An experiment's settings are wrong; the message lists the known ones."""


class Stopped(Exception):
    """A stage was asked to stop and has saved its state; `code` is its exit code."""

    def __init__(self, code: int) -> None:
        super().__init__(code)
        self.code = code


class OutputLocked(RuntimeError):
    """Another run is writing the same part of the output folder."""


def bad_list(headline: str, problems: list[str], *, limit: int = MAX_LISTED) -> BadInput:
    """One BadInput that lists every problem on a line of its own, the first `limit` of them in full."""
    shown = problems[:limit]
    rest = [f"... and {len(problems) - limit} more"] if len(problems) > limit else []
    return BadInput("\n  ".join([headline, *shown, *rest]))
