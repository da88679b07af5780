"""The gallery's files: outlines cover their masks, thumbnails and columns match the data."""

import json
import re
import subprocess
import sys
import textwrap

import cv2
import numpy as np
import pandas as pd
import pytest

from pneumothorax import png
from pneumothorax.pipeline import artifacts
from pneumothorax.report import gallery
from tests.helpers import memory, report_samples
from tests.helpers.images import disc
from tests.helpers.report_samples import SIZE, image_id
from tests.helpers.stages import ROOT


@pytest.fixture(scope="module")
def sample(tmp_path_factory):
    return report_samples.sample(tmp_path_factory.mktemp("gallery"))


@pytest.fixture(scope="module")
def written(sample):
    """(paths, the page's folder)."""
    folder = sample.output / "report"
    return write(sample, folder), folder


def write(sample, folder):
    return gallery.write(
        sample.output, folder, sample.runs, sample.manifest, cache_size=SIZE, workers=0
    )


def read(folder):
    """What the script assigns, as JSON."""
    text = (folder / gallery.DATA).read_text("ascii")
    assert text.startswith("window.GALLERY = ")
    assert text.endswith(";\n")
    return json.loads(text.removeprefix("window.GALLERY = ").removesuffix(";\n"))


def draw(path, size=gallery.GRID):
    """Fill an outline by the even-odd rule and stroke it one pixel wide -> (size, size)."""
    parts = []
    for subpath in re.findall(r"M[^M]*z", path):
        start, *steps = re.match(r"M(.*?)(?:l(.*))?z", subpath).groups()
        points = [tuple(map(int, start.split()))]
        numbers = list(map(int, re.findall(r"-?\d+", steps[0] or "")))
        for dx, dy in zip(numbers[::2], numbers[1::2], strict=True):
            points.append((points[-1][0] + dx, points[-1][1] + dy))
        parts.append(np.array(points, dtype=np.int32))
    assert "".join(re.findall(r"M[^M]*z", path)) == path
    canvas = np.zeros((size, size), dtype=np.uint8)
    cv2.fillPoly(canvas, parts, 1)
    cv2.polylines(canvas, parts, True, 1)
    return canvas


def test_the_outline_of_a_rectangle_by_hand():
    mask = np.zeros((512, 512), dtype=np.uint8)
    mask[10:15, 20:31] = (
        1  # rows 10 to 14, columns 20 to 30; drawn from the top left corner down the left side
    )
    assert gallery.outline(mask) == "M20 10l0 4 10 0 0-4z"


def test_an_outline_filled_and_stroked_covers_its_mask():
    mask = disc(512, 200, 300, 80) | disc(512, 400, 100, 7)
    assert (draw(gallery.outline(mask)) != mask).sum() < 0.02 * mask.sum()  # simplified by a pixel


def test_a_hole_stays_a_hole():
    ring = disc(512, 256, 256, 100) - disc(512, 256, 256, 60)
    drawn = draw(gallery.outline(ring))
    assert drawn[256, 256] == 0
    assert (drawn != ring).sum() < 0.03 * ring.sum()


@pytest.mark.parametrize("pixels", [1, 3])
def test_a_mask_of_a_few_pixels_of_a_large_image_is_still_drawn(pixels):
    mask = np.zeros((1024, 1024), dtype=np.uint8)
    mask[500, 700 : 700 + pixels] = 1
    path = gallery.outline(mask)
    assert draw(path)[250, 350] == 1  # half the size


def test_an_empty_mask_has_no_outline():
    assert gallery.outline(np.zeros((64, 64), dtype=np.uint8)) == ""


def test_every_image_has_a_thumbnail_that_looks_like_it(sample, written):
    paths, folder = written
    assert paths == [
        *(f"gallery/{image_id(n)}.jpg" for n in range(report_samples.IMAGES)),
        "gallery.js",
    ]
    for n in range(3):
        shown = cv2.imread(str(folder / "gallery" / f"{image_id(n)}.jpg"), cv2.IMREAD_UNCHANGED)
        image = png.read(sample.output / artifacts.Cache(SIZE).image(image_id(n)))
        assert shown.shape == (256, 256)
        upsampled = cv2.resize(image, (256, 256), interpolation=cv2.INTER_LINEAR).astype(int)
        assert np.abs(upsampled - shown).mean() < 2  # JPEG at 85


def test_the_data_have_the_tables_numbers_and_each_runs_outcome(written):
    columns = read(written[1])
    ids = [image_id(n) for n in range(report_samples.IMAGES)]
    assert columns["images"]["id"] == ids
    assert columns["images"]["fold"] == [n % 3 for n in range(30)]
    assert columns["images"]["true_px"][:6] == [
        400,
        400,
        0,
        0,
        0,
        400,
    ]  # 20 x 20 where there is one
    assert columns["images"]["pixels"] == [64 * 64] * 30
    steady, other = columns["runs"]
    assert [run["name"] for run in columns["runs"]] == ["steady", "other"]
    named = [columns["outcomes"][code] for code in steady["outcome"]]
    assert named[:5] == ["found", "missed", "false positive", "true negative", "true negative"]
    assert columns["outcomes"][other["outcome"][1]] == "found"
    assert steady["dice"] == [report_samples.dice_of(n, "steady") for n in range(30)]
    assert other["predicted_px"][:3] == [400, 400, 0]
    assert steady["predicted_px"][:3] == [400, 0, 200]


def test_outlines_in_the_data_are_those_of_truth_and_prediction(sample, written):
    columns = read(written[1])
    scale = gallery.GRID // SIZE
    for n in (0, 1, 2, 25):
        drawn = [columns["images"]["truth"][n], *(run["outline"][n] for run in columns["runs"])]
        for name, path in zip(("truth", "steady", "other"), drawn, strict=True):
            mask = np.kron(sample.masks[image_id(n), name], np.ones((scale, scale), dtype=np.uint8))
            # A small mask is upsampled bilinearly: its edge may move by half of its pixels.
            assert (draw(path) != mask).sum() <= 0.06 * mask.sum()


def test_the_larger_view_finds_the_cached_image(sample, written):
    folder = written[1]
    large = folder / read(folder)["large"] / f"{image_id(0)}.png"
    assert large.resolve() == (sample.output / artifacts.Cache(SIZE).image(image_id(0))).resolve()


def test_writing_again_gives_the_same_bytes_and_drops_removed_images(sample, tmp_path):
    paths = write(sample, tmp_path)
    first = {path: (tmp_path / path).read_bytes() for path in paths}
    (tmp_path / "gallery" / "gone.jpg").write_bytes(b"old")
    assert write(sample, tmp_path) == paths
    assert {path: (tmp_path / path).read_bytes() for path in paths} == first
    assert not (tmp_path / "gallery" / "gone.jpg").exists()


def test_test_images_without_labels_are_not_in_the_gallery(sample, tmp_path):
    extra = sample.manifest.iloc[:1].assign(image_id="ID_test", split=artifacts.TEST)
    manifest = pd.concat([sample.manifest, extra], ignore_index=True)
    gallery.write(sample.output, tmp_path, sample.runs, manifest, cache_size=SIZE, workers=0)
    assert "ID_test" not in read(tmp_path)["images"]["id"]


def test_labelled_test_images_are_shown_with_their_own_truth_and_no_fold(tmp_path):
    sample = report_samples.with_test_images(report_samples.sample(tmp_path, images=10))
    paths = write(sample, tmp_path / "report")
    assert f"gallery/{report_samples.test_id(9)}.jpg" in paths
    columns = read(tmp_path / "report")
    assert columns["images"]["id"][10:] == [report_samples.test_id(n) for n in range(10)]
    assert columns["images"]["fold"] == [*[n % 3 for n in range(10)], *[-1] * 10]
    steady, other = columns["runs"]
    # Test image 5 has a shift of one column by `steady`, of two by `other`.
    assert (steady["dice"][15], other["dice"][15]) == (0.95, 0.9)
    drawn = [columns["images"]["truth"][15], steady["outline"][15], other["outline"][15]]
    scale = np.ones((gallery.GRID // SIZE,) * 2, dtype=np.uint8)
    for name, path in zip(("truth", "steady", "other"), drawn, strict=True):
        mask = np.kron(sample.masks[report_samples.test_id(5), name], scale)
        assert (draw(path) != mask).sum() <= 0.06 * mask.sum()
    assert columns["images"]["truth"][14] == ""  # test image 4 is negative


@pytest.mark.slow
@pytest.mark.skipif(not memory.STATUS.exists(), reason="reads the memory of a process from /proc")
def test_twelve_thousand_images_of_three_runs_are_written_within_two_gibibytes(tmp_path):
    """In a separate process; its largest worker is counted for each of the two."""
    script = """
        import os, resource, sys, time
        from pathlib import Path
        import numpy as np
        import pandas as pd
        from joblib.externals.loky import get_reusable_executor
        from pneumothorax import png, rle
        from pneumothorax.pipeline import artifacts, atomic
        from pneumothorax.report import gallery
        from tests.helpers import memory

        output, n = Path(sys.argv[1]), 12_000
        rng = np.random.default_rng(0)
        first = output / artifacts.Cache(512).image("0")
        atomic.write_bytes(first, png.encode(rng.integers(0, 255, (512, 512), dtype=np.uint8)))
        for number in range(1, n):
            os.link(first, first.with_name(f"{number}.png"))
        rows, columns = np.ogrid[:1024, :1024]
        texts = []
        for number in range(40):
            height, width = rng.integers(10, 300), rng.integers(10, 60)
            mask = ((rows - 400) / height) ** 2 + ((columns - 300 - 9 * number) / width) ** 2 <= 1
            texts.append(rle.encode(mask.astype(np.uint8)))
        ids = [str(number) for number in range(n)]
        shape = {"height": 1024, "width": 1024, "view": "PA", "sex": "F"}
        manifest = pd.DataFrame({"image_id": ids, "split": "train", **shape})
        positive = [number for number in range(n) if number % 4 == 0]
        rows = [texts[k % 40] for k in positive]
        labels = pd.DataFrame({"image_id": [str(k) for k in positive], "rle": rows})
        artifacts.write_table(output, artifacts.LABELS, labels)
        frame = {"image_id": ids, "fold": [number % 5 for number in range(n)]}
        frame["true_px"] = [1000 * (number % 4 == 0) for number in range(n)]
        frame["predicted_px"] = frame["true_px"]
        frame["dice"] = rng.random(n)
        frame["rle"] = [texts[k % 39] if k % 4 == 0 else rle.EMPTY for k in range(n)]
        runs = {name: pd.DataFrame(frame) for name in ("a", "b", "c")}
        started = time.monotonic()
        gallery.write(output, output / "report", runs, manifest, cache_size=512, workers=2)
        seconds = time.monotonic() - started
        get_reusable_executor().shutdown(wait=True)  # only ended processes are counted
        worker_mib = resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss / 1024
        size = (output / "report" / "gallery.js").stat().st_size
        print(seconds, memory.peak_mib() + 2 * worker_mib, size)
    """
    done = subprocess.run(
        [sys.executable, "-c", textwrap.dedent(script), str(tmp_path)],
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr[-3000:]
    seconds, mebibytes, size = map(float, done.stdout.split())
    print(f"{seconds:.0f} s, {mebibytes:.0f} MiB, gallery.js {size / 1e6:.1f} MB")
    assert mebibytes < 2048
    assert size < 8e6
