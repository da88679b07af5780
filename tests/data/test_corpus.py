"""Stage 00 over everything odd at once: pydicom's own files, damaged real ones with names in them, and bombs."""

import os
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pandas as pd
import pydicom
import pytest

from benchmarks import processes
from pneumothorax import png
from pneumothorax.pipeline import artifacts
from tests.helpers import bombs
from tests.helpers.stages import ROOT, write_lines

MIB = 1 << 20
DAMAGED = 2000
WORDS = (b"Planted^Person", b"planted-id-4711", b"Planted Hospital")
CODES = {
    *(
        "NOT_DICOM",
        "TRUNCATED",
        "NO_PIXELS",
        "BAD_HEADER",
        "MULTI_FRAME",
        "UNSUPPORTED_SYNTAX",
        "TOO_LARGE",
    ),
    *("BAD_ID", "DUPLICATE_ID", "NOT_A_FILE", "IO", "SIZE_MISMATCH", "UNLABELLED"),
}


def planted(path, folder, number):
    """A copy of a real file, as bytes, with the name, id and hospital of a person in it."""
    dataset = pydicom.dcmread(path)
    dataset.PatientName, dataset.PatientID, dataset.InstitutionName = (
        word.decode() for word in WORDS
    )
    dataset.save_as(folder / f"whole-{number}.dcm")
    return (folder / f"whole-{number}.dcm").read_bytes()


def elements(data):
    """[(position, size of the length field)] of the data set's explicit VR elements before the pixels."""
    at, found = (
        data.index(b"\x08\x00\x05\x00")
        if b"\x08\x00\x05\x00" in data
        else data.index(b"\x08\x00\x16\x00"),
        [],
    )
    while at < len(data) - 12 and data[at : at + 4] != b"\xe0\x7f\x10\x00":
        wide = data[at + 4 : at + 6] in (b"OB", b"OW", b"SQ", b"UN", b"UT")
        found.append((at, 4 if wide else 2))
        start = at + (12 if wide else 8)
        length = int.from_bytes(data[at + 8 : at + 12] if wide else data[at + 6 : at + 8], "little")
        at = start + length
    return found


def damaged(data, rng):
    """The file, cut, with flipped bytes, with two tags exchanged, or with a length that lies."""
    data = bytearray(data)
    kind = rng.integers(4)
    if kind == 0:
        return bytes(data[: rng.integers(len(data))])
    if kind == 1:
        end = len(data) if rng.random() < 0.5 else min(2000, len(data))
        for at in rng.integers(0, end, rng.integers(1, 20)):
            data[at] = rng.integers(256)
        return bytes(data)
    places = elements(data)
    if kind == 2:
        (one, _), (other, _) = (places[at] for at in rng.integers(0, len(places), 2))
        data[one : one + 4], data[other : other + 4] = data[other : other + 4], data[one : one + 4]
        return bytes(data)
    at, size = places[rng.integers(len(places))]
    start = at + (8 if size == 4 else 6)
    data[start : start + size] = rng.integers(0, 256, size, dtype=np.uint8).tobytes()
    return bytes(data)


def peak_memory(process):
    """Run to its end; the most bytes that any process of it has had."""
    peaks: dict[int, int] = {}
    while process.poll() is None:
        for pid, size in processes.highest_resident_sizes(process.pid).items():
            peaks[pid] = max(peaks.get(pid, 0), size)
        time.sleep(0.1)
    return max(peaks.values())


@pytest.mark.skipif(not Path("/proc").is_dir(), reason="reads the memory of processes from /proc")
def test_every_file_of_a_corpus_is_used_or_rejected_and_nothing_leaks(real_data, tmp_path):
    folder, output = tmp_path / "in", tmp_path / "work" / "out"
    folder.mkdir()
    real = sorted((real_data / "siim").rglob("*.dcm"))[::3]
    wholes = [planted(path, folder, number) for number, path in enumerate(real)]
    rng = np.random.default_rng(0)
    for number in range(DAMAGED):
        (folder / f"damaged-{number}.dcm").write_bytes(damaged(wholes[number % len(wholes)], rng))
    bundled = sorted((Path(pydicom.__file__).parent / "data" / "test_files").rglob("*.dcm"))
    for number, path in enumerate(bundled):
        (folder / f"bundled-{number}.dcm").write_bytes(path.read_bytes())
    (folder / "bombs").mkdir()
    bomb_names = {path.name for path in bombs.all_in(folder / "bombs")}
    files = sorted(folder.rglob("*.dcm"))
    write_lines(
        folder / "train-rle.csv", ["ImageId,EncodedPixels", *(f"{path.stem},-1" for path in files)]
    )

    command = [
        sys.executable,
        "00_prepare_data.py",
        "--input",
        folder,
        "--output",
        output,
        "--size",
        "64",
    ]
    command += ["--max-bad", "100%", "--allow-missing", "--workers", "2"]
    with open(tmp_path / "log", "wb") as log:
        process = subprocess.Popen(
            [*map(str, command)], cwd=ROOT, stdout=log, stderr=log, env=os.environ
        )
        memory = peak_memory(process)
    printed = (tmp_path / "log").read_bytes()
    assert process.returncode == 0, printed[-3000:]
    assert memory < 1024 * MIB

    manifest = artifacts.read_table(output, artifacts.MANIFEST)
    rejected = pd.read_csv(output / artifacts.REJECTED.path, dtype=str, keep_default_na=False)
    sources = [*manifest["source"], *rejected["source"]]
    assert sorted(sources) == sorted(path.relative_to(folder).as_posix() for path in files)
    assert set(rejected["code"]) <= CODES
    assert bomb_names <= {Path(source).name for source in rejected["source"]}
    used = manifest.set_index("source")
    assert sum(source.startswith("whole") for source in used.index) == len(wholes)
    assert 0 < sum(source.startswith("damaged") for source in used.index) < DAMAGED
    for row in manifest.itertuples():
        image = png.read(output / artifacts.Cache(64).image(row.image_id))
        assert image.shape == (64, 64)
        assert image.dtype == np.uint8
        assert 0 < row.height * row.width <= 64_000_000

    assert [path.name for path in (tmp_path / "work").iterdir()] == ["out"]
    inside = [path for path in output.rglob("*") if path.is_file()]
    assert all(path.resolve().is_relative_to(output.resolve()) for path in inside)
    for name, written in [("log", printed), *((path.name, path.read_bytes()) for path in inside)]:
        assert not [word for word in WORDS if word in written], name
