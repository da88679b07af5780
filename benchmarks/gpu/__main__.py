"""Check what docs/gpu.md claims, on this machine's GPU, and time every measure, in 9 minutes.

Makes phantoms, prepares them with stages 00 and 01, and runs the parts of stages 02 and 03
on them: the real ones, at 512 x 512. Prints each finding as it comes, then both tables in
Markdown. A check that fails is reported, and the others continue. The exit code is 1 if a
claim fails, or if the time was not enough to check it.

Without a GPU everything runs at 32 x 32 in a minute. That tests this program: it says
nothing about any card.

    python -m benchmarks.gpu
    python -m benchmarks.gpu --device cuda:1 --minutes 4 --to gpu.md
"""

import argparse
import functools
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import joblib

from benchmarks import timing
from benchmarks.gpu import claims, findings, speeds
from benchmarks.gpu.findings import Finding, Speed
from benchmarks.gpu.material import ON_A_CARD, ON_A_CPU, Material
from pneumothorax.compute import devices, loading, precisions
from pneumothorax.pipeline import stage

MINUTES = 8.5  # the last comparison may take half a minute longer


def main(argv: list[str] | None = None) -> None:
    args = parse_args(argv)
    end = time.monotonic() + 60 * args.minutes
    device = devices.choose(args.device)
    sizes = ON_A_CARD if device.type != "cpu" else ON_A_CPU
    headline = [timing.described("torch", "segmentation_models_pytorch")]
    headline += [precisions.first_line(device, precisions.AUTO), sizes.as_words()]
    if device.type == "cpu":
        headline.append("No GPU: this tests the program at a small size and says nothing of cards.")
    print("\n".join(headline), flush=True)
    with tempfile.TemporaryDirectory() as folder:
        workers = loading.workers_per_process(args.workers)
        material = Material(Path(folder), sizes, device, workers=workers)
        with loading.Workers():
            found = check_claims(material, end)
            rates = measure_speeds(material, end, found)
        found += check_speeds(material, rates)
    table = findings.as_markdown([f"{line}  " for line in headline], found, rates)
    print(f"\n{table}")
    if args.to is not None:
        args.to.write_text(table, encoding="utf-8")
        print(f"wrote {args.to}")
    sys.exit(0 if all(one.is_settled for one in found) else 1)


def parse_args(argv: list[str] | None) -> argparse.Namespace:
    parser = timing.bare_parser(__doc__)
    flag = parser.add_argument
    stage.add_device_flag(parser)
    flag("--minutes", type=float, default=MINUTES, help="for everything (default: %(default)s)")
    workers = joblib.cpu_count()
    flag("--workers", type=int, default=workers, help="that load images (default: %(default)s)")
    flag("--to", type=Path, metavar="FILE", help="also write the tables there, in Markdown")
    return parser.parse_args(argv)


def check_claims(material: Material, end: float) -> list[Finding]:
    """Every claim, as long as there is time."""
    half = precisions.half(material.device) or precisions.FP32
    limit = f"of {claims.CARD_GB} GB"
    looks: dict[str, Callable[[Material], str]] = {
        "every visible device computes": claims.computes,
        "convolutions compute in the precision that is named": claims.computes_in_what_it_says,
        "fp32 is IEEE's, not TF32": claims.fp32_is_ieee,
        "out of memory is recognised": claims.out_of_memory_is_recognised,
        f"fp32 fits a card {limit}": fit(1, precisions.FP32),
        f"twice the batch fits it in {half}": fit(2, half),
        "accumulation_steps: auto fits four times the batch": fit(4, half, "auto"),
        "a training step waits for the device once": claims.waits_once,
        "a training resumes, also in another precision": claims.resumes,
        "a forward pass stays in 16 bits": claims.stays_in_16_bits,
        "one command trains a fold on each card": claims.trains_a_fold_on_each,
    }
    found = []
    for claim, look in looks.items():
        if time.monotonic() > end:
            found.append(findings.said(Finding(claim, findings.NO_TIME, "more --minutes")))
            continue
        found.append(findings.check(claim, functools.partial(look, material)))
    return found


def fit(times: int, precision: str, parts: int | str = 1) -> Callable[[Material], str]:
    return functools.partial(claims.fits, times=times, precision=precision, parts=parts)


def measure_speeds(material: Material, end: float, found: list[Finding]) -> list[Speed]:
    """Every comparison, in equal shares of the time; those that fail or come late go to `found`."""
    rates = []
    waiting = speeds.comparisons(material)
    for number, one in enumerate(waiting):
        claim = f"{one.work} is measured with and without {one.measure}"
        left = end - time.monotonic()
        if left <= 0:
            found.append(findings.said(Finding(claim, findings.NO_TIME, "more --minutes")))
            continue
        # Making networks and warming up takes about as long as measuring.
        seconds = min(material.sizes.comparison_s, left / 2 / (len(waiting) - number))
        try:
            speed = speeds.measure(material, one, seconds=seconds)
        except Exception as error:  # such as too little memory; the others continue
            failed = Finding(claim, findings.FAILED, findings.one_line(error))
            found.append(findings.said(failed))
            continue
        rates.append(speed)
        print(
            f"{speed.work}: {speed.with_it:.1f} img/s with {speed.measure}, "
            f"{speed.without_it:.1f} without, {speed.gain:.2f} times",
            flush=True,
        )
    return rates


def check_speeds(material: Material, rates: list[Speed]) -> list[Finding]:
    """On a card 16 bits must be the faster ones wherever they are the default."""
    usual = precisions.resolve(precisions.AUTO, material.device)
    if material.device.type != "cuda" or usual == precisions.FP32:
        return []

    def look(speed: Speed) -> str:
        return findings.require(speed.gain > 1, f"{speed.gain:.2f} times as fast as fp32")

    return [
        findings.check(f"{one.work} is faster in {usual}", functools.partial(look, one))
        for one in rates
        if one.measure == usual
    ]


if __name__ == "__main__":
    main()
