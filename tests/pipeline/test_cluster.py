"""Stages 00 and 04 on a Dask cluster: the bytes of a local run, even if workers die."""

import functools
import http.server
import json
import os
import re
import shutil
import signal
import subprocess
import sys
import threading
import time
from dataclasses import dataclass, field, replace

import distributed
import joblib
import pytest

from pneumothorax.data import jobs, one_image, prepare
from pneumothorax.data.layouts.run_lengths import RunLengths
from pneumothorax.errors import BadInput
from pneumothorax.pipeline import artifacts, engine, journal, stage
from pneumothorax.pipeline import cluster as dask_cluster
from pneumothorax.pipeline.engine import Engine
from tests.helpers.stages import ROOT, run_stage, tiny_input

STAGE = "00_prepare_data.py"
ADDRESS = "tcp://127.0.0.1:8786"  # where no test listens


@dataclass
class Cluster:
    """A scheduler and its workers, started as in the README."""

    address: str
    processes: list[subprocess.Popen] = field(default_factory=list)

    def workers(self):
        """The process ids of the workers."""
        with distributed.Client(self.address) as client:
            return set(client.run(os.getpid).values())

    def add(self, number, *, place=ROOT):
        """Start workers in the folder `place`, and wait for them."""
        command = ("worker", self.address, "--nworkers", str(number), "--nthreads", "1")
        self.processes.append(dask(*command, folder=place))
        with distributed.Client(self.address) as client:
            client.wait_for_workers(number, timeout=60)

    def stop(self):
        for process in reversed(self.processes):
            process.terminate()
            process.wait(timeout=30)


def dask(*arguments, folder=ROOT):
    command = [sys.executable, "-m", "dask", *arguments, "--no-dashboard"]
    quiet = {"stdout": subprocess.DEVNULL, "stderr": subprocess.DEVNULL}
    return subprocess.Popen(command, cwd=folder, env=os.environ | {"OMP_NUM_THREADS": "1"}, **quiet)


def started(folder, *, workers, place=ROOT):
    """A cluster of `workers` workers whose scheduler runs in the folder `place`."""
    file = folder / "scheduler.json"
    process = dask(
        "scheduler", "--host", "127.0.0.1", "--port", "0", "--scheduler-file", file, folder=place
    )
    deadline = time.monotonic() + 60
    while not (file.exists() and file.read_text().endswith("}")) and time.monotonic() < deadline:
        time.sleep(0.05)
    cluster = Cluster(json.loads(file.read_text())["address"], [process])
    if workers:
        cluster.add(workers)
    return cluster


@pytest.fixture(scope="module")
def cluster(tmp_path_factory):
    made = started(tmp_path_factory.mktemp("cluster"), workers=2)
    yield made
    made.stop()


@pytest.fixture(scope="module")
def alone(tmp_path_factory):
    """(input, output) of stage 00 without a cluster; one of 25 files is bad."""
    folder = tmp_path_factory.mktemp("alone")
    made = tiny_input(folder / "input", train=20)
    (made.folder / "text.dcm").write_text("no image")
    prepared(made.folder, folder / "output", "--workers", 1)
    return made.folder, folder / "output"


@pytest.fixture
def not_here(monkeypatch):
    """Work in this process's own pool fails; one file per task."""
    monkeypatch.setattr(joblib, "Parallel", None)
    monkeypatch.setattr(prepare, "FILES_PER_TASK", 1)


def prepared(source, output, *flags):
    run_stage(STAGE, "--input", source, "--output", output, "--size", 64, "--max-bad", 1, *flags)


def contents(output):
    """{path: bytes} of all files; the lines of journals sorted."""
    found = {
        path.relative_to(output): path.read_bytes() for path in output.rglob("*") if path.is_file()
    }
    return {
        path: sorted(data.splitlines()) if path.suffix == ".jsonl" else data
        for path, data in found.items()
        if ".locks" not in path.parts
    }


def on_append(monkeypatch, number, act):
    """Call `act` when the journal gets its n-th entry."""
    real, names = journal.Journal.append, []

    @functools.wraps(real)
    def append(self, name, entry):
        names.append(name)
        if len(names) == number:
            act()
        real(self, name, entry)

    monkeypatch.setattr(journal.Journal, "append", append)


# Stage 00


def test_stage_00_gives_the_bytes_of_one_machine(alone, cluster, not_here, tmp_path, monkeypatch):
    source, output = alone
    monkeypatch.chdir(tmp_path)  # the workers run elsewhere
    prepared(os.path.relpath(source), "output", "--scheduler", cluster.address)
    assert contents(tmp_path / "output") == contents(output)


def test_a_second_run_makes_no_image_again(alone, cluster, not_here, tmp_path):
    source, output = alone
    shutil.copytree(output, tmp_path / "output")
    images = tmp_path / "output" / "cache" / "64" / "images"
    before = {path: path.stat().st_mtime_ns for path in images.iterdir()}
    prepared(source, tmp_path / "output", "--scheduler", cluster.address)
    assert {path: path.stat().st_mtime_ns for path in images.iterdir()} == before
    assert contents(tmp_path / "output") == contents(output)


def test_verify_on_a_cluster_writes_nothing(alone, cluster, not_here, tmp_path, capsys):
    prepared(alone[0], tmp_path / "output", "--verify", "--scheduler", cluster.address)
    assert "20 training images" in capsys.readouterr().out
    assert not (tmp_path / "output").exists()


def test_a_worker_killed_in_the_middle_changes_no_byte(
    alone, cluster, not_here, tmp_path, monkeypatch
):
    source, output = alone
    killed = sorted(cluster.workers())[0]
    on_append(monkeypatch, 3, lambda: os.kill(killed, signal.SIGKILL))
    prepared(source, tmp_path, "--scheduler", cluster.address)
    assert contents(tmp_path) == contents(output)
    assert killed not in cluster.workers()


def test_an_interrupted_run_keeps_its_results_and_leaves_no_work_on_the_cluster(
    alone, cluster, not_here, tmp_path, monkeypatch
):
    source, output = alone

    def interrupt():
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        on_append(patch, 6, interrupt)
        with pytest.raises(KeyboardInterrupt):
            prepared(source, tmp_path, "--scheduler", cluster.address)
    with distributed.Client(cluster.address) as client:
        deadline = time.monotonic() + 120
        while any(client.processing().values()) and time.monotonic() < deadline:
            time.sleep(0.05)
        assert not any(client.processing().values())
    assert len(journal.read(tmp_path / artifacts.Cache(64).journal)) == 5
    prepared(source, tmp_path, "--scheduler", cluster.address)
    assert contents(tmp_path) == contents(output)


def test_a_worker_that_sees_other_tables_stops_the_run_and_rejects_no_file(alone, tmp_path):
    source, _ = alone
    layout = RunLengths("siim-dicom", "by its name", source, labels=source / "train-rle.csv")
    job = jobs.plan(layout, size=64, salt="", output=tmp_path)
    image = next((source / "dicom-images-train").rglob("*.dcm"))
    assert "row" in one_image.prepare(image, source, job, None)
    elsewhere = replace(job, layout=replace(layout, labels=source / "gone.csv"))
    with pytest.raises(BadInput, match=r"gone\.csv.*seen from") as caught:
        one_image.prepare(image, source, elsewhere, None)
    assert type(caught.value) is BadInput  # not a rejection


# Stage 04


def test_stage_04_gives_the_bytes_of_one_machine(
    submitted, cluster, not_here, tmp_path, monkeypatch
):
    _, alone = submitted
    shutil.copytree(alone, tmp_path / "output")
    shutil.rmtree(tmp_path / "output" / "submissions")
    monkeypatch.chdir(tmp_path)
    run_stage("04_submit.py", "--run", "tiny", "--output", "output", "--scheduler", cluster.address)
    assert contents(tmp_path / "output") == contents(alone)


def test_a_damaged_probability_map_is_named_by_the_worker_that_reads_it(
    submitted, cluster, not_here, tmp_path
):
    shutil.copytree(submitted[1], tmp_path / "output")
    path = next((tmp_path / "output" / "runs" / "tiny" / "oof").iterdir())
    path.write_bytes(b"")
    flags = ["--output", tmp_path / "output", "--overwrite", "--scheduler", cluster.address]
    with pytest.raises(
        BadInput, match=re.escape(f"{path} is not the map that 03_predict.py wrote")
    ):
        run_stage("04_submit.py", "--run", "tiny", *flags)


# The engine. Nested functions travel as code: the workers cannot import the tests.


def test_results_are_in_order_and_come_from_the_workers(cluster):
    def square(number):
        return number * number, os.getpid()

    calls = [(number,) for number in range(50)]
    results = engine.in_order(
        square, calls, Engine(1, cluster.address), per_task=3, title="squares"
    )
    assert [number for number, _ in results] == [number * number for number in range(50)]
    assert {process for _, process in results} <= cluster.workers()
    assert engine.in_order(square, [], Engine(1, cluster.address), per_task=3, title="none") == []


def test_the_work_of_a_killed_worker_is_done_by_another(cluster, tmp_path):
    def die_once(number, mark):
        if number == 5 and not mark.exists():
            mark.touch()
            os.kill(os.getpid(), signal.SIGKILL)
        return number

    calls = [(number, tmp_path / "died") for number in range(12)]
    assert engine.in_order(
        die_once, calls, Engine(1, cluster.address), per_task=2, title="once"
    ) == [*range(12)]
    assert (tmp_path / "died").exists()


def test_a_local_process_that_dies_is_an_error_that_says_what_to_do():
    def die(number):
        if number == 3:
            os.kill(os.getpid(), signal.SIGKILL)
        return number

    with pytest.raises(BadInput, match=r"one of 2 worker processes died(.*)fewer --workers"):
        engine.in_order(
            die, [(number,) for number in range(8)], Engine(2), per_task=1, title="dying"
        )


def test_work_that_kills_every_worker_is_an_error_that_says_so(cluster):
    def die():
        os.kill(os.getpid(), signal.SIGKILL)

    with pytest.raises(BadInput, match="4 workers died one after the other"):
        engine.in_order(die, [()], Engine(1, cluster.address), per_task=1, title="never")


def test_an_error_in_the_work_arrives_unchanged(cluster):
    def fill():
        raise OSError(28, "No space left on device", "/shared/a.png")

    with pytest.raises(OSError, match=r"No space left on device: '/shared/a\.png'") as caught:
        engine.in_order(fill, [()], Engine(1, cluster.address), per_task=1, title="full")
    assert caught.value.errno == 28


def test_a_worker_must_see_the_file_that_names_the_lock_holder(cluster, tmp_path):
    (tmp_path / "holder").write_text("this run")
    shared = Engine(1, cluster.address, shared=tmp_path / "holder")
    assert engine.in_order(abs, [(-1,), (-2,)], shared, per_task=1, title="seen") == [1, 2]
    for file in ("holder", "absent"):
        with pytest.raises(BadInput, match=r"does not see .* the same input and output folders"):
            dask_cluster.task_of_worker((tmp_path / file, "another run"), abs, 0, [(-1,)])


# Faulty clusters


def failed(capsys, address, source, output):
    """(exit code, standard error) of stage 00."""
    code = stage.exit_code(lambda: prepared(source, output, "--scheduler", address))
    return code, capsys.readouterr().err


def test_a_scheduler_that_does_not_answer_gives_exit_code_3(alone, tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(dask_cluster, "CONNECT_S", 1)
    code, printed = failed(capsys, ADDRESS, alone[0], tmp_path)
    assert code == 3
    assert f"error: no Dask scheduler answers at {ADDRESS}" in printed


def test_a_web_server_is_not_waited_for(alone, tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(dask_cluster, "CONNECT_S", 1)
    with http.server.ThreadingHTTPServer(
        ("127.0.0.1", 0), http.server.SimpleHTTPRequestHandler
    ) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        address = f"tcp://127.0.0.1:{server.server_port}"
        code, printed = failed(capsys, address, alone[0], tmp_path)
        server.shutdown()
    assert code == 3
    assert f"no Dask scheduler answers at {address}" in printed
    assert "the dashboard's" in printed


def test_a_cluster_without_workers_is_not_waited_for(alone, tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(dask_cluster, "PATIENCE_S", 1)
    with distributed.LocalCluster(n_workers=0, dashboard_address=":0", host="127.0.0.1") as empty:
        code, printed = failed(capsys, empty.scheduler_address, alone[0], tmp_path)
    assert code == 3
    command = f"python -m dask worker {empty.scheduler_address}"
    assert f"has had no worker for 1 s: run {command}" in printed


@pytest.mark.parametrize("workers", [0, pytest.param(1, marks=pytest.mark.slow)])
def test_a_cluster_started_elsewhere_is_an_error_that_says_where_to_start_it(
    alone, tmp_path, capsys, workers
):
    """Either the scheduler or the only worker runs in another folder."""
    elsewhere = started(tmp_path, workers=0, place=ROOT if workers else tmp_path)
    try:
        if workers:
            elsewhere.add(1, place=tmp_path)
        code, printed = failed(capsys, elsewhere.address, alone[0], tmp_path / "output")
    finally:
        elsewhere.stop()
    assert code == 3
    assert "cannot run this project (No module named 'pneumothorax')" in printed
    assert "in this project's folder and environment" in printed


def test_a_module_missing_on_a_worker_is_named(cluster):
    def use():
        import no_such_module  # noqa: F401

    with pytest.raises(
        BadInput, match=r"cannot run this project \(No module named 'no_such_module'\)"
    ):
        engine.in_order(use, [()], Engine(1, cluster.address), per_task=1, title="missing")


def test_a_lost_scheduler_is_an_error_that_says_so(tmp_path, capfd):
    lost = started(tmp_path, workers=1)
    try:
        calls = [(0.05,)] * 100
        finished = engine.as_finished(
            time.sleep, calls, Engine(1, lost.address), per_task=1, title="lost"
        )
        next(finished)
        lost.processes[0].kill()
        with pytest.raises(BadInput, match="was lost: start it, then run the same command again"):
            list(finished)
    finally:
        lost.stop()
    assert "Traceback" not in capfd.readouterr().err


def test_without_dask_the_flag_is_a_usage_error_with_the_install_command(
    alone, tmp_path, monkeypatch, capsys
):
    monkeypatch.setitem(sys.modules, "distributed", None)  # import distributed raises ImportError
    with pytest.raises(SystemExit) as caught:
        prepared(alone[0], tmp_path / "output", "--scheduler", ADDRESS)
    assert caught.value.code == 2
    assert "python -m pip install -r requirements-extra.txt" in capsys.readouterr().err


@pytest.mark.parametrize(
    "address", ["localhost", "localhost:8786", "http://localhost:8787", "tcp://localhost"]
)
@pytest.mark.parametrize("script", [STAGE, "04_submit.py"])
def test_a_malformed_address_is_a_usage_error(script, address, capsys):
    with pytest.raises(SystemExit) as caught:
        run_stage(script, "--scheduler", address)
    assert caught.value.code == 2
    assert "tcp://host:8786" in capsys.readouterr().err


def test_without_the_flag_dask_is_not_imported(alone, tmp_path):
    code = (
        "import runpy, sys\n"
        "runpy.run_path('00_prepare_data.py', run_name='stage')['main'](sys.argv[1:])\n"
        "runpy.run_path('04_submit.py', run_name='stage')\n"
        "print([name for name in ('dask', 'distributed') if name in sys.modules])"
    )
    flags = ["--input", alone[0], "--output", tmp_path / "output", "--max-bad", "1"]
    command = [sys.executable, "-c", code, *flags, "--workers", "1"]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert done.stdout.splitlines()[-1] == "[]"
