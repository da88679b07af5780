"""The report's figures show their data, suit light and dark pages, and are reproducible."""

import subprocess
import sys

import numpy as np
import pandas as pd
import pytest
from matplotlib.colors import to_hex, to_rgb

from pneumothorax import augment, plotting, png, rle
from pneumothorax.errors import BadInput
from pneumothorax.pipeline import artifacts
from pneumothorax.plotting import DARK, LIGHT, PICTURES
from pneumothorax.report import figures, paper_figures
from pneumothorax.report.paper_figures import Compared, LabelledImage
from tests.helpers.figures import save
from tests.helpers.images import disc, noise
from tests.helpers.stages import ROOT

SIZE = 64


def labelled(axes):
    """{label: line} of what has a name in the legend."""
    return {
        line.get_label(): line for line in axes.get_lines() if not line.get_label().startswith("_")
    }


def legend(owner):
    return [text.get_text() for text in owner.get_texts()]


def roc_curves():
    steep = pd.DataFrame({"fpr": [0.0, 0.1, 1.0], "tpr": [0.0, 0.9, 1.0]})
    flat = pd.DataFrame({"fpr": [0.0, 0.5, 1.0], "tpr": [0.0, 0.6, 1.0]})
    return {"ours": steep, "theirs": flat}


def roc(style=LIGHT):
    point = pd.DataFrame({"fpr": [0.2], "tpr": [0.8]})
    return figures.roc(
        roc_curves(), {"ours": 0.9123, "theirs": 0.55}, style, points={"ours": point}
    )


def calibration(style=LIGHT):
    table = pd.DataFrame(
        {
            "low": [0.0, 0.5],
            "high": [0.5, 1.0],
            "images": [30, 10],
            "p_positive": [0.2, 0.7],
            "positive_share": [0.1, 0.8],
            "share_low": [0.05, 0.5],
            "share_high": [0.25, 0.95],
        }
    )
    return figures.calibration({"ours": table}, {"ours": 0.1}, style)


def surface():
    """Dice 0.1 x top + area / 1000 at bottom 0.2, half of that at 0.3; tried for bottom <= top."""
    rows = []
    for top in (0.25, 0.5, 0.75):
        for area in (0, 100):
            for bottom, share in ((0.2, 1.0), (0.3, 0.5)):
                dice = share * (0.1 * top + area / 1000) if bottom <= top else -np.inf
                rows.append({"top": top, "min_area": area, "bottom": bottom, "siim_dice": dice})
    return pd.DataFrame(rows).assign(min_probability=0.0)


def chosen(top=0.75, area=100.0, bottom=0.2, probability=0.0):
    return {"top": top, "min_area": area, "bottom": bottom, "min_probability": probability}


def threshold_surface(style=LIGHT):
    return figures.threshold_surface(surface(), chosen(), style, run="ours", baseline=0.1)


def folds(style=LIGHT):
    scores = pd.DataFrame(
        {"run": ["b", "b", "a", "a"], "fold": [0, 1, 0, 1], "value": [0.6, 0.8, 0.5, 0.5]}
    )
    return figures.folds(scores, style, baseline=0.55)


def strata_table():
    rows = [
        ("mask size", "negative", 0, np.nan, np.nan, np.nan),
        ("mask size", "small", 7, 0.3, 0.1, 0.6),
        ("sex", "F", 4, 0.5, 0.4, 0.7),
        ("sex", "M", 3, 0.2, 0.1, 0.3),
    ]
    columns = [
        "stratum",
        "level",
        "positives",
        "positive_dice",
        "positive_dice_low",
        "positive_dice_high",
    ]
    return pd.DataFrame(rows, columns=columns)


def strata(style=LIGHT):
    table = strata_table()
    better = table.assign(positive_dice=table["positive_dice"] + 0.05)
    return figures.strata({"ours": table, "better": better}, style)


def history(shift=0.0):
    return pd.DataFrame(
        {
            "epoch": [1, 2, 3],
            "learning_rate": [1e-4, 5e-5, 1e-6],
            "positives_per_negative": [2.0, 2.0, 1.0],
            "train_loss": np.array([1.0, 0.5, 0.25]) + shift,
            "siim_dice": np.array([0.5, 0.6, 0.7]) + shift,
            "all_empty": [0.75] * 3,
        }
    )


def learning(style=LIGHT):
    return paper_figures.learning(
        {"ours": [history(), history(0.1)], "theirs": [history()], "untrained": []}, style
    )


def radiograph(seed=1, radius=9):
    return LabelledImage(
        noise(seed, SIZE),
        disc(SIZE, 20, 40, radius) if radius else np.zeros((SIZE, SIZE), np.uint8),
    )


def data_sample(style=PICTURES):
    return paper_figures.data_sample([radiograph(), radiograph(2, radius=0)], style)


def augmentation(style=PICTURES):
    original = radiograph()
    return paper_figures.augmentation(
        original, augment.each_alone(original.image, original.truth, draws=3), style
    )


def comparison(style=PICTURES):
    one = radiograph()
    predictions = {"ours": (one.truth, 1.0), "theirs": (np.zeros_like(one.truth), 0.0)}
    return paper_figures.comparison([Compared(one, predictions)], style)


CURVES = [roc, calibration, threshold_surface, folds, strata, learning]
PAPER = [data_sample, augmentation, comparison]


def test_roc_curves_are_the_data_and_name_their_area():
    axes = roc().axes[0]
    lines = labelled(axes)
    for name, run, area in (("ours", "ours: AUC 0.912", 0), ("theirs", "theirs: AUC 0.550", 1)):
        expected = roc_curves()[name]
        np.testing.assert_array_equal(lines[run].get_xydata(), expected.to_numpy())
        assert lines[run].get_color() == LIGHT.series[area]
    points = [line.get_xydata().tolist() for line in axes.get_lines() if line.get_marker() == "o"]
    assert [[0.2, 0.8]] in points
    assert legend(axes.get_legend()) == [
        "chance",
        "ours: AUC 0.912",
        "theirs: AUC 0.550",
        "submitted masks",
    ]
    assert "specificity" in axes.get_xlabel() and axes.get_ylabel() == "sensitivity"


def test_a_run_without_a_roc_curve_is_left_out_and_keeps_the_others_colours():
    curves = {"nothing": pd.DataFrame({"fpr": [], "tpr": []}), **roc_curves()}
    lines = labelled(
        figures.roc(curves, {"nothing": np.nan, "ours": 0.9, "theirs": 0.5}, LIGHT).axes[0]
    )
    assert sorted(lines) == ["chance", "ours: AUC 0.900", "theirs: AUC 0.500"]
    assert lines["ours: AUC 0.900"].get_color() == LIGHT.series[1]


def test_calibration_shows_shares_with_their_intervals_and_the_number_of_images():
    upper, lower = calibration().axes
    container = upper.containers[0]
    np.testing.assert_array_equal(container.lines[0].get_xydata(), [[0.2, 0.1], [0.7, 0.8]])
    intervals = [segment[:, 1] for segment in container.lines[2][0].get_segments()]
    np.testing.assert_allclose(intervals, [[0.05, 0.25], [0.5, 0.95]])
    assert [bar.get_height() for bar in lower.patches] == [30, 10]
    assert all(
        low <= bar.get_x() and bar.get_x() + bar.get_width() <= low + 0.5 + 1e-9
        for bar, low in zip(lower.patches, (0.0, 0.5), strict=True)
    )
    assert legend(upper.get_legend()) == ["perfect", "ours: ECE 0.100"]


def test_bars_of_several_runs_stand_side_by_side_within_a_bin():
    table = pd.DataFrame(
        {
            "low": [0.0],
            "high": [0.1],
            "images": [5],
            "p_positive": [0.05],
            "positive_share": [0.0],
            "share_low": [0.0],
            "share_high": [0.4],
        }
    )
    lower = figures.calibration({"a": table, "b": table}, {"a": 0.05, "b": 0.05}, LIGHT).axes[1]
    first, second = lower.patches
    assert first.get_x() + first.get_width() == pytest.approx(second.get_x())
    assert second.get_x() + second.get_width() <= 0.1


def test_the_threshold_surface_is_the_best_over_bottom_thresholds_and_marks_the_chosen_triplet():
    figure = threshold_surface()
    axes = figure.axes[0]
    values = axes.images[0].get_array()
    # Bottom 0.2 is best everywhere: 0.1 * top + area / 1000; rows are areas, columns tops.
    np.testing.assert_allclose(values, [[0.025, 0.05, 0.075], [0.125, 0.15, 0.175]])
    assert [text.get_text() for text in axes.get_xticklabels()] == ["0.25", "0.5", "0.75"]
    assert [text.get_text() for text in axes.get_yticklabels()] == ["0", "100"]
    star = next(line for line in axes.get_lines() if line.get_marker() == "*")
    assert star.get_xydata().tolist() == [[2, 1]]
    assert "chosen: top 0.75, minimum area 100, bottom 0.2: 0.1750" in legend(figure.legends[0])
    assert "all-empty baseline: 0.1000" in legend(figure.legends[0])


def test_with_an_image_threshold_the_surface_is_drawn_over_it_and_the_bottom_threshold():
    rows = [
        chosen(0.99, 0.0, bottom, probability) | {"siim_dice": probability - bottom}
        for probability in (0.0, 0.4, 0.8)
        for bottom in (0.2, 0.3)
    ]
    final = chosen(0.99, 0.0, 0.2, 0.4)
    figure = figures.threshold_surface(pd.DataFrame(rows), final, LIGHT, run="ours", baseline=0.1)
    axes = figure.axes[0]
    np.testing.assert_allclose(axes.images[0].get_array(), [[-0.2, 0.2, 0.6], [-0.3, 0.1, 0.5]])
    assert (axes.get_xlabel(), axes.get_ylabel()) == ("image threshold", "bottom threshold")
    star = next(line for line in axes.get_lines() if line.get_marker() == "*")
    assert star.get_xydata().tolist() == [[1, 0]]
    assert "chosen: image threshold 0.4, bottom 0.2: 0.2000" in legend(figure.legends[0])


@pytest.mark.parametrize("scores", [[0.5, 0.5, 0.5, 0.5], [0.5]])
def test_a_flat_threshold_surface_and_one_of_a_single_triplet_are_drawn(scores, tmp_path):
    places = [(0.5, 0), (0.5, 100), (0.75, 0), (0.75, 100)][: len(scores)]
    rows = [chosen(t, a) | {"siim_dice": s} for (t, a), s in zip(places, scores, strict=True)]
    figure = figures.threshold_surface(
        pd.DataFrame(rows), chosen(0.5, 0), LIGHT, run="ours", baseline=0.5
    )
    save(figure, tmp_path / "surface.svg")
    assert "0.5000" in legend(figure.legends[0])[0]


def test_folds_show_every_score_with_mean_and_standard_deviation_and_the_all_empty_baseline():
    axes = folds().axes[0]
    dots = [sorted(line.get_ydata()) for line in axes.get_lines() if len(line.get_ydata()) == 2]
    assert [0.6, 0.8] in dots and [0.5, 0.5] in dots
    # b: mean 0.7, deviation sqrt(2 * 0.1^2 / 1) = 0.1414; a: 0.5 and 0.
    assert [text.get_text() for text in axes.texts[:2]] == ["0.7000\n± 0.1414", "0.5000\n± 0.0000"]
    ends = axes.containers[0].lines[2][0].get_segments()[0][:, 1]
    np.testing.assert_allclose(ends, [0.7 - 0.14142, 0.7 + 0.14142], atol=1e-4)
    assert [text.get_text() for text in axes.get_xticklabels()] == ["b", "a"]
    assert [0.55, 0.55] in dots and "all-empty baseline" in [text.get_text() for text in axes.texts]


def test_strata_have_a_panel_each_with_dice_and_interval_of_every_level_that_has_positives():
    size, sex = strata().axes
    assert (size.get_title(), sex.get_title()) == ("mask size", "sex")
    assert [text.get_text() for text in size.get_xticklabels()] == ["small\nn = 7"]
    assert [text.get_text() for text in sex.get_xticklabels()] == ["F\nn = 4", "M\nn = 3"]
    ours, better = sex.containers
    np.testing.assert_allclose(ours.lines[0].get_ydata().astype(float), [0.5, 0.2])
    np.testing.assert_allclose(better.lines[0].get_ydata().astype(float), [0.55, 0.25])
    intervals = [segment[:, 1] for segment in ours.lines[2][0].get_segments()]
    np.testing.assert_allclose(intervals, [[0.4, 0.7], [0.1, 0.3]])
    assert all(ours.lines[0].get_xdata() < better.lines[0].get_xdata())


def test_learning_curves_are_the_history_and_the_mean_over_folds():
    figure = learning()
    rate, loss, dice = figure.axes
    np.testing.assert_allclose(
        labelled(rate)["ours"].get_xydata(), [[1, 1e-4], [2, 5e-5], [3, 1e-6]]
    )
    np.testing.assert_allclose(labelled(loss)["ours"].get_ydata(), [1.05, 0.55, 0.3])
    np.testing.assert_allclose(labelled(dice)["theirs"].get_ydata(), [0.5, 0.6, 0.7])
    thin = [
        line.get_ydata()[-1]
        for line in loss.get_lines()
        if line.get_linewidth() < 1 and len(line.get_ydata()) == 3
    ]
    np.testing.assert_allclose(thin, [0.25, 0.35])
    assert [axes.get_ylabel() for axes in figure.axes] == [
        "learning rate",
        "training loss",
        "SIIM Dice, validation fold",
    ]
    assert legend(figure.legends[0]) == ["ours", "theirs", "all-empty baseline"]


def test_scores_of_validated_epochs_are_joined_past_those_that_were_not_validated():
    sparse = history().assign(siim_dice=[0.5, np.nan, 0.7])
    figure = paper_figures.learning({"ours": [sparse, sparse.assign(siim_dice=0.6)]}, LIGHT)
    dice = figure.axes[2]
    mean = labelled(dice)["ours"]  # epoch 2: of the fold that was validated
    np.testing.assert_allclose(mean.get_xydata(), [[1, 0.55], [2, 0.6], [3, 0.65]])
    thin = [line for line in dice.get_lines() if line.get_linewidth() < 1 and line.get_alpha()]
    np.testing.assert_allclose(thin[0].get_xydata(), [[1, 0.5], [3, 0.7]])
    assert {line.get_marker() for line in (mean, *thin)} == {"."}
    # The only validated epoch is a dot.
    last = history().assign(siim_dice=[np.nan, np.nan, 0.7])
    once = paper_figures.learning({"ours": [last]}, LIGHT)
    np.testing.assert_allclose(labelled(once.axes[2])["ours"].get_xydata(), [[3, 0.7]])


def test_a_run_keeps_its_colour_in_all_figures_even_after_a_blend_without_a_curve():
    figure = paper_figures.learning({"a blend": [], "ours": [history()]}, LIGHT)
    assert labelled(figure.axes[1])["ours"].get_color() == LIGHT.colour(1)


def test_the_sampling_switch_is_marked_at_its_epoch_when_all_runs_share_it():
    def marks(figure):
        return [
            line.get_xdata()
            for line in figure.axes[1].get_lines()
            if line.get_linestyle() == ":" and list(line.get_ydata()) == [0, 1]
        ]

    assert marks(learning()) == [[3, 3]]
    other = history().assign(positives_per_negative=[2.0, 1.0, 1.0])
    assert marks(paper_figures.learning({"ours": [history()], "theirs": [other]}, LIGHT)) == []


@pytest.mark.parametrize("make", CURVES)
def test_drawing_twice_gives_the_same_svg_bytes(make, tmp_path):
    for name in ("first.svg", "second.svg"):
        save(make(DARK), tmp_path / name)
    first, second = ((tmp_path / name).read_bytes() for name in ("first.svg", "second.svg"))
    assert first == second
    assert b"<dc:date>" not in first and b"<dc:creator>" not in first
    assert [path.name for path in sorted(tmp_path.iterdir())] == ["first.svg", "second.svg"]


@pytest.mark.parametrize("make", PAPER)
def test_drawing_twice_gives_the_same_png_bytes_which_name_no_software(make, tmp_path):
    for name in ("first.png", "second.png"):
        save(make(), tmp_path / name)
    first, second = ((tmp_path / name).read_bytes() for name in ("first.png", "second.png"))
    assert first == second
    assert b"Software" not in first and b"tEXt" not in first


def test_figures_do_not_depend_on_the_users_matplotlib_settings(tmp_path):
    import matplotlib

    save(roc(), tmp_path / "plain.svg")
    with matplotlib.rc_context(
        {"font.size": 20, "axes.linewidth": 5, "xtick.direction": "in", "svg.hashsalt": None}
    ):
        save(roc(), tmp_path / "mine.svg")
        assert matplotlib.rcParams["font.size"] == 20
    assert (tmp_path / "plain.svg").read_bytes() == (tmp_path / "mine.svg").read_bytes()


def test_drawing_imports_neither_pyplot_nor_torch():
    code = (
        "import sys\n"
        "from pneumothorax import plotting\n"
        "from pneumothorax.report import figures, network_diagram, paper_figures\n"
        "import pandas as pd\n"
        "curve = pd.DataFrame({'fpr': [0.0, 1.0], 'tpr': [0.0, 1.0]})\n"
        "figures.roc({'ours': curve}, {'ours': 0.5}, plotting.LIGHT)\n"
        "print('matplotlib.pyplot' in sys.modules, 'torch' in sys.modules)\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True
    )
    assert done.stdout.split() == ["False", "False"]


def test_other_endings_are_refused(tmp_path):
    with pytest.raises(ValueError, match="svg or png"):
        save(roc(), tmp_path / "roc.pdf")


def luminance(colour):
    channels = [
        value / 12.92 if value <= 0.04045 else ((value + 0.055) / 1.055) ** 2.4
        for value in to_rgb(colour)
    ]
    return float(np.dot(channels, (0.2126, 0.7152, 0.0722)))


def contrast(one, other):
    """WCAG 2's ratio, 1 to 21."""
    bright, dark = sorted((luminance(one), luminance(other)), reverse=True)
    return (bright + 0.05) / (dark + 0.05)


@pytest.mark.parametrize("style", [LIGHT, DARK, PICTURES])
def test_text_and_series_stand_out_from_the_page(style):
    assert contrast(style.text, style.page) > 7
    assert contrast(style.muted, style.page) > 4.5
    assert all(contrast(colour, style.page) > 2 for colour in style.series)
    assert len(set(style.series)) == len(style.series) >= 7


def test_curves_have_a_transparent_background_and_the_styles_text_colour():
    for style in (LIGHT, DARK):
        figure = roc(style)
        assert figure.get_facecolor()[3] == 0
        assert to_hex(figure.axes[0].xaxis.label.get_color()) == style.text


def test_a_data_sample_shows_image_mask_and_both():
    cells = np.array(data_sample().axes).reshape(2, 3)
    positive = radiograph()
    np.testing.assert_array_equal(cells[0, 0].images[0].get_array(), positive.image)
    np.testing.assert_array_equal(cells[0, 1].images[0].get_array() > 0, positive.truth > 0)
    tint = cells[0, 2].images[1].get_array()
    np.testing.assert_array_equal(tint[..., 3] > 0, positive.truth > 0)
    share = 100 * positive.truth.sum() / SIZE**2
    assert cells[0, 1].get_xlabel() == f"{share:.2f} % of the image"
    assert cells[1, 1].get_xlabel() == "no pneumothorax"


def test_every_training_augmentation_is_pictured_by_name_with_its_own_mask():
    names = [name for kind in augment.alternatives(size=SIZE).values() for name in kind]
    assert [axes.get_title() for axes in augmentation().axes] == ["original", *names]
    assert len(names) == 8
    assert "shift, scale, rotation" in names
    one = radiograph()
    flipped_image, flipped_mask = augment.each_alone(one.image, one.truth, draws=1)[
        "horizontal flip"
    ]
    np.testing.assert_array_equal(flipped_image, one.image[:, ::-1])
    np.testing.assert_array_equal(flipped_mask, one.truth[:, ::-1])


def test_each_augmentation_alone_changes_the_image_and_intensities_leave_the_mask():
    one = radiograph()
    shown = augment.each_alone(one.image, one.truth)
    assert all((image != one.image).mean() > 0.2 for image, _ in shown.values())
    for name in augment.alternatives(size=SIZE)["intensity"]:
        np.testing.assert_array_equal(shown[name][1], one.truth)


def test_pictured_augmentations_are_those_training_applies():
    used = augment.training(size=SIZE).transforms
    applied = [repr(one) for step in used for one in getattr(step, "transforms", [step])]
    pictured = [
        repr(one) for kind in augment.alternatives(size=SIZE).values() for one in kind.values()
    ]
    assert applied == pictured


def test_a_comparison_shows_every_runs_mask_with_its_dice_and_the_truth_outlined():
    cells = comparison().axes
    assert [axes.get_title() for axes in cells] == ["radiograph", "truth", "ours", "theirs"]
    assert [axes.get_xlabel() for axes in cells[2:]] == ["Dice 1.000", "Dice 0.000"]
    one = radiograph()
    np.testing.assert_array_equal(cells[2].images[1].get_array()[..., 3] > 0, one.truth > 0)
    assert not (cells[3].images[1].get_array()[..., 3] > 0).any()
    assert [len(axes.collections) for axes in cells] == [0, 1, 1, 1]
    outline = cells[1].collections[0]
    assert to_hex(outline.get_edgecolor()[0]) == "#" + bytes(plotting.TRUTH_RGB).hex()
    # The disc's border: radius 9 around (40, 20), columns first, give or take the pixel grid.
    distances = np.hypot(*(outline.get_paths()[0].vertices - (40, 20)).T)
    assert distances.min() > 8 and distances.max() < 10


def test_a_sample_spreads_over_mask_sizes_and_ends_with_a_negative():
    manifest = pd.DataFrame(
        {
            "image_id": [f"p{n:02d}" for n in range(21)] + ["n1", "n0"],
            "positive": [1] * 21 + [0, 0],
            "mask_pixels": [*range(100, 121), 0, 0],
        }
    )
    # 10 %, 50 % and 90 % of 21 positives by mask size are places 2, 10 and 18.
    assert paper_figures.choose_sample(manifest, 4) == ["p02", "p10", "p18", "n0"]


def test_compared_images_spread_over_mask_sizes_and_end_with_the_largest_false_positive():
    ours = pd.DataFrame(
        {
            "image_id": [*"abcde", "x", "y", "only"],
            "true_px": [10, 20, 30, 40, 50, 0, 0, 99],
            "predicted_px": [0, 0, 0, 0, 0, 5, 0, 0],
        }
    )
    theirs = ours.assign(predicted_px=[0, 0, 0, 0, 0, 0, 9, 0]).iloc[:-1]
    # y is the largest false positive of any run; "only" is not in both.
    # 10 %, 50 %, 90 % of five are places 0, 2, 4.
    assert paper_figures.choose_compared({"ours": ours, "theirs": theirs}, 4) == [
        "a",
        "c",
        "e",
        "y",
    ]
    assert paper_figures.choose_compared({"ours": ours.assign(predicted_px=0)}, 6) == [
        *"abcde",
        "only",
    ]


def test_strata_of_a_run_without_positives_say_so():
    nothing = strata_table().assign(positive_dice=np.nan)
    figure = figures.strata({"ours": nothing}, LIGHT)
    assert "no positive images" in [text.get_text() for text in figure.axes[0].texts]


def test_reading_takes_cached_images_masks_and_run_lengths(tmp_path):
    one = radiograph()
    for path, data in (
        (tmp_path / artifacts.Cache(SIZE).image("a"), png.encode(one.image)),
        (tmp_path / artifacts.Cache(SIZE).mask("a"), png.encode_mask(one.truth)),
    ):
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(data)
    larger = np.kron(one.truth, np.ones((2, 2), np.uint8))  # labels at twice the cache's size
    table = pd.DataFrame({"image_id": ["a"], "rle": [rle.encode(larger)], "dice": [0.5]})
    read = paper_figures.read_compared(tmp_path, SIZE, "a", larger.shape, {"ours": table})
    np.testing.assert_array_equal(read.shown.image, one.image)
    np.testing.assert_array_equal(read.shown.truth, one.truth)
    np.testing.assert_array_equal(read.predictions["ours"][0], one.truth)
    assert read.predictions["ours"][1] == 0.5
    with pytest.raises(BadInput, match=r"b\.png"):
        paper_figures.read(tmp_path, SIZE, "b")


@pytest.mark.parametrize(
    "text, lines",
    [
        ("ica_resunet", ["ica_resunet"]),
        ("ica_resunet_without_attention", ["ica_resunet_", "without_", "attention"]),
        ("mask 1st quarter (0.005-0.39 %)", ["mask 1st", "quarter", "(0.005-0.39 %)"]),
    ],
)
def test_long_names_break_after_spaces_and_underscores(text, lines):
    assert figures.wrapped(text, 15) == "\n".join(lines).replace(" %", "\u00a0%")
