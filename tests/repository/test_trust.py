"""Nothing in the code runs what it reads: no unpickling, no eval, no YAML with objects.

The search works on syntax trees and finds references, not only calls: `pickle.loads`
passed as a value counts too.
"""

import ast

import pytest

from tests.helpers.stages import ROOT

FEWEST_FILES = 100  # far fewer files means that the search looks in the wrong place
FORBIDDEN = set(
    "eval exec pickle.load pickle.loads pickle.Unpickler joblib.load dill.load dill.loads "
    "cloudpickle.load cloudpickle.loads marshal.load marshal.loads shelve.open "
    "pandas.read_pickle yaml.load_all yaml.full_load yaml.full_load_all yaml.unsafe_load "
    "yaml.unsafe_load_all yaml.Loader yaml.FullLoader yaml.UnsafeLoader".split()
)
# name: whether a call of it is safe; a reference that is not a call never is
SAFE_CALLS = {
    "torch.load": lambda call: keyword(call, "weights_only") == "True",
    "yaml.load": lambda call: "yaml.SafeLoader" in (keyword(call, "Loader"), last_argument(call)),
}
# The workers of the user's own cluster check that they can load a task. The bytes are made
# by the same process, one line before, and tasks reach these workers as pickles anyway.
ALLOWED = {"pneumothorax/pipeline/cluster.py": ["pickle.loads", "pickle.loads"]}


def python_files():
    rooms = [(ROOT / name).rglob("*.py") for name in ("pneumothorax", "models", "benchmarks")]
    return sorted([*ROOT.glob("*.py"), *(path for room in rooms for path in room)])


def unsafe(source):
    """The unsafe names in a module's text, one for each reference to them."""
    tree = ast.parse(source)
    full_names = imported_names(tree)
    found = []
    calls = {id(node.func): node for node in ast.walk(tree) if isinstance(node, ast.Call)}
    for node in ast.walk(tree):
        if isinstance(node, ast.keyword) and node.arg == "allow_pickle":
            if ast.unparse(node.value) != "False":
                found.append("allow_pickle")
            continue
        if not isinstance(node, ast.Name | ast.Attribute):
            continue
        first, dot, rest = ast.unparse(node).partition(".")
        name = full_names.get(first, first) + dot + rest
        call = calls.get(id(node))
        is_safe = SAFE_CALLS.get(name)
        if name in FORBIDDEN or (is_safe and not (call and is_safe(call))):
            found.append(name)
    return found


def imported_names(tree):
    """name -> what it stands for: {"pd": "pandas", "load": "torch.load"}."""
    names = {"np": "numpy"}
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            names |= {alias.asname: alias.name for alias in node.names if alias.asname}
        elif isinstance(node, ast.ImportFrom) and node.module:
            names |= {a.asname or a.name: f"{node.module}.{a.name}" for a in node.names}
    return names


def keyword(call, name):
    """The text of a keyword's value, "" if the call has no such keyword."""
    return next((ast.unparse(word.value) for word in call.keywords if word.arg == name), "")


def last_argument(call):
    return ast.unparse(call.args[-1]) if len(call.args) > 1 else ""


def test_the_search_sees_the_whole_code():
    names = {path.relative_to(ROOT).as_posix() for path in python_files()}
    assert len(names) >= FEWEST_FILES
    assert {"02_train.py", "check_submission.py", "models/unet.py"} <= names
    assert {"pneumothorax/pipeline/cluster.py", "pneumothorax/compute/checkpoint.py"} <= names


@pytest.mark.parametrize("path", python_files(), ids=lambda path: str(path.relative_to(ROOT)))
def test_nothing_in_the_code_unpickles_or_runs_what_it_reads(path):
    allowed = ALLOWED.get(path.relative_to(ROOT).as_posix(), [])
    assert unsafe(path.read_text("utf-8")) == allowed


@pytest.mark.parametrize(
    "source",
    [
        "import pickle\npickle.load(file)",
        "import pickle\nclient.run(pickle.loads, needed)",  # passed as a value
        "from pickle import loads\nloads(data)",
        "from pickle import loads as read\nread(data)",
        "import pickle as p\np.Unpickler(file).load()",
        "import joblib\njoblib.load(path)",
        "import pandas as pd\npd.read_pickle(path)",
        "eval(text)",
        "run = exec",
        "import yaml\nyaml.load(text)",
        "import yaml\nyaml.load(text, Loader=yaml.BaseLoader)",
        "import yaml\nyaml.unsafe_load(text)",
        "import numpy as np\nnp.load(path, allow_pickle=True)",
        "import torch\ntorch.load(path)",
        "import torch\ntorch.load(path, weights_only=False)",
        "from torch import load\nload(path)",
        "import torch\nread = torch.load",
    ],
)
def test_unsafe_code_is_found(source):
    assert len(unsafe(source)) == 1


@pytest.mark.parametrize(
    "source",
    [
        "network.eval()",
        "import pickle\npickle.dumps(value)",
        "import yaml\nyaml.safe_load(text)",
        "import yaml\nyaml.load(text, Loader=yaml.SafeLoader)",
        "import yaml\nyaml.load(text, yaml.SafeLoader)",
        "import numpy as np\nnp.load(path, allow_pickle=False)",
        "import torch\ntorch.load(path, map_location='cpu', weights_only=True)",
    ],
)
def test_safe_code_is_not_found(source):
    assert unsafe(source) == []
