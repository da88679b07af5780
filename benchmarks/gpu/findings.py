"""What a check found, and the table of it."""

import textwrap
import traceback
from collections.abc import Callable, Sequence
from dataclasses import dataclass

HELD, FAILED, NOT_CHECKED, NO_TIME = "held", "FAILED", "not checked", "NO TIME"
MOST_CHARACTERS = 120  # of an error in the table


class Broken(Exception):
    """A claim does not hold; the message says what was found."""


class NotHere(Exception):
    """A claim cannot be checked on this device; the message says why."""


@dataclass(frozen=True)
class Finding:
    """One row of the table of claims."""

    claim: str
    outcome: str
    found: str

    @property
    def is_settled(self) -> bool:
        """Whether the claim held, or says nothing about this device."""
        return self.outcome in (HELD, NOT_CHECKED)


@dataclass(frozen=True)
class Speed:
    """One row of the table of speeds: images per second with a measure and without it."""

    work: str
    measure: str
    with_it: float
    without_it: float

    @property
    def gain(self) -> float:
        return self.with_it / self.without_it


def require(held: bool, found: str) -> str:
    """`found`, raised as Broken unless the claim `held`."""
    if not held:
        raise Broken(found)
    return found


def check(claim: str, look: Callable[[], str]) -> Finding:
    """The outcome of a check: `look` returns what it found, or raises. Prints it, too."""
    try:
        outcome, found = HELD, look()
    except NotHere as reason:
        outcome, found = NOT_CHECKED, str(reason)
    except Broken as reason:
        outcome, found = FAILED, str(reason)
    except Exception as error:  # the other checks continue
        traceback.print_exc()
        outcome, found = FAILED, one_line(error)
    return said(Finding(claim, outcome, found))


def said(finding: Finding) -> Finding:
    """The finding, printed as soon as it is known."""
    print(f"{finding.outcome:12} {finding.claim}: {finding.found}", flush=True)
    return finding


def one_line(error: BaseException) -> str:
    """An error's type and the beginning of its message."""
    message = " ".join(str(error).split())
    return textwrap.shorten(f"{type(error).__name__}: {message}", MOST_CHARACTERS)


def as_markdown(headline: Sequence[str], findings: list[Finding], speeds: list[Speed]) -> str:
    """Both tables, below the lines that say what they were measured on."""
    lines = [*headline, ""]
    claims = [[one.claim, one.outcome, one.found] for one in findings]
    lines += _table(["claim", "outcome", "found"], claims)
    rates = [
        [one.work, one.measure, f"{one.with_it:.1f}", f"{one.without_it:.1f}", f"{one.gain:.2f}"]
        for one in speeds
    ]
    columns = ["work", "measure", "with it, img/s", "without it, img/s", "with / without"]
    lines += ["", *_table(columns, rates)]
    return "\n".join(lines) + "\n"


def _table(columns: list[str], rows: list[list[str]]) -> list[str]:
    cells = [columns, ["---"] * len(columns), *rows]
    return ["| " + " | ".join(cell.replace("|", "/") for cell in row) + " |" for row in cells]
