"""Headless Chromium for tests of pages; a test module that imports this is skipped without it."""

import contextlib
import os
import shutil
import sys
import tempfile

import cv2
import numpy as np
import pytest

webdriver = pytest.importorskip(
    "selenium.webdriver", reason="needs selenium (requirements-dev.txt)"
)
from selenium.webdriver.common.by import By  # noqa: E402
from selenium.webdriver.common.keys import Keys  # noqa: E402, F401 - for the tests
from selenium.webdriver.support.ui import Select, WebDriverWait  # noqa: E402

CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser")
DRIVER = shutil.which("chromedriver")
if not (CHROMIUM and DRIVER) and not os.environ.get("CI"):
    pytest.skip("needs Chromium: apt-get install chromium chromium-driver", allow_module_level=True)

FLAGS = (
    "--headless=new --no-sandbox --disable-gpu --disable-quic --no-first-run --hide-scrollbars "
    "--disable-background-networking --disable-component-update --disable-sync "
    "--disable-dev-shm-usage"
).split()


@contextlib.contextmanager
def chromium():
    """A browser that logs its console and what it loads."""
    assert CHROMIUM and DRIVER, "CI has to test in a browser: install chromium and chromium-driver"
    options = webdriver.ChromeOptions()
    options.binary_location = CHROMIUM
    options.set_capability("goog:loggingPrefs", {"browser": "ALL", "performance": "ALL"})
    with tempfile.TemporaryDirectory(ignore_cleanup_errors=True) as profile:
        for flag in (*FLAGS, f"--user-data-dir={profile}"):
            options.add_argument(flag)
        driver = webdriver.Chrome(options=options, service=webdriver.ChromeService(DRIVER))
        yield driver
        driver.quit()


def set_screen(browser, *, width=1400, dark=False):
    metrics = {"width": width, "height": 900, "deviceScaleFactor": 1, "mobile": width < 500}
    browser.execute_cdp_cmd("Emulation.setDeviceMetricsOverride", metrics)
    scheme = {"name": "prefers-color-scheme", "value": "dark" if dark else "light"}
    browser.execute_cdp_cmd("Emulation.setEmulatedMedia", {"features": [scheme]})


def open_page(browser, folder, state=""):
    browser.get("about:blank")  # else only the part after # would change
    browser.get((folder / "index.html").as_uri() + state)


def find(browser, selector):
    return browser.find_element(By.CSS_SELECTOR, selector)


def find_all(browser, selector):
    return browser.find_elements(By.CSS_SELECTOR, selector)


def choose(browser, **values):
    for name, value in values.items():
        Select(find(browser, f"select[name={name}]")).select_by_value(value)


def shown(browser):
    """The ids of the cards, in order."""
    return browser.execute_script(
        "return [...document.querySelectorAll('.card')].map((card) => card.dataset.id)"
    )


def slide(browser, selector, value):
    script = """
        arguments[0].value = arguments[1];
        arguments[0].dispatchEvent(new Event("input", {bubbles: true}));
    """
    browser.execute_script(script, find(browser, selector), value)


def css(browser, element, name):
    return browser.execute_script(
        "return getComputedStyle(arguments[0])[arguments[1]]", element, name
    )


def pixels(browser, element):
    """(H, W, 3) uint8 BGR: what the element looks like."""
    return cv2.imdecode(np.frombuffer(element.screenshot_as_png, np.uint8), cv2.IMREAD_COLOR)


def opening_seconds(browser, folder):
    """Until the page is loaded and its first cards are there, by the browser's own clock."""
    open_page(browser, folder)
    script = """
        const [navigation] = performance.getEntriesByType("navigation");
        const [cards] = performance.getEntriesByName("gallery-shown");
        return Math.max(navigation.loadEventEnd, cards.startTime) / 1000;
    """
    WebDriverWait(browser, 30).until(
        lambda b: b.execute_script("return document.readyState") == "complete"
    )
    seconds = browser.execute_script(script)
    print(f"opened in {seconds:.2f} s", file=sys.stderr)
    return seconds


def contrast(browser, element):
    """Of an element's text with what is behind it, 1 to 21 (WCAG 2.2, 1.4.3)."""
    text = luminance(css(browser, element, "color"))
    behind = luminance(behind_of(browser, element))
    return (max(text, behind) + 0.05) / (min(text, behind) + 0.05)


def behind_of(browser, element):
    """The nearest background colour that is not transparent."""
    script = """
        let element = arguments[0];
        const colour = () => getComputedStyle(element).backgroundColor;
        while (element.parentElement && colour() === "rgba(0, 0, 0, 0)")
            element = element.parentElement;
        return colour();
    """
    return browser.execute_script(script, element)


def luminance(colour):
    """CSS rgb(...) -> relative luminance in [0, 1] (WCAG 2.2)."""
    channels = [int(part) / 255 for part in colour[colour.index("(") + 1 : -1].split(",")[:3]]
    linear = [
        each / 12.92 if each <= 0.04045 else ((each + 0.055) / 1.055) ** 2.4 for each in channels
    ]
    return float(np.dot(linear, [0.2126, 0.7152, 0.0722]))
