"""No text in the repository has phrases that sound translated, or second names for a thing."""

import re
import subprocess

import pytest

from tests.helpers.stages import ROOT

SUFFIXES = (".py", ".md", ".html", ".js", ".css", ".sh", ".yaml", ".toml", ".txt", ".cff", ".ipynb")
# This file quotes them; the changelog names what was renamed.
EXEMPT = {"tests/repository/test_english.py", "CHANGELOG.md"}
NOT_OURS = {".venv", "input", "output"}
FEWEST_FILES = 150

BETTER = {
    r"\banew\b": "from scratch, again",
    r"\bgo(es)? on (where|with)\b|\bgo(ing|ne) on (after|with)\b|\bgoes on\b|\bto go on\b": (
        "resumes, continues"
    ),
    r"\bso many\b|\bso often\b": "the number of, this many, at this interval",
    r"\btold\b(?! apart)": "reported, given",
    r"\bhand(ed|s|ing)? (it |them )?in\b": "submit",
    r"(?<!one\s)\bof (its|their|his) own\b": "its own, a separate",
    r"\bstands? there\b|\bstood there\b": "is listed, is there",
    r"\bis no image of\b": "is not in",
    r"\bloses no night\b": "safe to interrupt",
    r"\bfilms?\b": "radiograph",
    r"\bdrawn(?: |_)chests?\b": "phantom",
    r"\bnothing(?: |_)predicted\b|\bpredict(s|ing)? nothing\b": "all-empty baseline",
    r"\bpresence(?: |_)head\b|\bp_presence\b": "classification head, p_classification",
    r"\bsmall parts\b|\bparts? (are |is )?dropped\b": "small components removed",
    r"\b(?-i:enlarg(e|es|ed|ing|ement))\b": "upsample, resize",
    r"(?<!flex-)\b(shrink|shrinks|shrinking|shrunk|shrank)\b": "downsample, resize",
    r"\bso manieth\b": "every n-th",
    r"\bwhether there (is|are) (one|any)\b|\bthere is one at all\b": "whether one exists",
    r"\bruns of pixels\b|\bruns of training\b": "pixel runs, training runs",
}


def tracked() -> list[str]:
    """Text files that git tracks or would track; in an unpacked archive, all of them."""
    if (ROOT / ".git").exists():
        listed = subprocess.run(
            ["git", "ls-files", "--cached", "--others", "--exclude-standard", "-z"],
            cwd=ROOT,
            check=True,
            capture_output=True,
            text=True,
        ).stdout.split("\0")
    else:
        paths = (path.relative_to(ROOT) for path in ROOT.rglob("*"))
        listed = [path.as_posix() for path in paths if path.parts[0] not in NOT_OURS]
    names = {name for name in listed if name.endswith(SUFFIXES)}
    return sorted(name for name in names - EXEMPT if (ROOT / name).is_file())


FILES = tracked()


def found(text: str) -> list[str]:
    """One line per phrase: where it is, what it is, what to write instead."""
    lines = []
    for pattern, better in BETTER.items():
        loose = pattern.replace(" ", r"[\s#*]+")  # a phrase may break over two lines
        for match in re.finditer(loose, text, re.IGNORECASE):
            line = text.count("\n", 0, match.start()) + 1
            lines.append(f"line {line}: {match.group()!r}: write {better!r}")
    return lines


def test_many_files_are_checked():
    assert len(FILES) >= FEWEST_FILES


@pytest.mark.parametrize("name", FILES)
def test_no_phrase_sounds_translated(name):
    assert found((ROOT / name).read_text("utf-8")) == []


@pytest.mark.parametrize(
    "text",
    [
        "starts it anew",
        "the file stands\n    # there twice",
        "Predicting nothing scores 0.78",
        "a network of its own",
        "resumes where it stopped and goes on",
        "the drawn chests",
        "to hand it in: kaggle",
    ],
)
def test_a_phrase_is_found(text):
    assert len(found(text)) == 1


@pytest.mark.parametrize(
    "text",
    ["flex-shrink: 0", "its own folder", "so that many images", "Enlarge", "one of its own files"],
)
def test_plain_english_passes(text):
    assert found(text) == []
