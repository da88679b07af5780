"""Progress of long work: bars on a terminal, lines in a log."""

import io
import sys

import pytest

from pneumothorax.pipeline import progress
from pneumothorax.pipeline.progress import show_progress


class Terminal(io.StringIO):
    def isatty(self):
        return True


@pytest.fixture
def clock(monkeypatch):
    """A clock that the test moves: clock[0] seconds."""
    now = [0.0]
    monkeypatch.setattr(progress.time, "monotonic", lambda: now[0])
    return now


def test_without_a_terminal_progress_is_a_line_every_30_seconds(clock, capsys):
    with show_progress(total=100, title="preparing", done=20) as bar:
        for seconds in (29, 30, 59, 60):
            clock[0] = seconds
            bar.update(10)
    # After 30 s 20 of the 80 are done, so 60 are left for 90 s; after 60 s 40, for 60 s.
    assert capsys.readouterr().err == (
        "preparing: 40 of 100 (40%), 00:30 so far, 01:30 left\n"
        "preparing: 60 of 100 (60%), 01:00 so far, 01:00 left\n"
    )


def test_short_work_and_processes_beside_the_main_one_print_nothing(clock, capsys):
    assert list(show_progress("abc", total=3, title="reading")) == ["a", "b", "c"]
    with show_progress(total=2, title="training", visible=False) as bar:
        clock[0] = 1000
        bar.update(2)
        assert bar.n == 2
    assert capsys.readouterr().err == ""


def test_a_loop_counts_each_item_once_it_is_done(clock, capsys):
    for seconds in show_progress([10, 40], total=2, title="reading"):
        clock[0] = seconds
    assert capsys.readouterr().err == "reading: 2 of 2 (100%), 00:40 so far, 00:00 left\n"


def test_on_a_terminal_progress_is_a_bar(monkeypatch):
    terminal = Terminal()
    monkeypatch.setattr(sys, "stderr", terminal)
    with show_progress(total=4, title="preparing") as bar:
        bar.update(4)
    assert "\rpreparing: 100%" in terminal.getvalue()
