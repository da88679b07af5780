"""notebooks/kaggle.ipynb on a folder that looks like /kaggle, in two sessions."""

import re
import shutil

import nbclient
import nbformat
import pytest

from pneumothorax.phantom.writing import write_dataset
from pneumothorax.pipeline import artifacts
from pneumothorax.submission import reading
from tests.helpers.installed import copy_of_the_repository
from tests.helpers.stages import ROOT

NOTEBOOK = ROOT / "notebooks" / "kaggle.ipynb"
RUN = artifacts.Run("tiny")
IN_A_MOMENT = 1e-6  # minutes: over before the first step ends


def notebook():
    return nbformat.read(NOTEBOOK, as_version=4)


def session(kaggle, config, *, max_minutes):
    """Run all cells in a session of `kaggle`, with an empty folder `working`; what they print."""
    cells = notebook()
    (settings,) = [c for c in cells.cells if "parameters" in c.metadata.get("tags", ())]
    settings.source += (
        f"\nKAGGLE, CONFIG = {str(kaggle)!r}, {str(config)!r}"
        f"\nSIZE, FOLDS, MAX_MINUTES = 64, 2, {max_minutes}"
    )
    (kaggle / "working").mkdir()
    client = nbclient.NotebookClient(
        cells, timeout=300, resources={"metadata": {"path": kaggle / "working"}}
    )
    client.execute()
    printed = [one.text for cell in cells.cells for one in cell.get("outputs", ()) if "text" in one]
    return "".join(printed)


@pytest.fixture(scope="module")
def stopped(tmp_path_factory, config):
    """(folder like /kaggle, what was printed) of a session without enough time for training."""
    kaggle = tmp_path_factory.mktemp("kaggle")
    data = kaggle / "input" / "siim"
    write_dataset(data, train_images=16, test_images=3, unlabelled_images=0, size=128, workers=1)
    copy_of_the_repository(kaggle / "input" / "code")
    (kaggle / "input" / "wheels").mkdir()
    (kaggle / "input" / "wheels" / "unused-1-py3-none-any.whl").touch()  # so pip stays offline
    return kaggle, session(kaggle, config, max_minutes=IN_A_MOMENT)


def test_a_session_without_enough_time_keeps_what_the_next_one_needs(stopped):
    kaggle, printed = stopped
    working = kaggle / "working"
    assert "16 training images" in printed
    assert "stopped; the state is saved" in printed
    assert printed.endswith("attach this version's output, and run the notebook again.\n")
    assert (working / RUN.fold(0).last).is_file()
    assert not (working / "cache").exists()
    assert not (working / "submission.csv").exists()


@pytest.mark.slow
def test_the_next_session_resumes_and_ends_with_a_checked_submission(stopped, tmp_path, config):
    kaggle = shutil.copytree(stopped[0], tmp_path / "kaggle")
    earlier = kaggle / "input" / "notebooks" / "earlier"
    shutil.move(kaggle / "working", earlier)
    printed = session(kaggle, config, max_minutes=60)
    working = kaggle / "working"
    assert "fold 0: resuming after epoch 0 and 1 batches" in printed
    assert f"{working / 'submission.csv'} is a valid submission" in printed
    manifest = artifacts.read_table(working, artifacts.MANIFEST)
    shapes = artifacts.image_shapes(manifest)
    submitted = reading.read(working / "submission.csv", shapes)
    assert submitted.problems == []
    test_ids = manifest.loc[manifest["split"] == artifacts.TEST, "image_id"]
    assert sorted(row.image_id for row in submitted.rows) == sorted(test_ids)
    assert (working / artifacts.REPORT_ZIP).is_file()
    assert not (working / "cache").exists()


def test_the_notebook_is_committed_as_nobody_has_run_it():
    cells = notebook()
    nbformat.validate(cells)
    code = [cell for cell in cells.cells if cell.cell_type == "code"]
    assert len(code) == 3
    assert [cell.outputs for cell in code] == [[], [], []]
    assert [cell.execution_count for cell in code] == [None, None, None]


def test_every_file_that_the_notebook_names_exists():
    text = "\n".join(cell.source for cell in notebook().cells)
    linked = re.findall(r"\]\(([^)]+)\)", text)
    assert linked
    assert [name for name in linked if not (NOTEBOOK.parent / name).is_file()] == []
    named = set(re.findall(r"(?<![\w/}])[\w/]+\.(?:py|yaml|toml)\b", text))
    assert {"00_prepare_data.py", "configs/ica_resunet.yaml", "pyproject.toml"} <= named
    assert [name for name in named if not (ROOT / name).is_file()] == []
