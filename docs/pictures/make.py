"""Draw the README's pictures from the output of the demo (`./demo.sh`).

Writes  prediction.png   a radiograph, its true mask and the out-of-fold prediction
        report.png       the top of the report page; needs Chromium

The radiograph is the positive one with the median Dice among those that were found.

    python -m docs.pictures.make --output output --to docs/pictures
"""

import argparse
import shutil
import subprocess
import tempfile
from pathlib import Path

from pneumothorax import plotting
from pneumothorax.data import cache
from pneumothorax.errors import BadInput
from pneumothorax.pipeline import artifacts, atomic, stage
from pneumothorax.report import paper_figures

MAX_BYTES = 300_000
WINDOW = (1400, 900)
BROWSERS = ("chromium", "chromium-browser", "google-chrome")
FLAGS = (
    "--headless --no-sandbox --disable-gpu --disable-quic --no-first-run --hide-scrollbars "
    "--disable-background-networking --disable-component-update --disable-sync"
).split()


def parse_args(argv: list[str] | None = None) -> argparse.Namespace:
    parser = stage.manual(__doc__)
    flag = parser.add_argument
    flag("--output", type=Path, default=Path("output"), help="output of the demo (%(default)s)")
    flag("--to", type=Path, default=Path("docs/pictures"), help="folder to write to (%(default)s)")
    return parser.parse_args(argv)


def main(argv: list[str] | None = None) -> None:
    args = parse_args(argv)
    for name, picture in (
        ("prediction.png", prediction(args.output)),
        ("report.png", screenshot(args.output / artifacts.REPORT_PAGE)),
    ):
        if len(picture) > MAX_BYTES:
            raise BadInput(f"{name} would have {len(picture)} bytes, more than {MAX_BYTES}")
        atomic.write_bytes(args.to / name, picture)
        print(f"wrote {args.to / name}, {len(picture) / 1000:.0f} kB")


def prediction(output: Path) -> bytes:
    """The first submission's prediction as a PNG."""
    names = artifacts.submission_names(output)
    table = artifacts.read_table(output, artifacts.Submission(names[0]).out_of_fold)
    found = table[(table["true_px"] > 0) & (table["predicted_px"] > 0)].sort_values("dice")
    if found.empty:
        raise BadInput(f"{names[0]} found no pneumothorax: run ./demo.sh first")
    image_id = str(found["image_id"].iloc[len(found) // 2])
    manifest = artifacts.read_table(output, artifacts.MANIFEST).set_index("image_id")
    shape = int(manifest.at[image_id, "height"]), int(manifest.at[image_id, "width"])
    compared = paper_figures.read_compared(
        output, cache.size(output), image_id, shape, {"prediction": table}
    )
    return plotting.rendered(paper_figures.comparison([compared]), "png", dpi=120)


def screenshot(page: Path) -> bytes:
    """The top of the page as a PNG of WINDOW pixels."""
    if not page.is_file():
        raise BadInput(f"{page} does not exist: run 05_report.py first")
    browser = next((path for name in BROWSERS if (path := shutil.which(name))), None)
    if browser is None:
        raise BadInput("no Chromium found: apt-get install chromium")
    with tempfile.TemporaryDirectory(ignore_cleanup_errors=True) as folder:
        picture = Path(folder) / "page.png"
        size = ",".join(map(str, WINDOW))
        command = [
            browser,
            *FLAGS,
            f"--user-data-dir={folder}/profile",
            f"--window-size={size}",
            f"--screenshot={picture}",
            page.resolve().as_uri(),
        ]
        subprocess.run(command, check=True, capture_output=True, timeout=120)  # noqa: S603
        return picture.read_bytes()


if __name__ == "__main__":
    stage.run(main)
