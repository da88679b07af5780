"""The table of faults in tests/README.md names tests that exist."""

import re

from tests.helpers.stages import ROOT

TABLE = (ROOT / "tests" / "README.md").read_text("utf-8")
NAMED = re.findall(r"`([a-z_0-9/]+)::([a-z_0-9*]+)`", TABLE)
FILES = sorted((ROOT / "tests").rglob("test_*.py"))


def missing(named, files):
    """The `file::test` names without such a test; a file may be named with its room."""
    texts = {}
    for path in files:
        name = path.stem.removeprefix("test_")
        texts.setdefault(name, []).append(path.read_text("utf-8"))
        texts.setdefault(f"{path.parent.name}/{name}", []).append(path.read_text("utf-8"))
    return [
        f"{file}::{test}"
        for file, test in named
        if not any(test == "*" or f"def test_{test}(" in text for text in texts.get(file, []))
    ]


def test_every_test_named_in_the_table_of_faults_exists():
    assert len(FILES) > 40
    assert len(NAMED) > 100
    assert missing(NAMED, FILES) == []


def test_a_missing_test_or_file_is_noticed():
    named = [("repository/faults_table", "a_missing_test_or_file_is_noticed"), ("rle", "*")]
    assert missing(named, FILES) == []
    wrong = [("faults_table", "no_such_test"), ("no_such_file", "*"), ("stages/rle", "*")]
    assert missing(wrong, FILES) == [
        "faults_table::no_such_test",
        "no_such_file::*",
        "stages/rle::*",
    ]
