"""`pip install .` gives a package that works outside the repository, and says what it needs."""

import re
import tomllib

import pytest
import yaml
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

from tests.helpers import installed as helper
from tests.helpers.stages import ROOT

PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text("utf-8"))
# Requirements file -> the parts of pyproject.toml that it pins.
EXTRAS = {
    "requirements.txt": [],
    "requirements-dicom.txt": ["dicom"],
    "requirements-extra.txt": ["cluster", "onnx", "dicom-seg"],
    "requirements-small.txt": ["small"],
    "requirements-dev.txt": ["dev"],
}
ALONE = "requirements-predict.txt"


@pytest.fixture(scope="module")
def site(tmp_path_factory):
    return helper.installed(tmp_path_factory)


def test_a_models_package_of_the_user_is_not_shadowed(site):
    assert [path.name for path in site.iterdir() if path.suffix != ".dist-info"] == ["pneumothorax"]


def test_the_wheel_holds_every_file_of_the_package_and_of_the_networks(site, tmp_path):
    helper.copy_of_the_repository(tmp_path)
    for folder, place in (("pneumothorax", "pneumothorax"), ("models", "pneumothorax/models")):
        tracked = {
            path.relative_to(tmp_path / folder)
            for path in (tmp_path / folder).rglob("*")
            if path.is_file()
        }
        assert len(tracked) > 10
        assert {name for name in tracked if not (site / place / name).is_file()} == set()


def test_both_pages_find_their_templates(site, tmp_path):
    names = {
        "pneumothorax": ("gallery.js", "page.css"),
        "pneumothorax.report": ("report.html", "report.css", "report.js"),
        "pneumothorax.inference": ("predictions.html", "predictions.js"),
    }
    code = (
        "from pneumothorax import plotting; "
        f"print([len(plotting.template(p, n)) > 99 for p, names in {names}.items() for n in names])"
    )
    assert helper.run_python(code, site=site, folder=tmp_path).strip() == str([True] * 7)


def test_rle_and_metrics_load_no_slow_library(site, tmp_path):
    slow = {"torch", "pandas", "sklearn", "scipy", "cv2", "matplotlib", "pydantic", "joblib"}
    code = (
        "import sys; from pneumothorax import rle, metrics; "
        f"print(sorted({slow!r} & set(sys.modules)))"
    )
    assert helper.run_python(code, site=site, folder=tmp_path).strip() == "[]"


def pins(file):
    """{canonical name: version} of a requirements file, without those that it includes."""
    lines = (ROOT / file).read_text("utf-8").splitlines()
    requirements = [Requirement(line) for line in lines if line and line[0] not in "#-"]
    assert requirements
    versions = {}
    for requirement in requirements:
        exact = re.fullmatch(r"==([\w.]+)", str(requirement.specifier))
        assert exact, f"{file}: {requirement} is not pinned"
        versions[canonicalize_name(requirement.name)] = exact[1]
    return versions


@pytest.mark.parametrize("file", EXTRAS)
def test_pins_and_pyproject_agree(file):
    """The same packages in both, and each pin within the bound."""
    extras = PROJECT["project"]["optional-dependencies"]
    declared = [text for extra in EXTRAS[file] for text in extras[extra]]
    declared = declared or PROJECT["project"]["dependencies"]
    bounds = {canonicalize_name(Requirement(text).name): Requirement(text) for text in declared}
    bounds.pop("pneumothorax", None)  # dev includes other extras
    pinned = pins(file)
    assert pinned.keys() == bounds.keys()
    for name, version in pinned.items():
        assert bounds[name].specifier.contains(version), f"{name}=={version}: {bounds[name]}"


def test_bundles_are_predicted_with_the_tested_versions():
    """requirements-predict.txt stands alone: it is a choice of pins of the other files."""
    tested = pins("requirements.txt") | pins("requirements-extra.txt")
    assert pins(ALONE).items() <= tested.items()


def test_every_requirements_file_is_checked():
    assert {path.name for path in ROOT.glob("requirements*.txt")} == EXTRAS.keys() | {ALONE}


def test_the_smallest_python_is_the_same_everywhere():
    lowest = PROJECT["project"]["requires-python"].removeprefix(">=")
    compact = lowest.replace(".", "")
    assert PROJECT["tool"]["ruff"]["target-version"] == f"py{compact}"
    assert PROJECT["tool"]["mypy"]["python_version"] == lowest
    assert f"({lowest.replace('.', ', ')})" in (ROOT / "environment.sh").read_text("utf-8")


def test_pre_commit_uses_the_pinned_ruff():
    hooks = yaml.safe_load((ROOT / ".pre-commit-config.yaml").read_text("utf-8"))
    assert [repo["rev"] for repo in hooks["repos"]] == [f"v{pins('requirements-dev.txt')['ruff']}"]
