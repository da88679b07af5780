"""The page of predict_radiographs.py as a reader sees it: opened from its folder in Chromium."""

import json
import os
import shutil

import cv2
import numpy as np
import pytest

from pneumothorax import png
from pneumothorax.inference import page, results
from pneumothorax.pipeline import atomic
from pneumothorax.plotting import PREDICTION_RGB
from tests.helpers.browsing import (
    Keys,
    WebDriverWait,
    choose,
    contrast,
    find,
    find_all,
    open_page,
    opening_seconds,
    pixels,
    set_screen,
    shown,
    slide,
)

pytestmark = pytest.mark.usefixtures("screen")

GREY = 100  # of every radiograph
SHAPE = (40, 80)
NOTICE = "research software, not a medical device: nothing here is a diagnosis"
HOSTILE = "<img src=x onerror=window.hurt=1><!--<script>"


def row(image_id, p_positive, *, area_px=0, area_mm2="", **others):
    """As predicting makes it, of a radiograph of SHAPE."""
    known = {
        "image_id": image_id,
        "source": f"ward/{image_id}.dcm",
        "height": SHAPE[0],
        "width": SHAPE[1],
        "p_positive": p_positive,
        "area_px": area_px,
        "area_mm2": area_mm2,
        "spacing": "",
        "not_a_radiograph": "",
        "trained_on": "radiographs",
        "rle": "-1",
    }
    return {**known, **others}


ROWS = [
    row("a", 0.5, area_px=300, area_mm2=12.4),
    row("b", 0.9995, area_px=400),
    row("c", 0.0002, area_mm2=0.0),
    row("d", 0.734, area_px=1200, area_mm2=48.0),
    row("e", 0.5, area_px=100, area_mm2=1234.5),
]


def write(folder, rows=ROWS, *, caution=""):
    """The page and the images it shows: grey, with a mask in columns 20-39, rows 10-29."""
    image = np.full(SHAPE, GREY, np.uint8)
    mask = np.zeros(SHAPE, np.uint8)
    mask[10:30, 20:40] = 255
    for each in rows:
        image_id = each["image_id"]
        atomic.write_bytes(folder / results.radiograph(image_id), page.radiograph(image))
        atomic.write_bytes(folder / results.mask(image_id), png.encode_small(mask))
    assert page.write(folder, rows, caution=caution, notice=NOTICE) == folder / "index.html"
    return folder


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return write(tmp_path_factory.mktemp("page"))


def loaded(browser, selector):
    """The images, once all are there."""
    script = "return [...document.querySelectorAll(arguments[0])].every((i) => i.naturalWidth > 0)"
    WebDriverWait(browser, 10).until(lambda b: b.execute_script(script, selector))
    return find_all(browser, selector)


def test_a_copy_for_the_page_keeps_the_proportions_and_is_at_most_1024_long():
    for shape, expected in (((3000, 1500), (1024, 512)), (SHAPE, SHAPE), ((1, 4096), (1, 1024))):
        data = np.frombuffer(page.radiograph(np.full(shape, GREY, np.uint8)), np.uint8)
        copy = cv2.imdecode(data, cv2.IMREAD_UNCHANGED)
        assert copy.shape == expected
        assert (copy == GREY).all()


def test_the_highest_probability_comes_first_and_ties_keep_the_order_of_the_table(browser, folder):
    open_page(browser, folder)
    assert shown(browser) == ["b", "d", "a", "e", "c"]
    choose(browser, order="ascending")
    assert shown(browser) == ["c", "a", "e", "d", "b"]


def test_images_can_be_sorted_by_area_and_id_and_an_unknown_area_comes_last(browser, folder):
    open_page(browser, folder)
    choose(browser, sort="area_mm2")
    assert shown(browser) == ["e", "d", "a", "c", "b"]
    choose(browser, order="ascending")
    assert shown(browser) == ["c", "a", "d", "e", "b"]
    choose(browser, sort="area_px", order="descending")
    assert shown(browser) == ["d", "b", "a", "e", "c"]
    choose(browser, sort="image_id", order="ascending")
    assert shown(browser) == ["a", "b", "c", "d", "e"]


def test_each_card_says_probability_and_area_in_the_unit_that_is_known(browser, folder):
    open_page(browser, folder, "#sort=image_id&order=ascending")
    facts = [card.text.replace("\u00a0", " ") for card in find_all(browser, ".card")]
    assert [text.splitlines()[:-1] for text in facts] == [
        ["50.0 %", "12 mm²"],
        ["> 99.9 %", "400 px"],
        ["< 0.1 %", "empty mask"],
        ["73.4 %", "48 mm²"],
        ["50.0 %", "1,235 mm²"],
    ]
    assert [each.text for each in find_all(browser, ".tiles dd")] == ["5", "4"]
    assert find(browser, "header b").text == f"R{NOTICE[1:]}."


def test_an_image_is_found_by_a_part_of_its_id(browser, tmp_path):
    write(tmp_path, [row(f"1.2.{number}", 0.5) for number in range(30)])
    open_page(browser, tmp_path)
    assert len(shown(browser)) == 24
    find(browser, "[name=id]").send_keys(".29")
    assert shown(browser) == ["1.2.29"]
    assert find(browser, ".count").text == "1 to 1 of 1 images (of 30)"


def test_the_slider_fades_from_the_radiograph_alone_to_an_opaque_mask(browser, folder):
    """A card is a square of side S. The radiograph is half as high as it is wide, so that its
    rows 10 to 29 of 40 are S/4 + S/8 to S/4 + 3S/8; its columns 20 to 39 of 80 are S/4 to S/2.
    """
    open_page(browser, folder, "#id=b")
    loaded(browser, ".card img")
    picture = find(browser, ".card .picture")
    for opacity, expected in ((0, [100, 100, 100]), (50, [178, 138, 50]), (100, PREDICTION_RGB)):
        slide(browser, "form [name=opacity]", opacity)
        seen = pixels(browser, picture)[:, :, ::-1].astype(int)
        side = len(seen)
        rows = slice(round(0.40 * side), round(0.60 * side))
        inside = seen[rows, round(0.28 * side) : round(0.47 * side)]
        outside = seen[rows, round(0.53 * side) : round(0.97 * side)]
        assert np.abs(inside - expected).max() <= 2
        assert np.abs(outside - GREY).max() <= 2
        above = seen[round(0.05 * side) : round(0.2 * side), round(0.1 * side) : round(0.9 * side)]
        assert above.max() <= 2  # no mask beside the radiograph


def test_an_empty_mask_is_not_loaded(browser, folder):
    open_page(browser, folder, "#id=c")
    assert len(loaded(browser, ".card img")) == 1


def test_a_card_opens_a_larger_view_by_keyboard_and_escape_closes_it(browser, folder):
    open_page(browser, folder)
    find(browser, ".card button").send_keys(Keys.ENTER)
    assert find(browser, "dialog h3").text == "b"
    about = find(browser, "dialog .about").text.replace("\u00a0", " ")
    assert about == "probability > 99.9 % · 400 px · 80 × 40 pixels · ward/b.dcm"
    loaded(browser, "dialog img")
    overlay = find(browser, "dialog a").get_property("href")
    assert overlay == (folder / results.overlay("b")).as_uri()
    find(browser, "dialog [data-close]").send_keys(Keys.ARROW_RIGHT)
    assert find(browser, "dialog h3").text == "d"
    slide(browser, "dialog input[type=range]", 20)
    assert find(browser, "form [name=opacity]").get_property("value") == "20"
    browser.switch_to.active_element.send_keys(Keys.ESCAPE)
    assert not find(browser, "dialog").is_displayed()


def test_phantoms_and_images_that_are_no_radiographs_are_marked(browser, folder, tmp_path):
    rows = [{**each, "trained_on": "phantoms"} for each in ROWS]
    rows[1]["not_a_radiograph"] = "Modality CT"
    write(tmp_path, rows, caution="warning: trained on phantoms")
    open_page(browser, tmp_path)
    assert [each.text for each in find_all(browser, "header .caution")] == [
        "Warning: trained on phantoms.",
        "1 of 5 images is not a radiograph according to the header: what the networks find there "
        "means nothing.",
    ]
    marks = {card.get_attribute("data-id"): card.text for card in find_all(browser, ".card")}
    assert [name for name, text in marks.items() if "Not a radiograph: Modality CT" in text] == [
        "b"
    ]
    find(browser, ".card button").send_keys(Keys.ENTER)
    assert find(browser, "dialog .mark").text == "Not a radiograph: Modality CT"
    labels = browser.execute_script(
        "return [...document.querySelectorAll('.picture')]"
        ".map((each) => getComputedStyle(each, '::after').content)"
    )
    assert labels == ['"TRAINED ON PHANTOMS"'] * 6  # five cards and the larger view
    open_page(browser, folder)
    assert find_all(browser, "header .caution, .mark:not(:empty), [data-caution]") == []


def test_names_and_header_texts_are_shown_as_text_and_files_with_odd_names_are_found(
    browser, tmp_path
):
    odd = "a$&b%41#?"
    rows = [
        row(HOSTILE, 0.9, area_px=400, source=f"{HOSTILE}</script>", not_a_radiograph=HOSTILE),
        row(odd, 0.1, area_px=400),
    ]
    write(tmp_path, rows, caution=f"warning: {HOSTILE}</script>")
    open_page(browser, tmp_path)
    assert shown(browser) == [HOSTILE, odd]
    assert len(loaded(browser, ".card img")) == 4
    assert HOSTILE in find(browser, ".card .mark").text
    assert HOSTILE in find(browser, "header .caution").text
    find(browser, ".card button").send_keys(Keys.ENTER)
    assert find(browser, "dialog h3").text == HOSTILE
    assert f"{HOSTILE}</script>" in find(browser, "dialog .about").text
    assert browser.execute_script("return window.hurt") is None


def test_the_page_loads_files_of_its_folder_alone(browser, folder):
    browser.get_log("performance")
    open_page(browser, folder)
    loaded(browser, ".card img")
    events = [json.loads(entry["message"])["message"] for entry in browser.get_log("performance")]
    asked = {
        each["params"]["request"]["url"]
        for each in events
        if each["method"] == "Network.requestWillBeSent"
    }
    assert (folder / results.mask("b")).as_uri() in asked
    elsewhere = (folder.as_uri(), "data:", "about:")
    assert [address for address in asked if not address.startswith(elsewhere)] == []


def test_three_thousand_images_open_in_a_second_and_few_are_in_the_page(browser, tmp_path):
    ids = [f"1.2.276.0.7230010.3.1.4.8323329.{n}.1517875201.{n:06d}" for n in range(3205)]
    rows = [row(image_id, n / 3205, area_px=400) for n, image_id in enumerate(ids)]
    write(tmp_path, rows[:1])
    for kind in (results.radiograph, results.mask):
        for image_id in ids[1:]:
            try:
                os.link(tmp_path / kind(ids[0]), tmp_path / kind(image_id))
            except OSError:
                shutil.copyfile(tmp_path / kind(ids[0]), tmp_path / kind(image_id))
    page.write(tmp_path, rows, caution="", notice=NOTICE)
    best = min(opening_seconds(browser, tmp_path) for _ in range(3))  # other work is not the page's
    assert best < 1
    assert shown(browser) == ids[:-25:-1]  # the last 24, backwards
    images = find_all(browser, "img")
    assert len(images) == 48
    assert {image.get_property("loading") for image in images} == {"lazy"}
    assert (tmp_path / "index.html").stat().st_size < 1e6
    find(browser, "[name=id]").send_keys(".003204")
    assert shown(browser) == [ids[-1]]


@pytest.mark.parametrize("dark", [False, True])
def test_nothing_scrolls_sideways_on_a_phone_and_all_text_is_readable(browser, tmp_path, dark):
    long = "1.2.276.0.7230010.3.1.4.8323329.1.1517875201.000001"
    rows = [row(long, 0.9, area_px=400, not_a_radiograph=long, source=long * 5), *ROWS]
    write(tmp_path, rows, caution="warning: trained on phantoms")
    for width in (375, 1280):
        set_screen(browser, width=width, dark=dark)
        open_page(browser, tmp_path)
        for open_dialog in (False, True):
            if open_dialog:
                find(browser, f"[data-id='{long}'] button").send_keys(Keys.ENTER)
            for element in ("document.documentElement", "document.querySelector('dialog')"):
                wide, room = browser.execute_script(
                    f"return [{element}.scrollWidth, {element}.clientWidth]"
                )
                assert wide == room
        for selector in ("header b", ".caution", ".card b", ".card .mark", ".card .id", "label"):
            assert contrast(browser, find(browser, selector)) >= 4.5, selector
        assert find(browser, "dialog input[type=range]").rect["width"] > 50
        assert find(browser, "form input[type=range]").rect["width"] > 50


def test_every_input_has_a_name_for_screen_readers(browser, folder):
    open_page(browser, folder)
    controls = find_all(browser, "#gallery-app form :is(input, select, button)")
    assert len(controls) == 6
    assert all(control.accessible_name for control in controls)


def test_without_javascript_a_note_names_the_table(browser, folder):
    browser.execute_cdp_cmd("Emulation.setScriptExecutionDisabled", {"value": True})
    try:
        open_page(browser, folder)
        assert "predictions.csv does not" in find(browser, "noscript").text
    finally:
        browser.execute_cdp_cmd("Emulation.setScriptExecutionDisabled", {"value": False})


def test_a_page_without_images_names_the_table_of_rejections(browser, tmp_path):
    write(tmp_path, [])
    open_page(browser, tmp_path)
    assert find(browser, "header .caution").text == (
        "No image was predicted: rejected.csv says why."
    )
