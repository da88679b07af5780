"""Every odd file at once: pydicom's samples, damaged real DICOM files, bombs; damaged PNGs
and JPEGs.

The real DICOM files carry the planted name, id and hospital of a person.
"""

import io
import subprocess
import sys
from collections import Counter
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pydicom
import pytest
from PIL import Image

from benchmarks import processes
from pneumothorax import dicom, png
from pneumothorax.data import raster
from pneumothorax.data.layouts import mask_images
from pneumothorax.pipeline import artifacts
from tests.helpers import bombs, rasters
from tests.helpers.images import disc, noise
from tests.helpers.stages import ROOT, write_lines

MIB = 1 << 20
DAMAGED = 2000
WORDS = (b"Planted^Person", b"planted-id-4711", b"Planted Hospital")
CODES = set(
    "NOT_DICOM TRUNCATED NO_PIXELS BAD_HEADER MULTI_FRAME UNSUPPORTED_SYNTAX TOO_LARGE BAD_ID "
    "DUPLICATE_ID NOT_A_FILE IO SIZE_MISMATCH UNLABELLED".split()
)
RASTER_CODES = {"NOT_AN_IMAGE", "TRUNCATED", "TOO_LARGE"}
MASK_CODES = RASTER_CODES | {"BAD_MASK", "SIZE_MISMATCH"}


def planted(path, folder, number):
    """Copy a real file with the planted words in it to the folder -> its bytes."""
    dataset = pydicom.dcmread(path)
    name, patient_id, hospital = (word.decode() for word in WORDS)
    dataset.PatientName, dataset.PatientID, dataset.InstitutionName = name, patient_id, hospital
    dataset.save_as(folder / f"whole-{number}.dcm")
    return (folder / f"whole-{number}.dcm").read_bytes()


def elements(data):
    """[(position, bytes of the length field)] of the elements before the pixels."""
    first = b"\x08\x00\x05\x00" if b"\x08\x00\x05\x00" in data else b"\x08\x00\x16\x00"
    at, found = data.index(first), []
    while at < len(data) - 12 and data[at : at + 4] != b"\xe0\x7f\x10\x00":
        wide = data[at + 4 : at + 6] in (b"OB", b"OW", b"SQ", b"UN", b"UT")
        found.append((at, 4 if wide else 2))
        start = at + (12 if wide else 8)
        length = int.from_bytes(data[at + 8 : at + 12] if wide else data[at + 6 : at + 8], "little")
        at = start + length
    return found


def damaged(data, rng):
    """The file cut short, or with flipped bytes, swapped tags or a wrong length."""
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


def write_corpus(real_data, folder):
    """Write the files and a label file that lists all of them -> names of the bombs."""
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
    lines = [f"{path.stem},-1" for path in sorted(folder.rglob("*.dcm"))]
    write_lines(folder / "train-rle.csv", ["ImageId,EncodedPixels", *lines])
    return bomb_names


@dataclass
class Prepared:
    """What stage 00 made of the corpus."""

    folder: Path  # the corpus
    output: Path
    bomb_names: set[str]
    printed: bytes
    peak_bytes: int  # of the process that took most memory

    @property
    def manifest(self):
        return artifacts.read_table(self.output, artifacts.MANIFEST)

    @property
    def rejected(self):
        return artifacts.read_table(self.output, artifacts.REJECTED)


@pytest.fixture(scope="module")
def prepared(real_data, tmp_path_factory):
    if not Path("/proc").is_dir():
        pytest.skip("reads the memory of processes from /proc")
    root = tmp_path_factory.mktemp("corpus")
    folder, output, log_path = root / "in", root / "work" / "out", root / "log"
    bomb_names = write_corpus(real_data, folder)
    command = [sys.executable, "00_prepare_data.py", "--input", folder, "--output", output]
    command += "--size 64 --max-bad 100% --allow-missing --workers 2".split()
    with open(log_path, "wb") as log:
        process = subprocess.Popen([*map(str, command)], cwd=ROOT, stdout=log, stderr=log)
        peak_bytes = processes.peak(process, processes.highest_resident_size)
    printed = log_path.read_bytes()
    assert process.returncode == 0, printed[-3000:]
    return Prepared(folder, output, bomb_names, printed, peak_bytes)


def test_every_file_of_the_corpus_is_used_or_rejected(prepared):
    files = [path.relative_to(prepared.folder) for path in prepared.folder.rglob("*.dcm")]
    assert len(files) > DAMAGED
    sources = [*prepared.manifest["source"], *prepared.rejected["source"]]
    assert sorted(sources) == sorted(path.as_posix() for path in files)
    assert set(prepared.rejected["code"]) <= CODES
    rejected_names = {Path(source).name for source in prepared.rejected["source"]}
    assert prepared.bomb_names
    assert prepared.bomb_names <= rejected_names


def test_the_whole_files_of_the_corpus_are_used_and_some_of_the_damaged_ones(prepared):
    wholes = list(prepared.folder.glob("whole-*.dcm"))
    used = Counter(source.split("-")[0] for source in prepared.manifest["source"])
    assert used["whole"] == len(wholes) > 0
    assert 0 < used["damaged"] < DAMAGED


def test_no_process_needs_a_gigabyte_for_the_corpus(prepared):
    assert 0 < prepared.peak_bytes < 1024 * MIB


def test_every_cached_image_of_the_corpus_is_whole(prepared):
    assert len(prepared.manifest) > 0
    for row in prepared.manifest.itertuples():
        image = png.read(prepared.output / artifacts.Cache(64).image(row.image_id))
        assert image.shape == (64, 64)
        assert image.dtype == np.uint8
        assert 0 < row.height * row.width <= 64_000_000


def test_nothing_of_a_person_in_the_corpus_is_printed_or_written_anywhere(prepared):
    output = prepared.output
    assert [path.name for path in output.parent.iterdir()] == ["out"]
    inside = [path for path in output.rglob("*") if path.is_file()]
    assert all(path.resolve().is_relative_to(output.resolve()) for path in inside)
    written = {"printed": prepared.printed, **{str(path): path.read_bytes() for path in inside}}
    for name, data in written.items():
        assert not [word for word in WORDS if word in data], name


# PNG and JPEG, which carry their own checks


IMAGE, MASK = noise(1, 64)[:48], disc(64, 20, 30, 12)[:48]  # (48, 64)


def saved(image, kind, **options):
    file = io.BytesIO()
    Image.fromarray(image).save(file, kind, **options)
    return file.getvalue()


def whole_images():
    """name -> the bytes of a file in each of the accepted forms."""
    deep = rasters.rows(IMAGE.astype(np.uint16) * 257, 16)
    return {
        "grey.png": saved(IMAGE, "PNG"),
        "deep.png": rasters.encode(IMAGE.shape, deep, bits=16),
        "laced.png": rasters.encode(IMAGE.shape, rasters.interlaced_rows(IMAGE), interlaced=True),
        "plain.jpg": saved(IMAGE, "JPEG", quality=90),
        "progressive.jpg": saved(IMAGE, "JPEG", quality=90, progressive=True),
    }


def whole_masks():
    return {
        "grey.png": saved(MASK * np.uint8(255), "PNG"),
        "bits.png": rasters.encode(MASK.shape, rasters.rows(MASK, 1), bits=1),
        "mask.jpg": saved(MASK * np.uint8(255), "JPEG", quality=95),
    }


def spoiled(data, rng):
    """(the file cut short or with flipped bits, whether it was cut)."""
    if rng.random() < 0.5:
        return data[: rng.integers(len(data))], True
    flipped = bytearray(data)
    for at in rng.integers(0, len(data), rng.integers(1, 10)):
        flipped[at] ^= 1 << int(rng.integers(8))
    return bytes(flipped), False


def results(path, wholes, read, n):
    """[(name, whether it was cut, its array or code)] of n spoiled files."""
    rng = np.random.default_rng(0)
    found = []
    for number in range(n):
        name = list(wholes)[number % len(wholes)]
        data, cut = spoiled(wholes[name], rng)
        (path / name).write_bytes(data)
        try:
            found.append((name, cut, read(path / name)))
        except dicom.Rejected as error:
            found.append((name, cut, error.code))
    return found


def check(found, codes, expected):
    """A cut file is rejected; a PNG that is read is undamaged: its sums are right."""
    read = [(name, cut, result) for name, cut, result in found if not isinstance(result, str)]
    assert {result for _, _, result in found if isinstance(result, str)} <= codes
    assert not any(cut for _, cut, _ in read)
    assert 0 < len(read) < len(found) / 2
    for name, _, array in read:
        assert array.dtype == np.uint8
        assert array.ndim == 2
        assert 0 < array.size <= dicom.MAX_PIXELS
        if name.endswith(".png"):
            np.testing.assert_array_equal(array, expected)


def test_spoiled_png_and_jpeg_images_are_sane_or_rejected(tmp_path):
    found = results(tmp_path, whole_images(), lambda path: raster.read(path).image, 300)
    check(found, RASTER_CODES, IMAGE)


def test_spoiled_mask_images_are_sane_or_rejected(tmp_path):
    def read(path):
        threshold = 128 if path.suffix == ".jpg" else None
        return mask_images.read([path], MASK.shape, threshold=threshold)

    found = results(tmp_path, whole_masks(), read, 200)
    check(found, MASK_CODES, MASK)
    masks = [result for _, _, result in found if not isinstance(result, str)]
    assert all(mask.shape == MASK.shape and mask.max() <= 1 for mask in masks)
