"""A bundle predicts what its run predicts, without PyTorch; anything else is refused."""

import importlib.metadata
import json
import random
import re
import runpy
import shutil
import stat
import subprocess
import sys
import zipfile

import numpy as np
import onnx
import pytest
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

from pneumothorax.errors import BadInput
from pneumothorax.inference import bundle, pytorch_run, results, sealed_zip
from pneumothorax.pipeline import artifacts, stage
from pneumothorax.prediction import exported
from tests.helpers import bundles as changed
from tests.helpers.dicoms import write_dicom
from tests.helpers.images import disc, noise
from tests.helpers.stages import ROOT, files_below, run_stage

MAIN = runpy.run_path(str(ROOT / "predict_radiographs.py"), run_name="stage")["main"]


def predict(path, folder, *flags):
    MAIN([str(word) for word in (path, "--to", folder, *flags)])


def rows_of(folder):
    return artifacts.read_table(folder, results.PREDICTIONS).set_index("image_id")


def bytes_of(folder):
    """Of all results; the journal says how they were computed."""
    found = files_below(folder)
    return {name: data for name, (data, _) in found.items() if name != results.JOURNAL}


# What a bundle predicts


@pytest.mark.parametrize("name", ["tiny", "blend"])
def test_results_are_those_of_the_run_to_the_byte_where_the_maps_are(
    two_runs, bundles, tmp_path, monkeypatch, name
):
    made, output = two_runs
    radiographs = made.folder / "stage_2_images"
    predict(radiographs, tmp_path / "bundle", "--model", bundles[name], "--dicom-seg")
    networks = iter(bundle.read(bundles[name]).networks())

    class Same:
        """The networks of the run, which give the maps of the bundle."""

        def __init__(self, *_):
            self.exported = next(networks)

        image_size = property(lambda self: self.exported.image_size)

        def maps(self, images):
            return self.exported.maps(images)

    monkeypatch.setattr(pytorch_run, "TorchNetworks", Same)
    run = ["--run", name, "--output", output, "--dicom-seg"]
    predict(radiographs, tmp_path / "run", *run)
    assert rows_of(tmp_path / "run")["area_px"].max() > 0
    assert len(list((tmp_path / "run" / "segmentations").iterdir())) == len(made.test_ids)
    assert bytes_of(tmp_path / "bundle") == bytes_of(tmp_path / "run")


def test_maps_differ_from_those_of_pytorch_by_at_most_one_step(two_runs, bundles):
    _, output = two_runs
    flags = ["x", "--to", "x", "--run", "blend", "--output", output, "--precision", "fp32"]
    parse = MAIN.__globals__["parse_args"]
    run = MAIN.__globals__["networks_of_run"](parse([str(flag) for flag in flags]))
    opened = bundle.read(bundles["blend"])
    assert opened.settled.runs == run.settled.runs
    spread = 0
    for ours, theirs in zip(opened.networks(), run.load(), strict=True):
        size = theirs.image_size
        assert ours.image_size == size
        images = np.stack([noise(seed, size) for seed in range(5)])
        images[disc(size, size // 2, size // 3, size // 8) == np.ones((5, 1, 1))] = 230
        maps, expected = (one.maps(images)[0] * 255 for one in (ours, theirs))
        assert np.abs(np.rint(maps) - np.rint(expected)).max() <= 1
        spread = max(spread, np.ptp(expected))
    assert spread > 20


def test_a_blend_of_runs_gives_the_masks_of_its_submission(two_runs, tmp_path):
    made, output = two_runs
    predict(made.folder / "stage_2_images", tmp_path, "--run", "blend", "--output", output)
    rows = (output / artifacts.Submission("blend").csv).read_text("utf-8").splitlines()[1:]
    expected = dict(row.split(",") for row in rows)
    assert rows_of(tmp_path)["rle"].to_dict() == expected
    assert set(expected.values()) != {"-1"}


def test_nothing_is_computed_again_by_the_same_command(two_runs, bundles, tmp_path, monkeypatch):
    made, _ = two_runs
    command = made.folder / "stage_2_images", tmp_path, "--model", bundles["tiny"]
    predict(*command)
    monkeypatch.setattr(exported, "session", None)
    predict(*command)
    assert len(rows_of(tmp_path)) == len(made.test_ids)


# Without PyTorch

SMALL_ENVIRONMENT = """
import runpy, sys

class Absent:
    def find_spec(self, name, path=None, target=None):
        if name.partition(".")[0] in ABSENT:
            raise ModuleNotFoundError(f"{name} is not in requirements-predict.txt")

ABSENT = set(sys.argv[1].split(","))
sys.meta_path.insert(0, Absent())
"""
PREDICT = """
main = runpy.run_path("predict_radiographs.py", run_name="stage")["main"]
main(sys.argv[2:])
"""


def absent_modules():
    """The modules of every installed package that requirements-predict.txt does not bring."""
    lines = (ROOT / "requirements-predict.txt").read_text("utf-8").splitlines()
    pending = [Requirement(line).name for line in lines if line and line[0] != "#"]
    brought = set()
    while pending:
        name = canonicalize_name(pending.pop())
        if name not in brought:
            brought.add(name)
            needed = map(Requirement, importlib.metadata.requires(name) or ())
            pending += [one.name for one in needed if not one.marker or one.marker.evaluate()]
    packages = importlib.metadata.packages_distributions().items()
    absent = {
        module
        for module, owners in packages
        if not brought & {canonicalize_name(owner) for owner in owners}
    }
    return absent - {"pneumothorax", "models"} - sys.stdlib_module_names


def in_small_environment(code, folder, *arguments):
    """What the code prints in an empty folder with the script and the package alone."""
    absent = absent_modules()
    assert {"torch", "pandas", "scipy", "sklearn", "pydantic", "jinja2", "joblib"} <= absent
    shutil.copy(ROOT / "predict_radiographs.py", folder)
    copied = shutil.copytree(
        ROOT / "pneumothorax",
        folder / "pneumothorax",
        ignore=shutil.ignore_patterns("__pycache__"),
        dirs_exist_ok=True,
    )
    assert copied.is_dir()
    words = [sys.executable, "-c", SMALL_ENVIRONMENT + code, ",".join(sorted(absent)), *arguments]
    done = subprocess.run(
        [str(word) for word in words], cwd=folder, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


def test_a_bundle_needs_no_package_but_those_of_requirements_predict(two_runs, bundles, tmp_path):
    made, _ = two_runs
    radiographs = made.folder / "stage_2_images"
    flags = ["--model", bundles["blend"], "--dicom-seg"]
    predict(radiographs, tmp_path / "here", *flags)
    (tmp_path / "small").mkdir()
    words = (radiographs, "--to", tmp_path / "there", *flags)
    printed = in_small_environment(PREDICT, tmp_path / "small", *words)
    assert "3 images, " in printed
    assert bytes_of(tmp_path / "there") == bytes_of(tmp_path / "here")


def test_the_finder_of_absent_packages_works(tmp_path):
    code = "\ntry:\n    import torch\nexcept ImportError as error:\n    print(error)"
    printed = in_small_environment(code, tmp_path)
    assert printed.strip() == "torch is not in requirements-predict.txt"


# What is in a bundle


def test_a_bundle_is_a_zip_file_that_anybody_can_open(two_runs, bundles):
    made, _ = two_runs
    with zipfile.ZipFile(bundles["tiny"]) as archive:
        assert archive.namelist() == ["model.json", "MODEL_CARD.md", "network.onnx"]
        assert archive.testzip() is None
        body = json.loads(archive.read("model.json"))
        assert "not a medical device" in archive.read("MODEL_CARD.md").decode()
    assert body["format"] == 1
    assert [run["folds"] for run in body["runs"]] == [[0, 1]]
    names = zipfile.ZipFile(bundles["blend"]).namelist()
    assert names[2:] == ["network-second.onnx", "network-tiny.onnx"]
    data = bundles["blend"].read_bytes()
    ids = [*made.masks, *made.test_ids, *made.patients.values()]
    assert [one for one in ids if one.encode() in data] == []


def test_equal_content_gives_equal_bytes(two_runs, bundles, tmp_path, capsys):
    _, output = two_runs
    again = tmp_path / "again.zip"
    run_stage("export_model.py", "--run", "tiny", "--output", output, "--bundle", again)
    assert again.read_bytes() == bundles["tiny"].read_bytes()
    assert f"wrote {again}: " in capsys.readouterr().out


def test_facts_and_card_are_kept(bundles, tmp_path):
    opened = bundle.read(bundles["tiny"])
    graph = changed.members_of(bundles["tiny"].read_bytes())["network.onnx"]
    facts = {"images": 12, "scores": {"siim_dice": [0.5, None]}}
    path = tmp_path / "other.zip"
    bundle.write(path, opened.settled, {"tiny": graph}, facts=facts, card="# Ä\n")
    assert bundle.read(path).facts == facts
    assert changed.members_of(path.read_bytes())["MODEL_CARD.md"] == "# Ä\n".encode()


def test_weights_of_8_bits_make_a_smaller_bundle_that_says_what_they_change(
    two_runs, bundles, tmp_path, capsys
):
    made, output = two_runs
    path = tmp_path / "small.zip"
    flags = ["--run", "blend", "--output", output, "--weights", "int8", "--bundle", path]
    run_stage("export_model.py", *flags)
    whole, small = bundle.read(bundles["blend"]), bundle.read(path)
    assert path.stat().st_size < 0.8 * bundles["blend"].stat().st_size
    assert small.settled.version != whole.settled.version  # one's results are not the other's
    card = changed.members_of(path.read_bytes())["MODEL_CARD.md"].decode()
    printed = capsys.readouterr().out
    for name in ("tiny", "second"):
        found = small.facts["networks"][name]["int8"]
        assert found["images"] == min(16, len(made.masks))
        assert 0 <= found["mean"] <= found["largest"] < 30
        assert f"{name} with int8 weights: the probability maps of {found['images']}" in printed
        assert f"by at most {found['largest']}/255" in printed
        assert f"The weights of {name} are stored as 8-bit integers" in card
    assert "int8" not in whole.facts["networks"]["tiny"]
    predict(made.folder / "stage_2_images", tmp_path / "to", "--model", path)
    assert len(rows_of(tmp_path / "to")) == len(made.test_ids)


def test_a_bundle_too_large_to_be_opened_is_not_written(bundles, tmp_path, monkeypatch):
    opened = bundle.read(bundles["tiny"])
    graph = changed.members_of(bundles["tiny"].read_bytes())["network.onnx"]
    monkeypatch.setattr(sealed_zip, "MOST_BYTES", len(graph))
    with pytest.raises(BadInput, match="fewer folds"):
        bundle.write(tmp_path / "x.zip", opened.settled, {"tiny": graph}, facts={}, card="")
    assert not (tmp_path / "x.zip").exists()


# What is no bundle


def cuts(data, rng):
    for at in (0, 1, len(data) - 1, *rng.sample(range(len(data)), 37)):
        yield f"cut at {at}", data[:at]
    for at in rng.sample(range(1, len(data)), 5):
        yield f"without the first {at} bytes", data[at:]
    yield "one byte more", data + b"0"
    yield "one byte before", b"0" + data


def flips(data, rng):
    start, end = data.index(changed.CENTRAL), len(data)
    places = rng.sample(range(start), 40) + rng.sample(range(start, end), 20)
    for at in places:
        other = bytearray(data)
        other[at] ^= 1 << rng.randrange(8)
        yield f"flipped at {at}", bytes(other)


def sealed_flips(data, rng):
    """In the card and the networks, whose hashes are in model.json."""
    members = changed.members_of(data)
    for name in ("MODEL_CARD.md", "network.onnx"):
        for at in rng.sample(range(len(members[name])), 10):
            other = bytearray(members[name])
            other[at] ^= 1 << rng.randrange(8)
            yield f"{name} flipped at {at}", changed.zipped({**members, name: bytes(other)}.items())


def other_members(data):
    members = changed.members_of(data)
    items = list(members.items())
    model, card, network = items
    names, contents = zip(*items, strict=True)
    for order in ([1, 0, 2], [2, 1, 0], [0, 2, 1], [1, 2, 0], [2, 0, 1]):
        swapped = [(name, contents[at]) for name, at in zip(names, order, strict=True)]
        yield f"swapped {order}", changed.zipped(swapped)
    for number in range(3):
        yield f"without {names[number]}", changed.zipped(items[:number] + items[number + 1 :])
        yield f"{names[number]} twice", changed.zipped([*items, items[number]])
        empty = [(name, b"" if name == names[number] else content) for name, content in items]
        yield f"{names[number]} empty", changed.zipped(empty)
    yield "an unlisted member", changed.zipped([*items, ("notes.txt", b"")])
    evil = ["../evil.txt", "/tmp/evil.txt", "a/../../evil.txt", "C:\\evil.txt", "..\\evil.txt", "."]
    for name in evil:
        yield f"{name!r} unlisted", changed.zipped([*items, (name, b"evil")])
        yield f"{name!r} listed", changed.zipped(changed.described({**members, name: b"evil"}))
        moved = {model[0]: model[1], card[0]: card[1], name: network[1]}
        yield f"the network as {name!r}", changed.zipped(changed.described(moved))
    for method in (zipfile.ZIP_DEFLATED, zipfile.ZIP_BZIP2, zipfile.ZIP_LZMA):
        yield f"compressed {method}", changed.zipped(items, method=method)
    for name, offset, form, value in (
        ("encrypted", 8, "<H", 1),
        ("deflated", 10, "<H", 8),
        ("larger inside", 24, "<L", 2**32 - 1),
        ("larger", 20, "<L", 2**31),
        ("with an extra field", 30, "<H", 9),
        ("elsewhere", 42, "<L", 7),
        ("a long name", 28, "<H", 2**16 - 1),
        ("a symbolic link", 40, "<H", stat.S_IFLNK | 0o777),
    ):
        yield name, changed.with_field(data, changed.CENTRAL, offset, form, value)
    for name, offset, form, value in (
        ("another signature", 0, "<L", 7),
        ("encrypted", 6, "<H", 1),
        ("deflated", 8, "<H", 8),
        ("another CRC-32", 14, "<L", 0),
        ("smaller", 18, "<L", 5),
        ("a shorter name", 26, "<H", 3),
        ("an extra field", 28, "<H", 4),
        ("another name", 30, "<B", ord("X")),
    ):
        local = changed.with_field(data, changed.LOCAL, offset, form, value)
        yield f"{name} by the local header alone", local
    both = changed.with_field(data, changed.CENTRAL, 16, "<L", 0)
    yield "another CRC-32", changed.with_field(both, changed.LOCAL, 14, "<L", 0)
    for name, offset, form, value in (
        ("more entries", 10, "<H", 2**16 - 1),
        ("fewer entries", 10, "<H", 1),
        ("a long directory", 12, "<L", 2**32 - 1),
        ("an early directory", 16, "<L", 0),
        ("the second disk", 4, "<H", 1),
        ("a directory on the second disk", 6, "<H", 1),
        ("entries on other disks", 8, "<H", 1),
    ):
        yield name, changed.with_field(data, changed.END, offset, form, value)


def other_models(data):
    """model.json says something impossible."""
    members = changed.members_of(data)

    def changing(**values):
        return changed.zipped(changed.described(members, lambda body: body.update(values)))

    body = json.loads(members["model.json"])
    [run] = body["runs"]
    good = body["thresholds"]
    for name in ("format", "name", "runs", "thresholds", "calibration", "cache_size", "phantoms"):
        yield f"{name} null", changing(**{name: None})
        without = changed.described(members, lambda body, name=name: body.pop(name))
        yield f"without {name}", changed.zipped(without)
    for values in (
        {"format": 2},
        {"format": 10**30},
        {"format": "1"},
        {"format": 1.0},
        {"format": True},
        {"runs": []},
        {"runs": [run, run]},
        {"runs": [{**run, "weight": -1}]},
        {"runs": [{**run, "weight": 0.5}]},
        {"runs": [{**run, "weight": float("nan")}]},
        {"runs": [{**run, "weight": "1"}]},
        {"runs": [{**run, "weight": True}]},
        {"runs": [{**run, "name": "../evil"}]},
        {"runs": [{**run, "image_size": 96}]},
        {"runs": [{**run, "image_size": str(run["image_size"])}]},
        {"runs": [{**run, "folds": "none"}]},
        {"runs": [{**run, "folds": "012"}]},
        {"runs": [{**run, "folds": [0.5]}]},
        {"runs": [{**run, "folds": [-1]}]},
        {"runs": [{**run, "folds": []}]},
        {"name": "Doe^Jane\n"},
        {"cache_size": 10**9},
        {"cache_size": -5},
        {"cache_size": float("inf")},
        {"cache_size": "64"},
        {"cache_size": 64.5},
        {"cache_size": True},
        {"thresholds": {**good, "top": "0.5"}},
        {"thresholds": {**good, "top": 2}},
        {"thresholds": {**good, "evil": 1}},
        {"thresholds": {**good, "fill_holes": "no"}},
        {"thresholds": {**good, "min_area": True}},
        {"thresholds": {**good, "min_probability": "0"}},
        {"calibration": {"slope": "one", "intercept": 0}},
        {"calibration": {"slope": "nan", "intercept": 0}},
        {"calibration": {"slope": True, "intercept": 0}},
        {"calibration": {"slope": 10**400, "intercept": 0}},
        {"card": 5},
        {"version": "\x00"},
    ):
        yield str(values), changing(**values)
    infinite = re.sub(rb'("slope"): [^,}\s]+', rb"\1: 1e999", members["model.json"], count=1)
    yield "slope 1e999", changed.zipped({**members, "model.json": infinite}.items())
    for text in (b"[" * 10**5, b"{}", b"\xff", b"[1]", b"1" * 5000, b'"text"'):
        other = {**members, "model.json": text}
        yield f"model.json is {text[:9]!r}", changed.zipped(other.items())


SIZE = 64  # of the images


def giving(output, node, *, n="N"):
    """A serialised graph that takes images as a run's does: ONNX's text of its output."""
    taken = f"uint8[{n},1,{SIZE},{SIZE}] {exported.IMAGES}"
    nodes = f"as_float = Cast<to=1>({exported.IMAGES}) {exported.PROBABILITY} = {node}"
    text = f'<ir_version: 8, opset_import: ["": 13]> g ({taken}) => ({output}) {{ {nodes} }}'
    return onnx.parser.parse_model(text).SerializeToString()


def other_networks(data):
    """Networks with the right hash that onnxruntime must not run, or cannot."""
    members = changed.members_of(data)

    def holding(graph):
        return changed.zipped(changed.described({**members, "network.onnx": graph}))

    def model():
        return onnx.load_model_from_string(members["network.onnx"])

    elsewhere, functions, foreign, branches, renamed, tall = (model() for _ in range(6))
    tensor = elsewhere.graph.initializer[0]
    tensor.ClearField("raw_data")
    tensor.data_location = onnx.TensorProto.EXTERNAL
    tensor.external_data.add(key="location", value="../../etc/passwd")
    functions.functions.add(name="f", domain="own")
    foreign.opset_import.add(domain="com.microsoft", version=1)
    inner = onnx.helper.make_graph([], "inner", [], [])
    branches.graph.node[0].attribute.append(onnx.helper.make_attribute("body", inner))
    renamed.graph.output[0].name = "something"
    tall.graph.input[0].type.tensor_type.shape.dim[2].dim_value = 32
    for name, one in {
        "elsewhere": elsewhere,
        "functions": functions,
        "foreign": foreign,
        "branches": branches,
        "renamed": renamed,
        "tall": tall,
    }.items():
        yield f"network: {name}", holding(one.SerializeToString())
    foreign_node = model()
    foreign_node.graph.node[0].domain = "com.microsoft"
    yield "network: a node of another domain", holding(foreign_node.SerializeToString())
    given = {
        "one number": ("float[N,1,1,1] probability", "ReduceMax<axes=[2, 3]>(as_float)"),
        "two maps": (f"float[N,2,{SIZE},{SIZE}] probability", "Concat<axis=1>(as_float, as_float)"),
        "whole numbers": (f"int32[N,1,{SIZE},{SIZE}] probability", "Cast<to=6>(images)"),
        "no map": ("float[N] probability", "ReduceMax<axes=[1, 2, 3], keepdims=0>(as_float)"),
    }
    for name, words in given.items():
        yield f"network: {name}", holding(giving(*words))
    fixed = f"float[5,1,{SIZE},{SIZE}] probability", "Identity(as_float)"
    yield "network: five images", holding(giving(*fixed, n="5"))
    graph = members["network.onnx"]
    for other in (graph[:-1], graph[1:], graph[: len(graph) // 2], b"\xff" * 100, b"text", b""):
        yield f"network: {len(other)} bytes", holding(other)


@pytest.mark.filterwarnings("ignore:Duplicate name")
def test_200_changed_bundles_are_refused_with_a_sentence(bundles, tmp_path, capsys, monkeypatch):
    data = bundles["tiny"].read_bytes()
    rng = random.Random(0)
    radiograph = write_dicom(tmp_path / "in" / "a.dcm", noise(1))
    (tmp_path / "cwd").mkdir()
    monkeypatch.chdir(tmp_path / "cwd")
    path, to = tmp_path / "changed.zip", tmp_path / "to"
    kinds = (
        cuts(data, rng),
        flips(data, rng),
        sealed_flips(data, rng),
        other_members(data),
        other_models(data),
        other_networks(data),
    )
    n, seen = 0, {}
    for name, content in (one for kind in kinds for one in kind):
        assert content != data, name
        path.write_bytes(content)
        before = {*tmp_path.rglob("*")} | {tmp_path / "to"}
        code = stage.exit_code(lambda: predict(radiograph, to, "--model", path))
        printed = capsys.readouterr().err.strip()
        assert code == 3, f"{name}: {printed}"
        assert re.fullmatch(
            r"error: \S*changed\.zip (cannot be used|has format) .{20,400}", printed
        ), name
        assert {one for one in {*tmp_path.rglob("*")} - before if to not in one.parents} == set()
        n, seen[name] = n + 1, printed
    assert n >= 200
    assert "install a newer version" in seen["{'format': 2}"]
    assert "read numbers from another file" in seen["network: elsewhere"]
    assert "operators that are not ONNX's own" in seen["network: foreign"]
    assert not (to / results.PREDICTIONS.path).exists()


@pytest.mark.parametrize(
    "node, message",
    [
        ("Identity(as_float)", "not finite probabilities"),  # 0 to 255
        ("Log(as_float)", "not finite probabilities"),
        ("Expand(as_float, sizes)", "onnxruntime cannot compute the networks"),
    ],
)
def test_networks_that_give_no_probabilities_are_refused_when_they_predict(
    bundles, tmp_path, node, message
):
    model = onnx.load_model_from_string(giving(f"float[N,1,{SIZE},{SIZE}] probability", node))
    sizes = np.array([2**40, 1, SIZE, SIZE])  # 16 PiB
    model.graph.initializer.append(onnx.numpy_helper.from_array(sizes, "sizes"))
    members = changed.members_of(bundles["tiny"].read_bytes())
    changing = changed.described({**members, "network.onnx": model.SerializeToString()})
    (tmp_path / "changed.zip").write_bytes(changed.zipped(changing))
    radiograph = write_dicom(tmp_path / "in" / "a.dcm", noise(1))
    with pytest.raises(BadInput, match=message):
        predict(radiograph, tmp_path / "to", "--model", tmp_path / "changed.zip")
    assert not (tmp_path / "to" / results.PREDICTIONS.path).exists()


MEMORY = """
import re, sys
from pathlib import Path
from pneumothorax.errors import BadInput
from pneumothorax.inference import bundle

def peak_mib():
    return int(re.search(r"VmHWM:\\s+(\\d+)", Path("/proc/self/status").read_text())[1]) / 1024

before = peak_mib()
for path in map(Path, sys.argv[1:]):
    try:
        bundle.read(path).networks()
    except BadInput as error:
        print("refused", error)
print(peak_mib() - before)
"""


@pytest.mark.skipif(sys.platform != "linux", reason="peak memory is counted as Linux does")
@pytest.mark.filterwarnings("ignore:Duplicate name")
def test_bombs_are_refused_before_they_take_memory(bundles, tmp_path):
    members = changed.members_of(bundles["tiny"].read_bytes())
    zeros = bytes(200 << 20)
    compressed = changed.zipped(
        [*members.items(), ("MODEL_CARD.md", zeros)], method=zipfile.ZIP_DEFLATED
    )
    entries = changed.zipped((f"{number}", b"") for number in range(60000))
    text = {**members, "model.json": b'{"a": ' + b"[0," * (5 << 20)}
    bombs = {
        "compressed": compressed,
        "entries": entries,
        "json": changed.zipped(text.items()),
    }
    paths = [tmp_path / f"{name}.zip" for name in (*bombs, "sparse")]
    for path, data in zip(paths, bombs.values(), strict=False):
        path.write_bytes(data)
    with open(paths[-1], "wb") as file:
        file.truncate(2**40)
    code = [sys.executable, "-c", MEMORY, *paths]
    done = subprocess.run(
        [str(word) for word in code], cwd=ROOT, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    *refused, grown = done.stdout.splitlines()
    assert [line.split()[0] for line in refused] == ["refused"] * 4
    assert float(grown) < 100


def test_missing_files_and_folders_are_refused(tmp_path):
    for path in (tmp_path / "absent.zip", tmp_path):
        with pytest.raises(BadInput, match="does not exist, or is not a file"):
            bundle.read(path)


@pytest.mark.parametrize(
    "flags, message",
    [
        (["--run", "tiny"], "give --run or --model, not both"),
        (["--device", "cuda"], "drop --device and --precision"),
        (["--precision", "bf16"], "drop --device and --precision"),
    ],
)
def test_flags_that_a_bundle_cannot_follow_are_usage_errors(flags, message, capsys):
    with pytest.raises(SystemExit) as caught:
        predict("radiographs", "to", "--model", "model.zip", *flags)
    assert caught.value.code == 2
    assert message in capsys.readouterr().err


def test_a_missing_onnxruntime_is_a_usage_error_with_the_command(monkeypatch, capsys):
    monkeypatch.setitem(sys.modules, "onnxruntime", None)
    with pytest.raises(SystemExit) as caught:
        predict("radiographs", "to", "--model", "model.zip")
    assert caught.value.code == 2
    assert "python -m pip install -r requirements-predict.txt" in capsys.readouterr().err


def test_a_bundle_of_some_folds_is_a_usage_error(capsys):
    with pytest.raises(SystemExit) as caught:
        run_stage("export_model.py", "--fold", 0, "--bundle", "x.zip")
    assert caught.value.code == 2
    assert "drop --fold" in capsys.readouterr().err
