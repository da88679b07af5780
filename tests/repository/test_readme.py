"""The README tells the truth about files, links and flags."""

import re

import pytest
from distributed.cli import dask_scheduler, dask_worker

from tests.helpers.stages import ROOT

README = (ROOT / "README.md").read_text("utf-8")
STAGES = sorted(ROOT.glob("0[0-5]_*.py"))


def test_no_placeholder_is_left():
    assert re.findall(r"@[A-Z_]+@", README) == []


@pytest.mark.parametrize("name", sorted(set(re.findall(r"\]\(([^)#:]+)\)", README))))
def test_links_lead_somewhere(name):
    assert (ROOT / name).exists()


def test_every_file_of_the_tree_exists_and_every_module_is_listed():
    tree = README.split("## Where things are")[1].split("To follow one image")[0]
    named = set()
    for word in re.findall(r"[\w./*-]+\.(?:py|sh|yaml)", tree.replace(" ... ", " ")):
        found = [
            path
            for folder in (".", "pneumothorax", "models")
            for path in (ROOT / folder).glob(word)
        ]
        assert found, f"{word} does not exist"
        named.update(path.resolve() for path in found)
    modules = {*(ROOT / "pneumothorax").glob("*.py"), *(ROOT / "models").glob("*.py")}
    missing = {path.name for path in modules - named} - {"__init__.py"}
    assert missing == set()


def test_every_flag_named_is_a_flag_of_a_stage_or_of_dask():
    known = set(
        re.findall(
            r"--[a-z-]+", "".join(path.read_text("utf-8") for path in [*STAGES, ROOT / "test.sh"])
        )
    )
    for name in ("stage.py", "dicom_command.py"):
        known |= set(re.findall(r"--[a-z-]+", (ROOT / "pneumothorax" / name).read_text("utf-8")))
    known |= {"--help"}
    known |= {
        "--nnodes",
        "--nproc-per-node",
        "--rdzv-backend",
        "--rdzv-endpoint",
        "--max-restarts",
        "--logdir",
    }  # others'
    for command in (dask_scheduler.main, dask_worker.main):
        known |= {name for parameter in command.params for name in parameter.opts}
    assert set(re.findall(r"--[a-z][a-z-]+", README)) <= known
