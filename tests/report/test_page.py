"""The report's page: every number in its place, and nothing loaded from elsewhere."""

import math
import re
from dataclasses import replace
from html.parser import HTMLParser

import pandas as pd
import pytest

from pneumothorax import metrics
from pneumothorax.pipeline import artifacts
from pneumothorax.report import page, wording
from pneumothorax.report.runs import Cost
from pneumothorax.report.statistics import Evaluated
from pneumothorax.report.tables import LABELS
from tests.helpers import report_samples
from tests.helpers.report_samples import EVALUATED


class Tables(HTMLParser):
    """The cells of every table as text, by its region's label: {label: [[cell, ...], ...]}."""

    def __init__(self, text):
        super().__init__()
        self.found, self.label, self.cell = {}, None, None
        self.feed(text)

    def handle_starttag(self, tag, attributes):
        given = dict(attributes)
        if given.get("role") == "region":
            self.label = given["aria-label"]
            self.found[self.label] = []
        elif tag == "tr":
            self.found[self.label].append([])
        elif tag in ("th", "td"):
            self.cell = ""
        elif tag == "span" and self.cell is not None:
            self.cell += " "

    def handle_endtag(self, tag):
        if tag in ("th", "td"):
            self.found[self.label][-1].append(" ".join(self.cell.split()))
            self.cell = None

    def handle_data(self, data):
        if self.cell is not None:
            self.cell += data


STARTS = {"ica": 0.8, "unet": 0.7}
COST = Cost(24436369, 31_200_000_000, 11520, 8090, "a card")


def sample_runs():
    return [
        report_samples.run("ica", STARTS["ica"], cost=COST),
        report_samples.run("unet", STARTS["unet"]),
    ]


def rendered(*, evaluated=EVALUATED, runs=None, statistics=None, figures=None, with_images=True):
    runs = runs or sample_runs()
    statistics = statistics or report_samples.statistics(
        {run.name: STARTS.get(run.name, 0.8) for run in runs}
    )
    return page.render(evaluated, runs, statistics, figures or {}, with_images=with_images)


def tables(**changes):
    return Tables(rendered(**changes)).found


def row(table, name):
    return next(cells for cells in table if cells[0] == name)


def test_table_1_has_each_runs_scores_of_all_images_in_percent_by_averaging():
    table = tables()["Networks compared"]
    assert table[1] == [
        "SIIM Dice",
        "precision",
        "recall",
        "IoU",
        "Dice",
        "precision",
        "recall",
        "IoU",
    ]
    assert table[0][1:3] == ["mean over images", "pooled over all pixels"]
    # report_samples.run: `all` is the fifth row (+0.0004), a column's score its place / 100 higher.
    # In artifacts.SCORE_COLUMNS siim_dice is 0, pooled_* are 2 to 5, image_* 6 to 8.
    assert row(table, "ica")[1:9] == [
        "80.04 75.00 to 85.00",
        "86.04",
        "87.04",
        "88.04",
        "82.04",
        "83.04",
        "84.04",
        "85.04",
    ]


def test_table_1_begins_with_the_baseline_and_ends_with_the_papers_rows():
    table = tables()["Networks compared"]
    assert [cells[0] for cells in table[2:]] == [
        "all-empty baseline",
        "ica",
        "unet",
        "reported in the paper, averaging not stated",
        "U-Net",
        "CheXLocNet",
        "AlbuNet",
        "ICA-ResUNet",
    ]
    assert (
        row(table, "all-empty baseline")[1] == "60.06"
    )  # its SIIM Dice in report_samples.run: 0.6 + 6 / 10000
    assert row(table, "ICA-ResUNet")[1:5] == ["85.67", "92.42", "87.25", "81.37"]


def test_costs_have_units_and_unknown_ones_are_a_dash():
    table = tables()["Networks compared"]
    assert row(table, "ica")[9:] == [
        "24.4 M",
        "31.2 G",
        "3 h 12 min",
        "7.9 GiB",
    ]  # 11520 s, 8090 MiB
    assert row(table, "unet")[9:] == ["–"] * 4


def test_a_runs_table_has_baseline_folds_mean_deviation_all_images_and_interval_in_order():
    table = tables()["Cross-validation of ica"]
    assert [cells[0] for cells in table[1:]] == [
        "all-empty baseline",
        "fold 0",
        "fold 1",
        "mean of folds",
        "standard deviation",
        "all images",
        "95 % interval",
        "thresholds for test images",
    ]
    # images, positives, SIIM Dice, all empty, naive
    assert row(table, "fold 1")[1:6] == ["15", "6", "0.8001", "0.6008", "0.8201"]
    assert row(table, "all images")[1:6] == ["30", "12", "0.8004", "0.6006", "0.8204"]
    assert row(table, "95 % interval")[3] == "0.7500 to 0.8500"
    assert row(table, "fold 0")[-6:] == ["0.7", "1200", "0.35", "250", "filled", "0.1"]
    assert row(table, "thresholds for test images")[-6:] == [
        "0.7",
        "1200",
        "0.35",
        "250",
        "filled",
        "0.1",
    ]
    assert len({len(cells) for cells in table}) == 1


def test_nested_and_naive_thresholds_are_side_by_side():
    assert tables()["Nested and naive thresholds"][1:] == [
        ["ica", "0.8004", "0.8204", "+0.0200"],
        ["unet", "0.7004", "0.7204", "+0.0200"],
    ]


def test_a_blend_has_a_table_of_weights_and_a_single_run_has_none():
    weights = {"fold 0": {"ica": 0.25, "unet": 0.75}, artifacts.FINAL: {"ica": 1.0, "unet": 0.0}}
    found = tables(
        runs=[report_samples.run("mixed", 0.8, weights=weights), report_samples.run("unet", 0.7)]
    )
    assert found["Weights of mixed"] == [
        *(["run", "fold 0", "test images"], ["ica", "0.25", "1"], ["unet", "0.75", "0"]),
    ]
    assert "Weights of unet" not in found


def test_post_processing_steps_are_shown_by_run():
    steps = [("one threshold", 0.71, 0.72), ("triplet", 0.81234, 0.83)]
    frame = pd.DataFrame(steps, columns=["step", "siim_dice", "naive_siim_dice"])
    found = tables(
        runs=[report_samples.run("ica", 0.8, steps=frame), report_samples.run("unet", 0.7)]
    )
    assert found["Post-processing, step by step"][1:] == [
        *(["ica", "one threshold", "0.7100", "0.7200"], ["triplet", "0.8123", "0.8300"]),
    ]


def test_differences_between_runs_have_their_interval_and_both_p_values():
    assert tables()["Differences between runs"][1] == [
        "ica",
        "unet",
        "SIIM Dice",
        "−0.0123",
        "−0.0300 to +0.0040",
        "< 0.001",
        "0.040",
    ]


def test_each_level_has_a_row_per_run():
    found = tables()
    assert {"Scores by mask size", "Scores by view", "Scores by sex"} <= set(found)
    first, second = found["Scores by mask size"][1:3]
    assert first[:7] == ["negative", "10", "4", "0.6000", "ica", "0.8000", "0.7000 to 0.9000"]
    assert second == [
        "unet",
        "0.7000",
        "0.6000 to 0.8000",
        "0.5000",
        "0.4000 to 0.6000",
        "0.7500",
        "–",
    ]


def with_test_images(**changes):
    """`ica` and `unet` with scores of 1,372 labelled test images."""
    runs = [
        report_samples.run(name, start, test=report_samples.test_results(start))
        for name, start in STARTS.items()
    ]
    test = report_samples.test_statistics("ica", "unet", **changes)
    return {"runs": runs, "statistics": report_samples.statistics(STARTS, test=test)}


def test_table_1_has_the_test_images_and_those_of_unseen_patients_below_cross_validation():
    table = tables(**with_test_images())["Networks compared"]
    assert [cells[:2] for cells in table[2:14]] == [
        ["cross-validation", "30 images, 12 with pneumothorax"],
        ["all-empty baseline", "60.06"],
        ["ica", "80.04 75.00 to 85.00"],
        ["unet", "70.04 65.00 to 75.00"],
        ["test images", "1,372 images, 290 with pneumothorax"],
        # report_samples.test_results: the baseline's rows are the third and the fourth
        ["all-empty baseline", "50.20 45.20 to 55.20"],
        ["ica", "80.00 75.00 to 85.00"],
        ["unet", "70.00 65.00 to 75.00"],
        ["test images, unseen patients", "488 images, 101 with pneumothorax"],
        ["all-empty baseline", "50.30 45.30 to 55.30"],
        ["ica", "80.10 75.10 to 85.10"],
        ["unet", "70.10 65.10 to 75.10"],
    ]
    # image_* are columns 6 to 8, pooled_* 2 to 5; costs are in the rows of cross-validation
    assert table[8][2:] == ["86.00", "87.00", "88.00", "82.00", "83.00", "84.00", "85.00", ""]


def test_every_test_score_has_its_interval_for_all_and_for_unseen_patients():
    table = tables(**with_test_images())["Test scores"]
    assert table[0] == ["run", "patients", "images", "positives", *LABELS.values()]
    assert [cells[:5] for cells in table[1::2]] == [
        ["all-empty baseline", "all", "1,372", "290", "0.5020 0.4520 to 0.5520"],
        ["ica", "all", "1,372", "290", "0.8000 0.7500 to 0.8500"],
        ["unet", "all", "1,372", "290", "0.7000 0.6500 to 0.7500"],
    ]
    ppv = 0.801 + 0.12  # the last of 13 scores, in the second row
    assert table[4][:3] == ["unseen", "488", "101"]
    assert table[4][-1] == f"{ppv:.4f} {ppv - 0.05:.4f} to {ppv + 0.05:.4f}"


def test_thresholds_fitted_on_the_test_labels_are_beside_those_of_the_submission():
    found = with_test_images()
    assert tables(**found)["Thresholds fitted on the test labels"][1:] == [
        ["ica", "0.8004", "0.8000", "0.8040", "+0.0040"],  # claimed: the fifth row
        ["unet", "0.7004", "0.7000", "0.7040", "+0.0040"],
    ]
    assert "higher than any submission could expect" in rendered(**found)


def test_differences_on_the_test_images_have_a_table_of_their_own():
    found = tables(**with_test_images())
    assert found["Differences on the test images"][1][:4] == ["ica", "unet", "SIIM Dice", "+0.0456"]
    assert found["Differences between runs"][1][3] == "−0.0123"


def test_the_page_says_whose_test_images_were_scored():
    caution = "Only 9 of 30 test images are positive"
    text = rendered(**with_test_images(caution=caution, unknown=7))
    section = " ".join(text[text.index('id="test"') : text.index('id="differences"')].split())
    for part in (
        "1,372 labelled test images of 1,000 patients",
        "488 of the test images are theirs",
        "The patients of 884 test images are in training, too",
        "The patients of 7 test images are unknown",
        f'<p class="caution">{caution}</p>',
    ):
        assert part in section
    top = text[text.index("<header>") : text.index("</header>")]
    assert "cross-validation and test images" in top
    assert "290 with pneumothorax" in top
    none = rendered(**with_test_images(in_training=0))
    for part in ("are in training, too", "are unknown"):
        assert part not in none


def test_an_empty_group_of_unseen_patients_has_dashes():
    found = with_test_images(unseen=0)
    for run in found["runs"]:
        scores = run.test.table.set_index("row")
        unseen = scores.index.str.contains("unseen")
        scores.loc[unseen, ["images", "positives"]] = 0
        scores.loc[unseen, scores.columns[2:]] = math.nan
        run.test.table[scores.columns] = scores.to_numpy()
    table = tables(**found)["Networks compared"]
    assert table[10] == ["test images, unseen patients", "0 images, 0 with pneumothorax"]
    assert table[12] == ["ica", *["–"] * 8, ""]


def test_without_labelled_test_images_the_page_does_not_mention_any():
    text = rendered()
    for part in ('id="test"', 'href="#test"', 'class="block"', "labelled test images", "unseen"):
        assert part not in text


def test_the_header_says_what_was_evaluated():
    caution = "Only 12 of 30 images are positive"
    evaluated = Evaluated(12047, 2669, 6171, 5, "patients from a file", (caution,))
    text = rendered(evaluated=evaluated)
    top = text[text.index("<header>") : text.index("</header>")]
    for part in ("12,047", "2,669", "22.2", "6,171", "patients from a file", caution):
        assert part in top
    assert "phantoms" not in top
    assert "phantoms" in rendered(evaluated=Evaluated(6, 3, 3, 2, "by tag", phantoms=True))


def test_every_score_is_labelled_and_defined():
    assert set(LABELS) == set(metrics.DEFINITIONS) == set(artifacts.SCORE_COLUMNS)
    text = rendered()
    for definition in metrics.DEFINITIONS.values():
        assert f"<dd>{definition}</dd>" in text


def test_names_from_data_are_escaped():
    hostile = '<script>alert("1")</script>'
    runs = [report_samples.run(hostile, 0.8, test=report_samples.test_results(0.8))]
    test = report_samples.test_statistics(hostile, hostile, caution=hostile)
    statistics = report_samples.statistics({hostile: 0.8}, test=test)
    statistics = replace(statistics, differences=report_samples.differences(hostile, hostile))
    figure = page.Figure(hostile, hostile, f"{hostile}.png", hostile, f"{hostile}.png")
    text = rendered(runs=runs, statistics=statistics, figures={hostile: [figure]})
    assert "<script>alert" not in text
    assert "&lt;script&gt;alert(&#34;1&#34;)" in text


def test_figures_have_a_picture_for_dark_screens_where_there_is_one():
    figures = {
        "Curves": [
            page.Figure("ROC", "of two runs", "figures/roc.png", "rising", "figures/roc-dark.png")
        ],
        "Figures of the paper": [
            page.Figure("Sample", "of the data", "figures/a b.png", "a radiograph")
        ],
        "None": [],
    }
    text = rendered(figures=figures)
    assert '<source srcset="figures/roc-dark.png" media="(prefers-color-scheme: dark)">' in text
    assert re.search(r'<img src="figures/roc.png" alt="rising"', text)
    assert re.search(r'<img src="figures/a%20b.png" alt="a radiograph"', text)
    assert text.count("<source ") == 1
    assert "<h2>None</h2>" not in text


def test_the_page_loads_nothing_from_outside_its_folder():
    text = rendered(figures={"Curves": [page.Figure("ROC", "", "figures/roc.png", "rising")]})
    addresses = re.findall(r'(?:src|href|srcset)="([^"]*)"', text)
    assert "gallery.js" in addresses
    assert not [each for each in addresses if re.match(r"[a-z]+:|/", each) and each != "data:,"]
    assert not re.search(r"@import|url\(|fetch\(|XMLHttpRequest|import\(", text)


def test_parts_without_data_are_left_out():
    runs = [report_samples.run("ica", 0.8)]
    statistics = report_samples.statistics({"ica": 0.8}, empty=True)
    text = rendered(runs=runs, statistics=statistics, with_images=False)
    for part in (
        'id="differences"',
        'id="strata"',
        "gallery.js",
        'id="gallery"',
        "95&nbsp;% interval</th>",
        "<script",
    ):
        assert part not in text
    assert "95 % interval" not in [
        cells[0] for cells in Tables(text).found["Cross-validation of ica"]
    ]


def test_a_page_without_images_has_only_figures_without_radiographs_and_says_so():
    figures = {
        "Curves": [page.Figure("ROC", "", "figures/roc.svg", "rising", "figures/roc~dark.svg")],
        "Samples": [page.Figure("Sample", "", "figures/sample.png", "a chest", radiographs=True)],
    }
    assert page.files(figures) == ["figures/roc.svg", "figures/roc~dark.svg", "figures/sample.png"]
    complete, without = (rendered(figures=figures, with_images=flag) for flag in (True, False))
    note = "This copy shows no radiographs"
    for part in ("sample.png", "<h2>Samples</h2>", 'id="gallery"', 'href="#gallery"', "gallery.js"):
        assert part in complete
        assert part not in without
    assert "figures/roc.svg" in without
    assert note in without
    assert note not in complete


@pytest.mark.parametrize(
    ("text", "value", "expected"),
    [
        (wording.score, 0.85673, "0.8567"),
        (wording.score, math.nan, "–"),
        (wording.percent, 0.85673, "85.67"),
        (wording.percent, None, "–"),
        (wording.signed, -0.01234, "−0.0123"),
        (wording.signed, 0.5, "+0.5000"),
        (wording.p_value, 0.0009, "< 0.001"),
        (wording.p_value, 0.0404, "0.040"),
        (wording.p_value, math.nan, "–"),
        (wording.scaled, 31_031_745, "31.0 M"),
        (wording.scaled, 870, "870"),
        (wording.scaled, 1.2e12, "1,200.0 G"),
        (wording.duration, 42.4, "42 s"),
        (wording.duration, 3599, "1 h 0 min"),
        (wording.duration, 150, "2 min"),
        (wording.memory, 780, "780 MiB"),
        (wording.memory, math.nan, "–"),
        (wording.count, 12047, "12,047"),
    ],
)
def test_numbers_are_written_for_reading(text, value, expected):
    assert text(value) == expected
