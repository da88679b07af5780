"""benchmarks.gpu on a CPU: every check runs, and one that fails does not hide the others."""

import math
from types import SimpleNamespace

import pytest
import torch

from benchmarks.gpu import __main__ as gpu
from benchmarks.gpu import claims, findings, speeds
from benchmarks.gpu.findings import Speed
from benchmarks.gpu.material import ON_A_CPU
from pneumothorax.compute import precisions

pytestmark = pytest.mark.usefixtures("without_pictures")
CPU = torch.device("cpu")
LONG_ENOUGH = ["--device", "cpu", "--workers", "0", "--minutes", "60"]
# Of a CPU there is nothing to say about these.
ABOUT_CARDS = 6


def run(*flags):
    """The exit code of the benchmark."""
    with pytest.raises(SystemExit) as left:
        gpu.main([str(flag) for flag in [*LONG_ENOUGH, *flags]])
    return left.value.code


def rows(table):
    """[[cell, ...], ...] of both tables, without headings."""
    lines = [line.strip("| ").split(" | ") for line in table.splitlines() if line.startswith("| ")]
    return [cells for cells in lines if cells[0] not in ("---", "claim", "work")]


def test_every_claim_and_every_measure_is_checked_on_a_cpu_which_proves_nothing_of_cards(tmp_path):
    assert run("--to", tmp_path / "table.md") == 0
    table = (tmp_path / "table.md").read_text("utf-8")
    assert "says nothing of cards" in table
    found = [cells for cells in rows(table) if len(cells) == 3]
    outcomes = [outcome for _, outcome, _ in found]
    assert set(outcomes) == {findings.HELD, findings.NOT_CHECKED}
    assert outcomes.count(findings.NOT_CHECKED) == ABOUT_CARDS
    assert "bf16 is bf16" in table
    measured = {(work, measure.split(",")[0]) for work, measure, *_ in rows(table)[len(found) :]}
    on_a_cpu = {
        "training step": {"bf16", "channels_last", "foreach copies", "one part"},
        "validation": {"bf16", "channels_last", "threads beside the device"},
        "prediction, mirrored": {"bf16", "channels_last", "threads beside the device"},
    }
    assert measured == {(work, one) for work, measures in on_a_cpu.items() for one in measures}
    assert all(float(rate) > 0 for cells in rows(table)[len(found) :] for rate in cells[2:])


@pytest.fixture
def without_work(monkeypatch):
    """No phantoms are made and nothing is timed."""
    monkeypatch.setattr(gpu, "Material", lambda *_, **__: SimpleNamespace(device=CPU))
    monkeypatch.setattr(speeds, "comparisons", lambda _: [])


def test_a_failing_check_is_reported_and_the_others_continue(without_work, monkeypatch, capsys):
    def broken():
        raise RuntimeError("CUDA error: no kernel image is available\nand more")

    found = [
        findings.check("one", broken),
        findings.check("two", lambda: findings.require(False, "0.50 times")),
        findings.check("three", lambda: "fine"),
    ]
    monkeypatch.setattr(gpu, "check_claims", lambda *_: found)
    assert run() == 1
    printed = capsys.readouterr().out
    assert "| one | FAILED | RuntimeError: CUDA error: no kernel image is available" in printed
    assert "| two | FAILED | 0.50 times |" in printed
    assert "| three | held | fine |" in printed


def test_what_there_was_no_time_to_check_did_not_hold(without_work, capsys):
    assert run("--minutes", 0) == 1
    assert "fp32 is IEEE's, not TF32 | NO TIME | more --minutes" in capsys.readouterr().out


def test_a_comparison_that_fails_does_not_hide_the_others(monkeypatch):
    def too_large(material, way):
        raise torch.OutOfMemoryError("CUDA out of memory")

    works = [
        speeds.Comparison("step", name, make, speeds.USUAL, speeds.USUAL)
        for name, make in (("first", too_large), ("second", lambda material, way: lambda: 3))
    ]
    monkeypatch.setattr(speeds, "comparisons", lambda _: works)
    found = []
    material = SimpleNamespace(device=CPU, sizes=ON_A_CPU)
    assert [one.measure for one in gpu.measure_speeds(material, math.inf, found)] == ["second"]
    assert [one.outcome for one in found] == [findings.FAILED]


@pytest.mark.parametrize(("gain", "outcome"), [(1.5, findings.HELD), (0.9, findings.FAILED)])
def test_on_a_card_16_bits_must_be_faster_where_they_are_the_default(monkeypatch, gain, outcome):
    monkeypatch.setattr(precisions, "resolve", lambda *_: "fp16")
    material = SimpleNamespace(device=torch.device("cuda"))
    rates = [Speed("training step", "fp16", gain, 1.0), Speed("training step", "other", 0.5, 1.0)]
    assert [one.outcome for one in gpu.check_speeds(material, rates)] == [outcome]


def test_gain_is_the_ratio_of_the_rates():
    assert Speed("validation", "threads", with_it=30.0, without_it=20.0).gain == 1.5


def test_a_state_differs_in_one_bit():
    weights = torch.ones(3)
    changed = torch.nextafter(weights, torch.zeros(3))
    assert claims.all_equal([weights, 2], [weights.clone(), 2])
    assert not claims.all_equal([weights, 2], [changed, 2])
    assert not claims.all_equal([weights, 2], [weights, 3])
    assert not claims.all_equal([weights, 2], [weights])
