"""The table of a recipe's settings: rows trained by the stages, differences with intervals."""

import shutil

import pytest

from benchmarks import recipe
from pneumothorax.pipeline import artifacts


@pytest.fixture
def output(folded, tmp_path):
    """After stage 01: 24 images of 64 x 64, 12 positive, two folds; the test may change it."""
    return shutil.copytree(folded, tmp_path / "output")


@pytest.mark.slow
def test_a_row_differs_from_the_first_in_its_settings_alone_and_is_compared_with_it(
    output, config, capsys
):
    flags = ["--output", output, "--config", config, "--set", "epochs=1", "--name", "tried"]
    flags += ["--at-once", 2]
    recipe.main([str(flag) for flag in [*flags, "--rows", "loss combo"]])
    header, _, first, row = capsys.readouterr().out.splitlines()[-4:]
    assert header.startswith("| setting | SIIM Dice | above all-empty |")

    runs = [recipe.run_name("tried", name, 42) for name in (recipe.FIRST, "loss combo")]
    settings = [(output / artifacts.Run(run).config).read_text().splitlines() for run in runs]
    changed = set(settings[0]) ^ set(settings[1])
    assert {line.partition(":")[0] for line in changed} == {"loss"}

    scores = [
        artifacts.read_table(output, artifacts.Submission(run).cross_validation).set_index("row")
        for run in runs
    ]
    dice = [table.at["all", "siim_dice"] for table in scores]
    all_empty = scores[0].at[artifacts.ALL_EMPTY, "siim_dice"]
    assert first.startswith(f"| as configured | {dice[0]:.4f} | {dice[0] - all_empty:+.4f} (")
    assert f"| loss combo | {dice[1]:.4f} | {dice[1] - all_empty:+.4f} (" in row
    assert f" | {dice[1] - dice[0]:+.4f} (" in row


def test_unknown_rows_are_named_before_anything_is_trained(output, config, capsys):
    with pytest.raises(SystemExit):
        recipe.main(["--output", str(output), "--config", str(config), "--rows", "no such row"])
    assert "no row 'no such row'; rows: as configured" in capsys.readouterr().err


def test_every_row_can_be_chosen():
    assert recipe.names(",".join(recipe.ROWS)) == list(recipe.ROWS)
