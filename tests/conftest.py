"""States of an output folder that rooms share, the folder of real data, odd disks, a browser."""

import os

import pytest

from pneumothorax.pipeline import atomic
from tests.helpers.stages import REAL_DATA, TINY, run_all, run_stage, tiny_input

# Results are those of a CPU, also in the processes that tests start, and no card of this machine
# is refused because PyTorch cannot use it.
os.environ["CUDA_VISIBLE_DEVICES"] = ""

LONGEST = ("stages", "training", "compute", "prediction")  # rooms


def pytest_collection_modifyitems(items):
    """The rooms with the longest files come first: no process is left with one at the end."""
    items.sort(key=lambda item: item.path.parent.name not in LONGEST)


@pytest.fixture(scope="session")
def real_data():
    """The folder of real files; its README.md describes them."""
    if not (REAL_DATA / "labels").is_dir():
        pytest.skip(f"no real data at {REAL_DATA}; set PNEUMOTHORAX_REAL_DATA to its folder")
    return REAL_DATA


@pytest.fixture
def without_locks(monkeypatch):
    """Makes flock fail with an error number, as disks without locks do."""
    fcntl = pytest.importorskip("fcntl", reason="Windows has other locks")

    def refuse(number):
        def flock(*_):
            raise OSError(number, os.strerror(number))

        monkeypatch.setattr(fcntl, "flock", flock)
        atomic.say_once.cache_clear()

    return refuse


@pytest.fixture(scope="session")
def folded(tmp_path_factory):
    """An output folder after stage 01; tests leave it unchanged.

    24 images of 64 x 64, 12 positive, two folds; three test images.
    """
    folder = tmp_path_factory.mktemp("folded")
    made = tiny_input(folder / "input", train=24)
    output = folder / "output"
    flags = ["--input", made.folder, "--output", output, "--size", 64, "--workers", 1]
    run_stage("00_prepare_data.py", *flags)
    run_stage("01_make_folds.py", "--output", output, "--folds", 2)
    return output


@pytest.fixture(scope="session")
def config(tmp_path_factory):
    """The path of the config TINY."""
    path = tmp_path_factory.mktemp("config") / "tiny.yaml"
    path.write_text(TINY)
    return path


@pytest.fixture(scope="session")
def submitted(tmp_path_factory, config):
    """(input, output) of stages 00 to 04 with the run "tiny"; tests leave it unchanged."""
    folder = tmp_path_factory.mktemp("stages")
    made = tiny_input(folder / "input")
    run_all(made.folder, folder / "output", config, stages=range(5))
    return made, folder / "output"


@pytest.fixture
def without_pictures(monkeypatch):
    """No progress.png and no figures in the report: they take most of a tiny run's time."""
    monkeypatch.setattr("pneumothorax.training.history.write_progress", lambda *_, **__: None)
    monkeypatch.setattr("pneumothorax.report.illustrations.draw", lambda *_, **__: {})


@pytest.fixture(scope="module")
def browser():
    """Headless Chromium, for test modules that import tests.helpers.browsing."""
    from tests.helpers import browsing

    with browsing.chromium() as driver:
        yield driver


@pytest.fixture
def screen(browser):
    """A light screen of 1400 x 900 for a test, which must leave the console empty."""
    from tests.helpers import browsing

    browsing.set_screen(browser)
    browser.get("about:blank")
    browser.get_log("browser")
    yield
    assert browser.get_log("browser") == []
