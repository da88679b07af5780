"""Training one fold: exact resuming, and what is skipped, averaged, frozen and kept."""

import math
import multiprocessing
import os
import shutil
import signal
import time
from contextlib import nullcontext
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch
from torch import nn
from torch.utils._python_dispatch import TorchDispatchMode

import models
from models.network import SegmentationNetwork
from pneumothorax.compute import (
    devices,
    distributed,
    interruption,
    loading,
    precisions,
    runtime,
)
from pneumothorax.compute.interruption import StopRequest
from pneumothorax.data.dataset import RadiographDataset
from pneumothorax.errors import BadInput, Stopped
from pneumothorax.pipeline import artifacts
from pneumothorax.prediction import probability_maps
from pneumothorax.training import averaging, history, loaders, loop, optimization, run, validation
from pneumothorax.training.config import TrainConfig
from pneumothorax.training.loop import MAX_BAD_STEPS, epoch_line
from pneumothorax.training.optimization import Outcome
from pneumothorax.training.validation import Scores
from tests.helpers.memory import OUT_OF_MEMORY

pytestmark = pytest.mark.usefixtures("without_pictures")
TIMES = ["seconds", "images_per_second"]
SMALL = {"image_size": 64, "epochs": 3, "batch_size": 4, "learning_rate": 0.01}


@pytest.fixture
def output(folded, tmp_path):
    return Path(shutil.copytree(folded, tmp_path / "output"))


class Small(SegmentationNetwork):
    """Two convolutions with batch norm and dropout, whose state is easily forgotten."""

    def __init__(self):
        super().__init__()
        torch.manual_seed(0)
        self.first = nn.Sequential(
            nn.Conv2d(1, 4, 3, padding=1), nn.BatchNorm2d(4), nn.ReLU(), nn.Dropout(0.2)
        )
        self.last = nn.Conv2d(4, 1, 3, padding=1)

    def forward(self, images):
        return self.last(self.first(images))

    def training_loss(self, images, masks, criterion):
        return {"loss": criterion(self(images), masks)}

    def encoder_parameters(self):
        return list(self.first.parameters())


class StopAfter:
    """A StopRequest that is due after `n` questions."""

    def __init__(self, n=math.inf):
        self.left = n

    def is_due(self):
        self.left -= 1
        return self.left < 0

    def leave(self):
        raise Stopped(0)


def fold_training(
    output, *, network=None, stop=None, save_seconds=math.inf, workers=0, fold=0, **settings
):
    rows = artifacts.training_rows(output)
    data = loaders.FoldData(
        output,
        64,
        rows[rows["fold"] != fold].reset_index(drop=True),
        rows[rows["fold"] == fold].reset_index(drop=True),
        artifacts.label_rows(output),
        {"folds": "unchanged"},
        fold,
    )
    return loop.Training(
        network or Small(),
        data,
        TrainConfig(**{**SMALL, **settings}),
        run="small",
        device=torch.device("cpu"),
        workers=workers,
        stop=stop or StopAfter(),
        save_seconds=save_seconds,
    )


def trained(output, **settings):
    """A training that ran to its end."""
    found = fold_training(output, **settings)
    found.resume()
    found.run()
    return found


def same(first, second, *, but=TIMES):
    """Same weights to the last bit, and the same history apart from the columns `but`."""
    weights, others = (
        first.optimization.result.state_dict(),
        second.optimization.result.state_dict(),
    )
    histories = [
        pd.DataFrame(one.state.progress.history).drop(columns=but) for one in (first, second)
    ]
    pd.testing.assert_frame_equal(*histories)
    return all(torch.equal(weights[name], others[name]) for name in weights)


def history_file(output):
    return pd.read_csv((output / artifacts.Run("small").fold(0).folder) / "history.csv")


EVERYTHING = {
    "ema_decay": 0.9,
    "accumulation_steps": 2,
    "clip_gradient_norm": 0.5,
    "positive_repeat": 2,
    "sampling": "linear",
    "frozen_encoder_epochs": 1,
    "precision": "bf16",
    "warmup_steps": 5,
    "shift_scale_rotate": 1.0,
    "strong_augmentation": True,
}


@pytest.fixture(scope="module")
def undisturbed(folded, tmp_path_factory):
    """A training with the usual settings that ran to its end in its own output folder."""
    return trained(Path(shutil.copytree(folded, tmp_path_factory.mktemp("plain") / "output")))


@pytest.fixture(scope="module")
def undisturbed_everything(folded, tmp_path_factory):
    """The same with all settings of EVERYTHING."""
    output = Path(shutil.copytree(folded, tmp_path_factory.mktemp("everything") / "output"))
    return trained(output, **EVERYTHING)


@pytest.mark.parametrize("settings", [{}, EVERYTHING], ids=["plain", "everything"])
@pytest.mark.parametrize("every", [8, pytest.param(9, marks=pytest.mark.slow), 11])
def test_a_training_stopped_many_times_ends_in_the_weights_of_an_undisturbed_one(
    output, every, settings, undisturbed, undisturbed_everything
):
    """Stopped after `every` questions: between steps, and in validation, which asks up to 7."""
    expected = undisturbed_everything if settings else undisturbed
    for sessions in range(1, 20):
        disturbed = fold_training(output, network=Small(), stop=StopAfter(every), **settings)
        if sessions > 1:
            torch.manual_seed(sessions)  # dropout must not depend on what a new process begins with
        disturbed.resume()
        try:
            disturbed.run()
            break
        except Stopped:
            assert ((output / artifacts.Run("small").fold(0).folder) / "last.pt").is_file()
    assert 1 < sessions < 19
    assert same(disturbed, expected)
    written, whole = (history_file(place) for place in (output, expected.data.output))
    pd.testing.assert_frame_equal(written.drop(columns=TIMES), whole.drop(columns=TIMES))


def test_a_stop_saves_the_steps_of_the_epoch_under_way(output):
    with pytest.raises(Stopped):
        fold_training(output, stop=StopAfter(0)).run()
    saved = torch.load(
        (output / artifacts.Run("small").fold(0).folder) / "last.pt", weights_only=True
    )["progress"]
    assert (saved["epoch"], saved["step"]) == (0, 1)


class Killed(Exception):
    """Like SIGKILL: nothing is saved on the way out."""


class KillAfter(StopAfter):
    def is_due(self):
        if super().is_due():
            raise Killed
        return False


@pytest.mark.parametrize("moment", [1, 2, 5, 8])
def test_a_training_killed_within_an_epoch_resumes_from_the_last_saved_step(
    output, moment, undisturbed
):
    with pytest.raises(Killed):
        fold_training(output, stop=KillAfter(moment), save_seconds=0).run()
    disturbed = fold_training(output)
    disturbed.resume()
    assert disturbed.state.progress.step + disturbed.state.progress.epoch > 0
    disturbed.run()
    assert same(disturbed, undisturbed)


def test_the_number_of_workers_changes_nothing(output, undisturbed):
    assert same(trained(output, workers=2), undisturbed)


def test_workers_end_by_themselves_and_not_by_garbage_collection(output, monkeypatch):
    before = set(multiprocessing.active_children())
    left, alive, kill = [], [], loop.Workers.kill

    def count_and_kill(workers):
        left.append(set(multiprocessing.active_children()) - before)
        kill(workers)

    def kept_alive(*args, **how):  # as references in a circle would
        alive.append(loaders.Loaders(*args, **how))
        return alive[-1]

    monkeypatch.setattr(loop.Workers, "kill", count_and_kill)
    monkeypatch.setattr(loop, "Loaders", kept_alive)
    trained(output, workers=2, epochs=1, batch_size=100)  # one batch: one worker has no work
    assert len(alive) == 1
    assert left == [set()]


class Bright(SegmentationNetwork):
    """Gives pixels above grey 217 probability 0.55, below the usual thresholds."""

    def forward(self, images):
        return torch.where(images > 0.85, 0.2, -9.0)


def test_an_epoch_is_scored_with_its_best_thresholds(output):
    training = fold_training(output)
    found = validation.validate(
        Bright(),
        training.loaders().validation,
        training.data.validation,
        training.data.labels,
        autocast=training.optimization.autocast,
        device=training.device,
        stop=StopAfter(),
    )
    scores, examples = found
    assert scores.all_empty == 0.5
    assert scores.siim_dice > 0.8  # a top threshold of 0.6 would leave every mask empty: 0.5
    assert len(examples) == validation.MAX_EXAMPLES
    assert all(
        one.mask.any() and one.image.shape == one.probabilities.shape == (64, 64)
        for one in examples
    )


def test_an_image_probability_that_is_not_finite_spoils_the_scores_as_a_pixel_does(output):
    class Wild(Bright):
        def outputs(self, images):
            return self(images), torch.full((len(images),), math.nan)

    training = fold_training(output)
    how = {
        "autocast": training.optimization.autocast,
        "device": training.device,
        "stop": StopAfter(),
    }
    found = validation.validate(
        Wild(), training.loaders().validation, training.data.validation, training.data.labels, **how
    )
    assert math.isnan(found[0].siim_dice)


def epoch_with(training, score):
    training.state.progress.add_step(0.5, Outcome.TAKEN, n_images=4)
    training.finish_epoch(Scores(score, 0.1, 0.5), 1.0)
    training.checkpoints.queue.wait()


def test_of_equally_good_epochs_the_last_one_is_kept(output):
    training = fold_training(output, epochs=5)
    kept = []
    for score in (0.5, 0.5, 0.4, math.nan, 0.6):
        epoch_with(training, score)
        kept.append(torch.load(training.checkpoints.best, weights_only=True)["epoch"])
    assert kept == [1, 2, 2, 2, 5]


def test_kept_epochs_are_deleted_once_neither_saved_state_names_them(
    output,
):
    training = fold_training(output, epochs=6, average_best=2)
    found = []
    for score in (0.1, 0.3, 0.2, 0.4, 0.1, 0.1):
        epoch_with(training, score)
        found.append(
            sorted(int(path.stem[-4:]) for path in training.checkpoints.kept(0).parent.iterdir())
        )
    # The state before the last one is the fallback: what it names stays for one more epoch.
    assert found == [[1], [1, 2], [1, 2, 3], [2, 3, 4], [2, 4], [2, 4]]
    assert [epoch for _, epoch in training.state.progress.kept] == [4, 2]


def test_an_epoch_without_a_score_is_never_among_the_best(output):
    training = fold_training(output, epochs=6, average_best=2)
    for score in (0.1, math.nan, 0.3):
        epoch_with(training, score)
    assert training.state.progress.kept == [(0.3, 3), (0.1, 1)]


def test_best_weights_are_the_mean_of_the_best_epochs_with_newly_estimated_statistics(output):
    training = trained(output, average_best=2, epochs=4)
    best = torch.load(training.checkpoints.best, weights_only=True)
    states = [
        torch.load(training.checkpoints.kept(epoch), weights_only=True)["network"]
        for epoch in best["averaged"]
    ]
    assert len(states) == 2
    assert best["averaged"] == sorted(epoch for _, epoch in training.state.progress.kept)
    for name in ("first.0.weight", "last.bias"):
        torch.testing.assert_close(best["network"][name], (states[0][name] + states[1][name]) / 2)
    mean_of_statistics = (states[0]["first.1.running_mean"] + states[1]["first.1.running_mean"]) / 2
    assert not torch.allclose(
        best["network"]["first.1.running_mean"], mean_of_statistics, rtol=1e-3
    )
    assert best["score"] == training.state.progress.best_score


def test_a_mean_of_epochs_that_computes_nothing_leaves_the_best_epoch(output, monkeypatch):
    monkeypatch.setattr(
        averaging, "mean", lambda states: {n: w * math.nan for n, w in states[0].items()}
    )
    training = trained(output, average_best=2, epochs=4)
    best = torch.load(training.checkpoints.best, weights_only=True)
    progress = training.state.progress
    assert best["epoch"] == progress.best_epoch
    assert best["score"] == progress.best_score == max(score for score, _ in progress.kept)
    assert all(torch.isfinite(weights).all() for weights in best["network"].values())


def test_a_damaged_kept_epoch_is_left_out_of_the_mean(output, capsys):
    training = trained(output, average_best=2, epochs=4)
    first, second = (epoch for _, epoch in training.state.progress.kept)
    training.checkpoints.kept(first).write_bytes(b"damaged")
    again = trained(output, average_best=2, epochs=4)
    assert torch.load(again.checkpoints.best, weights_only=True)["averaged"] == [second]
    assert f"epoch{first:04d}.pt" in capsys.readouterr().out
    for epoch in (first, second):
        training.checkpoints.kept(epoch).write_bytes(b"damaged")
    with pytest.raises(
        BadInput, match=r"is not a whole checkpoint .*\n.*--overwrite trains this fold"
    ):
        trained(output, average_best=2, epochs=4)


def test_frozen_batch_norms_stay_frozen_in_the_mean(output):
    training = trained(output, average_best=2, batch_norm="frozen")
    best = torch.load(training.checkpoints.best, weights_only=True)["network"]
    assert best["first.1.running_mean"].abs().sum() == 0


def test_a_worker_that_dies_during_averaging_is_replaced(output, monkeypatch):
    alone = trained(Path(shutil.copytree(output, output.with_name("alone"))), average_best=2)
    estimate = averaging.estimate_batch_norms

    def with_a_death(network, images):
        monkeypatch.setattr(averaging, "estimate_batch_norms", estimate)
        raise RuntimeError("DataLoader worker (pid 1) is killed by signal: Killed.")

    monkeypatch.setattr(averaging, "estimate_batch_norms", with_a_death)
    training = trained(output, average_best=2)
    ours, theirs = (
        torch.load(one.checkpoints.best, weights_only=True)["network"] for one in (training, alone)
    )
    assert all(torch.equal(ours[name], theirs[name]) for name in ours)


def test_batch_norm_statistics_are_estimated_from_the_images_alone():
    network = nn.Sequential(nn.BatchNorm2d(1))
    batches = [torch.full((2, 1, 2, 2), value) for value in (1.0, 4.0)]
    batches[0][0] = 3.0  # means 2 and 4
    averaging.estimate_batch_norms(network, batches)
    assert network[0].running_mean.item() == 3.0
    assert network[0].momentum == 0.1


def test_the_moving_average_by_hand():
    network = nn.Linear(1, 1, bias=False)
    network.weight.data.fill_(0.0)
    average = optimization.MovingAverage(network, 0.15)
    network.weight.data.fill_(1.0)
    average.update()  # decay 1/10: 0.1 * 0 + 0.9 * 1
    assert average.network.weight.item() == pytest.approx(0.9)
    network.weight.data.fill_(2.0)
    average.update()  # decay min(0.15, 2/11): 0.15 * 0.9 + 0.85 * 2
    assert average.network.weight.item() == pytest.approx(1.835)


def test_the_moving_average_is_what_is_validated_and_kept(output):
    training = trained(output, ema_decay=0.99, validate_every=3)  # the third epoch alone
    best = torch.load(training.checkpoints.best, weights_only=True)["network"]
    last = torch.load(training.checkpoints.last, weights_only=True)
    average = last["optimization"]["average"]["network"]
    assert all(torch.equal(best[name], average[name]) for name in best)
    assert not torch.equal(last["network"]["last.weight"], average["last.weight"])


def rates(steps, **settings):
    config = TrainConfig(epochs=len(steps), learning_rate=1.0, final_learning_rate=0.0, **settings)
    return optimization.LearningRates(config, steps)


def test_without_warm_up_the_rates_at_epoch_starts_are_the_cosine_over_epochs():
    found = rates([2, 5, 3, 4])
    # (1 + cos x) / 2 at 0, 45, 90 and 135 degrees: 0.5 + 0.5 x (1, 0.7071, 0, -0.7071)
    starts = [found.at(epoch) for epoch in range(4)]
    assert starts == pytest.approx([1, 0.853553, 0.5, 0.146447], abs=1e-6)
    # half an epoch of two steps: 22.5 degrees; two fifths of an epoch: 63 degrees
    assert found.at(0, 1) == pytest.approx(0.961940, abs=1e-6)
    assert found.at(1, 2) == pytest.approx(0.726995, abs=1e-6)
    network = nn.Linear(1, 1)
    optimizer = torch.optim.Adam(network.parameters(), lr=1.0)
    theirs = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, T_max=4, eta_min=0.0)
    for start in starts:
        assert theirs.get_last_lr()[0] == pytest.approx(start, abs=1e-12)
        optimizer.step()
        theirs.step()


def test_the_rate_rises_step_by_step_and_then_falls_over_the_rest():
    found = rates([4, 4], warmup_steps=2)
    # 1/3, 2/3, then a cosine over the other 6 steps: 0, 30, 60, 90, 120 and 150 degrees.
    expected = [1 / 3, 2 / 3, 1, 0.933013, 0.75, 0.5, 0.25, 0.066987]
    assert [found.at(step // 4, step % 4) for step in range(8)] == pytest.approx(expected, abs=1e-6)


def test_a_short_training_warms_up_for_half_of_its_steps_at_most():
    # 1/5 to 4/5, then a cosine over the other 4 steps: 0, 45, 90 and 135 degrees.
    expected = [0.2, 0.4, 0.6, 0.8, 1, 0.853553, 0.5, 0.146447]
    for warm_up in (4, 8, 1000):
        found = rates([4, 4], warmup_steps=warm_up)
        assert [found.at(step // 4, step % 4) for step in range(8)] == pytest.approx(
            expected, abs=1e-6
        )
    assert rates([1], warmup_steps=1000).at(0) == 1


@pytest.mark.parametrize("setting", ["strong_augmentation", "shift_scale_rotate"])
def test_the_settings_of_augmentation_reach_the_training_images(output, setting):
    def images(value):
        training = fold_training(output, **{setting: value})
        return torch.cat(list(training.loaders().images(0)))

    assert torch.equal(images(1), images(1))
    assert not torch.equal(images(0), images(1))


def test_every_step_has_the_rate_of_its_place_also_after_skipped_ones(output, monkeypatch):
    step, used = loop.Optimization.step, []

    def noted(self, *args):
        used.append(self.optimizer.param_groups[0]["lr"])
        return step(self, *args)

    monkeypatch.setattr(loop.Optimization, "step", noted)
    found = trained(output, network=Broken({1, 3}), warmup_steps=3, epochs=2)
    assert used == found.rates.rates.tolist()
    written = [row["learning_rate"] for row in found.state.progress.history]
    # 6 positives and 3 negatives: two batches of 4; then 6 negatives: three batches.
    assert len(used) == 5
    assert written == [used[0], used[2]]


def test_a_frozen_encoder_keeps_its_weights_and_learns_afterwards(output):
    start = Small().first[0].weight.detach().clone()
    training = fold_training(output, frozen_encoder_epochs=1, stop=StopAfter(4))
    with pytest.raises(Stopped):
        training.run()
    assert torch.equal(training.network.first[0].weight, start)
    assert not torch.equal(training.network.last.weight, Small().last.weight)
    training = fold_training(output, frozen_encoder_epochs=1)
    training.resume()
    training.run()
    assert not torch.equal(training.network.first[0].weight, start)


def test_frozen_batch_norms_keep_their_statistics(output):
    training = trained(output, batch_norm="frozen")
    assert training.network.first[1].running_mean.abs().sum() == 0
    assert trained(output, fold=1).network.first[1].running_mean.abs().sum() > 0


class WithoutNorm(nn.Conv2d):
    def __init__(self):
        torch.manual_seed(1)
        super().__init__(1, 1, 3, padding=1)

    def outputs(self, images):
        return self(images), None

    def training_loss(self, images, masks, criterion):
        return {"loss": criterion(self(images), masks)}

    def encoder_parameters(self):
        return []


def test_a_batch_in_parts_gives_the_step_of_the_whole_batch(output):
    """Up to rounding, for a loss that is a mean over images and a network without batch norm."""
    settings = {"loss": "focal", "epochs": 1, "batch_size": 6, "sampling": "natural"}
    whole = trained(
        Path(shutil.copytree(output, output.with_name("whole"))), network=WithoutNorm(), **settings
    )
    parts = trained(output, network=WithoutNorm(), accumulation_steps=3, **settings)
    torch.testing.assert_close(parts.network.weight, whole.network.weight, rtol=1e-4, atol=1e-5)
    assert parts.state.progress.history[0]["train_loss"] == pytest.approx(
        whole.state.progress.history[0]["train_loss"], rel=1e-4
    )


def test_clipping_limits_the_step(output):
    """Seen in Adam's first moment, which is 0.1 x the gradient after one step."""
    training = fold_training(
        output, network=WithoutNorm(), clip_gradient_norm=1e-3, stop=StopAfter(0)
    )
    with pytest.raises(Stopped):
        training.run()
    moments = [
        training.optimization.optimizer.state[parameter]["exp_avg"]
        for parameter in training.network.parameters()
    ]
    assert torch.cat([moment.flatten() for moment in moments]).norm().item() == pytest.approx(
        1e-4, rel=1e-3
    )


class Broken(Small):
    """Loss and gradients are NaN in the steps `broken`; or the loss alone is infinite."""

    def __init__(self, broken, value=math.nan):
        super().__init__()
        self.broken, self.value, self.calls = broken, value, 0

    def training_loss(self, images, masks, criterion):
        loss = super().training_loss(images, masks, criterion)["loss"]
        self.calls += 1
        broken = self.calls - 1 in self.broken
        return {
            "loss": (loss + self.value if math.isinf(self.value) else loss * self.value)
            if broken
            else loss
        }


@pytest.mark.parametrize("value", [math.nan, math.inf])
def test_steps_with_a_loss_that_is_not_finite_are_skipped_and_counted(output, value):
    training = trained(output, network=Broken({1, 3, 4}, value), epochs=2)
    steps = [row["skipped_steps"] for row in training.state.progress.history]
    assert sum(steps) == 3
    assert all(
        bool(torch.isfinite(value).all()) for value in training.network.state_dict().values()
    )
    assert all(math.isfinite(row["train_loss"]) for row in training.state.progress.history)


class Overflowing(Small):
    """One forward pass overflows, and so do the statistics of its batch norm."""

    def __init__(self):
        super().__init__()
        self.calls = 0

    def training_loss(self, images, masks, criterion):
        self.calls += 1
        return super().training_loss(
            images * math.inf if self.calls == 2 else images, masks, criterion
        )


def test_a_skipped_step_leaves_no_trace_in_batch_norm_statistics(output):
    training = trained(output, network=Overflowing())
    assert sum(row["skipped_steps"] for row in training.state.progress.history) == 1
    assert all(
        bool(torch.isfinite(value).all()) for value in training.network.state_dict().values()
    )
    assert all(math.isfinite(row["siim_dice"]) for row in training.state.progress.history)


def test_with_loss_scaling_a_broken_step_is_skipped_and_training_continues(output):
    training = trained(output, network=Broken({1}), precision="fp16")
    assert training.optimization.scaler.is_enabled()
    assert sum(row["skipped_steps"] for row in training.state.progress.history) >= 1
    assert len(training.state.progress.history) == 3


def test_steps_that_scale_the_loss_down_are_normal_and_not_reported(output, capsys):
    training = fold_training(output, precision="fp16")
    scale = 2.0**24  # gradients in 16 bits overflow beyond 65,504
    training.optimization.scaler = torch.amp.GradScaler("cpu", init_scale=scale)
    training.run()
    assert training.optimization.scaler.get_scale() < scale
    assert all(row["skipped_steps"] == 0 for row in training.state.progress.history)
    assert math.isfinite(training.state.progress.history[-1]["train_loss"])
    assert "not finite" not in "".join(capsys.readouterr())


class HostReads(TorchDispatchMode):
    """Counts values that Python takes out of tensors one by one, as .item(), float, bool."""

    def __init__(self):
        super().__init__()
        self.n = 0

    def __torch_dispatch__(self, function, types, arguments=(), keywords=None):
        self.n += function is torch.ops.aten._local_scalar_dense.default
        return function(*arguments, **(keywords or {}))


@pytest.mark.parametrize("precision", ["fp16", "fp32"])
def test_the_host_reads_from_the_device_once_per_step(output, precision, monkeypatch):
    training = fold_training(
        output,
        precision=precision,
        accumulation_steps=2,
        ema_decay=0.9,
        clip_gradient_norm=1.0,
    )
    batch = training.loaders().epoch(0, done=0)[0]
    lists, to_list = [], torch.Tensor.tolist
    monkeypatch.setattr(torch.Tensor, "tolist", lambda tensor: lists.append(1) or to_list(tensor))
    with HostReads() as reads:
        training.optimization.step(batch.parts, batch.n_parts, batch.n_images)
    assert (reads.n, len(lists)) == (0, 1)


class BrokenGradients(Small):
    """A finite loss whose gradients are not."""

    def training_loss(self, images, masks, criterion):
        loss = super().training_loss(images, masks, criterion)["loss"]
        return {
            "loss": loss + (self.last.weight.sum() * 0).sqrt()
        }  # the root's slope at 0 is infinite


@pytest.mark.parametrize(("precision", "limit"), [("fp16", 20), ("fp32", 10)])
def test_gradients_that_are_never_finite_stop_the_run(output, precision, limit):
    training = fold_training(
        output, network=BrokenGradients(), precision=precision, epochs=20, ema_decay=0.9
    )
    with pytest.raises(BadInput, match=f"^{limit} steps in a row are not finite"):
        training.run()
    assert training.optimization.average.steps == 0


@pytest.fixture
def units_for_bf16(monkeypatch):
    """As on a CPU on which only timing can tell which precision trains faster."""
    monkeypatch.setattr(precisions, "cpu_has_bf16", lambda: True)


def timed(training, monkeypatch, *, ratio):
    """Settle the precision as if bf16 were `ratio` times as fast as fp32."""
    precision = "bf16" if ratio > 1 else "fp32"
    monkeypatch.setattr(precisions, "faster", lambda loss, device: (precision, ratio))
    run.settle_precision(training)


def test_a_run_begun_without_loss_scaling_resumes_with_it_and_back(output, monkeypatch):
    for precision, stop in (("bf16", 3), ("fp16", 5), ("bf16", math.inf)):
        monkeypatch.setattr(precisions, "of_training", lambda *_, precision=precision: precision)
        training = fold_training(output, stop=StopAfter(stop))
        training.resume()
        with pytest.raises(Stopped) if stop < math.inf else nullcontext():
            training.run()
    assert len(training.state.progress.history) == 3


def test_auto_takes_the_precision_in_which_a_step_is_faster(
    output, units_for_bf16, monkeypatch, capsys
):
    training = fold_training(output, precision="auto")
    timed(training, monkeypatch, ratio=1.5)
    assert "bf16 is 1.50 times as fast as in fp32 here: training in bf16" in capsys.readouterr().out
    training.run()
    best = torch.load(training.checkpoints.best, weights_only=True)
    assert best["precision"] == training.optimization.precision == "bf16"


def test_a_fold_resumes_in_the_precision_it_was_begun_in(output, units_for_bf16, monkeypatch):
    begun = fold_training(output)
    timed(begun, monkeypatch, ratio=1.5)
    begun.checkpoints.queue.wait()  # then killed, before the first step
    again = fold_training(output)
    assert again.optimization.precision == "fp32"  # before it knows
    again.resume()
    timed(again, monkeypatch, ratio=0.5)  # too late
    assert again.optimization.precision == "bf16"


def test_a_fold_begun_on_another_kind_of_device_is_timed(output, units_for_bf16, monkeypatch):
    training = fold_training(output)
    training.optimization.device = torch.device("cuda")
    training.state.save()
    again = fold_training(output)
    again.resume()
    timed(again, monkeypatch, ratio=1.5)
    assert again.optimization.precision == "bf16"


def test_timing_leaves_weights_statistics_and_random_numbers_as_they_are(output, units_for_bf16):
    training = fold_training(output)
    before = {name: value.clone() for name, value in training.network.state_dict().items()}
    generator = torch.get_rng_state()
    precision, ratio = training.optimization.faster_precision()
    assert precision in ("fp32", "bf16") and ratio > 0
    after = training.network.state_dict()
    assert all(torch.equal(value, after[name]) for name, value in before.items())
    assert all(parameter.grad is None for parameter in training.network.parameters())
    assert torch.equal(torch.get_rng_state(), generator)


def test_networks_are_trained_and_used_in_the_memory_format_of_the_device(output, monkeypatch):
    assert not fold_training(output).network.last.weight.is_contiguous()
    assert not probability_maps.ready(Small(), torch.device("cpu")).last.weight.is_contiguous()
    monkeypatch.setattr(devices, "memory_format", lambda _: torch.contiguous_format)  # as on MPS
    assert fold_training(output).network.last.weight.is_contiguous()
    assert probability_maps.ready(Small(), torch.device("cpu")).last.weight.is_contiguous()


def test_a_cpu_without_units_for_bf16_trains_in_fp32_without_timing(output, monkeypatch):
    monkeypatch.setattr(precisions, "cpu_has_bf16", lambda: False)
    training = fold_training(output)
    assert training.optimization.precision == "fp32"
    assert not training.optimization.needs_timing


def test_weights_that_diverged_are_not_saved_over_those_that_did_not(output):
    training = fold_training(output)
    training.state.save()
    training.network.last.weight.data.fill_(math.nan)
    training.state.save()
    training.checkpoints.queue.wait()
    assert torch.isfinite(
        torch.load(training.checkpoints.last, weights_only=True)["network"]["last.weight"]
    ).all()


def test_ten_broken_steps_in_a_row_stop_the_run(output):
    training = fold_training(output, network=Broken(set(range(100))), epochs=10)
    with pytest.raises(BadInput, match="10 steps in a row are not finite: lower learning_rate"):
        training.run()


def test_broken_steps_with_good_ones_in_between_do_not_stop_the_run(output):
    training = trained(output, network=Broken(set(range(0, 100, 2))), epochs=8, validate_every=8)
    assert sum(row["skipped_steps"] for row in training.state.progress.history) > MAX_BAD_STEPS


def test_best_weights_are_always_finite(output):
    training = fold_training(output)
    epoch_with(training, 0.5)
    training.network.last.weight.data.fill_(math.nan)
    epoch_with(training, 0.9)
    best = torch.load(training.checkpoints.best, weights_only=True)
    assert best["epoch"] == 1
    assert torch.isfinite(best["network"]["last.weight"]).all()


def test_probability_maps_that_are_not_finite_give_no_score(output):
    class Wild(SegmentationNetwork):
        def forward(self, images):
            return images * math.nan

    training = fold_training(output)
    how = {
        "autocast": training.optimization.autocast,
        "device": training.device,
        "stop": StopAfter(),
    }
    found = validation.validate(
        Wild(), training.loaders().validation, training.data.validation, training.data.labels, **how
    )
    assert found is not None
    assert math.isnan(found[0].siim_dice)
    assert found[1] == []


def test_training_resumes_from_the_state_before_one_that_is_not_finite(output, capsys):
    training = trained(output, epochs=2)
    state = torch.load(training.checkpoints.last, weights_only=True)
    state["network"]["last.weight"].fill_(math.nan)
    torch.save(state, training.checkpoints.last)
    again = fold_training(output, epochs=2)
    again.resume()
    assert again.state.progress.epoch == 1
    assert "last.pt holds weights that are not finite; resuming from" in capsys.readouterr().out


def test_a_state_of_another_experiment_fold_or_network_is_refused_with_the_difference(output):
    trained(output, epochs=1)
    with pytest.raises(BadInput, match=r"learning_rate: 0\.01 before, 0\.02 now"):
        fold_training(output, epochs=1, learning_rate=0.02).resume()
    other = fold_training(output, epochs=1)
    other.checkpoints.identity["inputs"] = {"folds": "others"}
    with pytest.raises(BadInput, match="folds changed since"):
        other.resume()
    shutil.copytree(
        output / artifacts.Run("small").fold(0).folder,
        output / artifacts.Run("small").fold(1).folder,
    )
    with pytest.raises(BadInput, match="fold: 0 before, 1 now"):
        fold_training(output, epochs=1, fold=1).resume()
    larger = Small()
    larger.more = nn.Conv2d(4, 4, 1)
    with pytest.raises(BadInput, match="belongs to another network: 2 weights differ"):
        fold_training(output, epochs=1, network=larger).resume()


def test_a_state_of_a_version_without_a_setting_is_refused_with_the_setting(output):
    path = trained(output, epochs=1).checkpoints.last
    older = torch.load(path, weights_only=True)
    del older["config"]["warmup_steps"]
    torch.save(older, path)
    difference = r"scratch\):\n  warmup_steps: None before, 0 now$"
    with pytest.raises(BadInput, match=difference):
        fold_training(output, epochs=1).resume()


def test_a_run_named_like_a_fold_of_another_can_start_while_that_fold_is_trained(
    output, monkeypatch
):
    monkeypatch.setattr(run, "RUN_PATIENCE_S", 0)
    other, own = (run.TrainingRun(output, name, TrainConfig(**SMALL)) for name in ("a", "a-fold0"))
    with other.lock(0):
        own.claim([0], Small(), overwrite=False)
    assert (output / own.files.config).is_file()


def test_a_training_set_without_positives_is_refused(output):
    rows = artifacts.training_rows(output)
    (output / "folds.csv").write_text(
        rows.assign(fold=1 - rows["positive"], stratum="")[
            ["image_id", "patient_id", "fold", "stratum"]
        ].to_csv(index=False)
    )
    with pytest.raises(BadInput, match="fold 0: 12 training images, 0 positive: too few"):
        fold_training(output)


def test_training_ends_early_when_the_score_stops_rising():
    def rows(*scores):
        return [{"siim_dice": score} for score in scores]

    assert not history.has_stalled(rows(0.5, 0.6, 0.6), patience=2)  # one validation after the best
    assert history.has_stalled(rows(0.5, 0.6, 0.6, 0.1), patience=2)
    assert history.has_stalled(
        rows(0.6, math.nan, 0.5, math.nan, 0.4), patience=2
    )  # validated epochs count
    assert not history.has_stalled(rows(math.nan, math.nan), patience=1)
    assert not history.has_stalled(rows(*[0.5] * 40), patience=None)


def test_a_fold_that_stopped_early_is_finished(output):
    training = trained(output, network=WithoutNorm(), epochs=30, patience=2, learning_rate=1e-7)
    assert len(training.state.progress.history) < 30
    again = fold_training(output, network=WithoutNorm(), epochs=30, patience=2, learning_rate=1e-7)
    again.resume()
    again.run()
    assert len(again.state.progress.history) == len(training.state.progress.history)


def let_workers_die(monkeypatch, marker, *, times):
    """The first `times` workers that read position 3 die there; each leaves a file in `marker`."""
    marker.mkdir()
    dataset = RadiographDataset
    read = dataset.read

    def dying(self, position):
        deaths = len(list(marker.glob("*")))
        if position == 3 and deaths < times and torch.utils.data.get_worker_info() is not None:
            (marker / str(os.getpid())).touch()
            os.kill(os.getpid(), signal.SIGKILL)
        return read(self, position)

    monkeypatch.setattr(dataset, "read", dying)


def test_a_worker_that_dies_is_replaced_once_and_changes_nothing(
    output, undisturbed, tmp_path, monkeypatch, capsys
):
    let_workers_die(monkeypatch, tmp_path / "deaths", times=1)
    assert same(trained(output, workers=1), undisturbed)
    assert "trying once more" in capsys.readouterr().out


def test_a_worker_that_dies_in_the_middle_of_a_step_leaves_no_half_step(
    output, undisturbed, monkeypatch
):
    step, calls = loop.Optimization.step, []

    def dying(self, *args):
        result = step(self, *args)
        calls.append(args)
        if len(calls) == 2:  # the weights have changed, the step is not counted yet
            raise RuntimeError("DataLoader worker (pid 1) is killed by signal: Killed.")
        return result

    monkeypatch.setattr(loop.Optimization, "step", dying)
    assert same(trained(output), undisturbed)


def test_after_the_death_of_a_worker_a_resumed_training_continues_from_the_last_save(
    output, undisturbed, tmp_path, monkeypatch
):
    with pytest.raises(Stopped):
        fold_training(output, stop=StopAfter(8)).run()
    let_workers_die(monkeypatch, tmp_path / "deaths", times=1)
    again = fold_training(output, workers=1)
    again.resume()
    finished = again.state.progress.epoch
    epochs = []
    monkeypatch.setattr(
        again.log, "epoch", lambda rows, examples, line: epochs.append(rows[-1]["epoch"])
    )
    again.run()
    assert epochs == list(range(finished + 1, 4))
    assert finished > 0
    assert same(again, undisturbed)


def is_alive(process):
    try:
        os.kill(process, 0)
    except ProcessLookupError:
        return False
    return True


def test_a_worker_that_hangs_is_ended_and_replaced(output, undisturbed, tmp_path, monkeypatch):
    monkeypatch.setattr(loading, "PATIENCE_S", 3)
    marker, read = tmp_path / "hung", RadiographDataset.read

    def hanging(self, position):
        if position == 3 and not marker.exists():
            marker.write_text(str(os.getpid()))
            time.sleep(1000)
        if position == 3 and is_alive(int(marker.read_text())):
            (tmp_path / "next-to-it").touch()
        return read(self, position)

    monkeypatch.setattr(RadiographDataset, "read", hanging)
    assert same(trained(output, workers=1), undisturbed)
    assert not is_alive(int(marker.read_text()))
    assert not (tmp_path / "next-to-it").exists()


def test_workers_that_die_twice_end_the_run_with_advice(output, tmp_path, monkeypatch):
    let_workers_die(monkeypatch, tmp_path / "deaths", times=99)
    with pytest.raises(BadInput, match=r"failed twice .*fewer --workers"):
        trained(output, workers=1)


def test_a_signal_is_noted_and_a_later_one_ends_the_process():
    before = signal.getsignal(signal.SIGINT)
    with StopRequest() as stop:
        assert not stop.is_due()
        os.kill(os.getpid(), signal.SIGTERM)
        assert stop.is_due()
        with pytest.raises(Stopped) as stopped:
            stop.leave()
        assert stopped.value.code == 128 + signal.SIGTERM
        os.kill(os.getpid(), signal.SIGTERM)  # a launcher passes on what the group already got
        stop.noted -= interruption.REPEATED_S
        with pytest.raises(SystemExit):
            os.kill(os.getpid(), signal.SIGINT)
    assert signal.getsignal(signal.SIGINT) is before


def test_running_out_of_time_stops_with_exit_code_0():
    with StopRequest(max_seconds=0) as stop:
        assert stop.is_due()
        with pytest.raises(Stopped) as stopped:
            stop.leave()
    assert stopped.value.code == 0
    with StopRequest(max_seconds=1000) as stop:
        assert not stop.is_due()


def test_scores_by_hand():
    """A positive image found in full, one missed, two negatives of which one has a false alarm."""
    empty, full = np.zeros((64, 64), np.uint8), np.zeros((64, 64), np.uint8)
    full[:32] = 1
    found = np.where(full == 1, 255, 0).astype(np.uint8)
    pairs = [
        (found, full),
        (np.zeros_like(found), full),
        (np.zeros_like(found), empty),
        (found, empty),
    ]

    def scores(grid, p_positive):
        return validation.scores(
            [
                validation.Measured(validation.thresholds.profile(*pair, grid), p)
                for pair, p in zip(pairs, p_positive, strict=True)
            ]
        )

    without_head = scores(validation.SELECTION_GRID, [None] * 4)
    assert without_head == (0.5, 0.5, 0.5)  # SIIM Dice, positives at 0.5, all-empty
    # The head tells the false alarm from the lesion that was found.
    assert scores(validation.WITH_HEAD, [0.9, 0.2, 0.1, 0.2]) == (0.75, 0.5, 0.5)
    assert scores(validation.WITH_HEAD, [0.2, 0.1, 0.2, 0.9]) == (0.5, 0.5, 0.5)


def test_a_classification_head_may_be_as_sure_as_it_likes():
    """Ten lesions at 0.999 and ten false alarms at 0.985, both above every image threshold."""
    full = np.ones((64, 64), np.uint8)
    grid = validation.WITH_HEAD
    lesion, false_alarm = (
        validation.thresholds.profile(full * 255, truth, grid) for truth in (full, 0 * full)
    )
    images = [validation.Measured(lesion, 0.999), validation.Measured(false_alarm, 0.985)] * 10
    assert validation.scores(images).siim_dice == 1


@pytest.mark.slow
@pytest.mark.parametrize("name", ["ica_resunet", "smp/Unet", "unetpp_msof", "unet"])
def test_compiled_training_gives_the_same_weights(name, output, monkeypatch):
    settings = {"unet": {"base_channels": 4}, "unetpp_msof": {"base_channels": 2}}
    settings["ica_resunet"] = {
        "encoder": "resnet18",
        "decoder_channels": [8] * 5,
        "classification_weight": 0.5,
    }
    settings["smp/Unet"] = {**settings["ica_resunet"], "attention": "improved"}

    def network():
        torch.manual_seed(0)
        return models.build_untrained(name, **settings[name])

    eager = trained(
        Path(shutil.copytree(output, output.with_name("eager"))), network=network(), epochs=1
    )
    graphs = []

    def backend(graph, inputs):
        graphs.append(graph)
        return graph.forward

    compile_ = torch.nn.Module.compile
    monkeypatch.setattr(torch.nn.Module, "compile", lambda self: compile_(self, backend=backend))
    compiled = trained(output, network=network(), epochs=1, compile=True)
    assert graphs
    assert same(compiled, eager, but=[*TIMES, "computed"])


def test_the_time_left_counts_epochs_with_and_without_validation():
    row = {"train_loss": 1.0, "siim_dice": math.nan, "images_per_second": 9.0}
    rows = [{**row, "epoch": epoch, "seconds": 60.0} for epoch in (1, 2, 3)]
    rows.append({**row, "epoch": 4, "seconds": 180.0})  # 90 s an epoch on average
    line = epoch_line(rows, fold=0, epochs=10, folds_left=0, memory_mib=None)
    assert line.endswith("9 img/s  9.0 min left")
    line = epoch_line(rows, fold=0, epochs=10, folds_left=4, memory_mib=None)
    assert line.endswith("9.0 min left, 69.0 min for all folds")  # 46 epochs
    line = epoch_line(rows, fold=0, epochs=100, folds_left=1, memory_mib=None)
    assert line.endswith("2.4 h left, 4.9 h for all folds")  # 96 and 196 epochs


def test_a_run_continues_in_other_parts_and_precision_and_says_so(output):
    with pytest.raises(Stopped):
        fold_training(output, stop=StopAfter(4), accumulation_steps=2, validate_every=3).run()
    again = fold_training(output, precision="bf16", validate_every=3)
    again.resume()
    again.run()
    rows = pd.read_csv(output / again.checkpoints.files.history.path)
    first, *_, last = rows["computed"]
    assert "batches in 2 parts" in first
    assert "fp32" in first
    assert "parts" not in last
    assert "bf16" in last


def test_parts_are_one_without_a_gpu_whose_memory_could_be_asked(output):
    assert fold_training(output, accumulation_steps="auto").parts == 1


def test_auto_leaves_room_for_adams_moments_and_shares_parts_among_processes(output, monkeypatch):
    """Of 10,000 bytes 9,000 may be used: 16 images take 16,000 and 8 take 8,000."""
    found = fold_training(output, accumulation_steps="auto", batch_size=16).optimization
    moments = 2 * sum(parameter.nbytes for parameter in found.network.parameters())
    monkeypatch.setattr(found, "device", torch.device("cuda:0"))
    monkeypatch.setattr(found, "_peak_bytes", lambda n_images: 1000 * n_images)
    monkeypatch.setattr(runtime, "free_bytes", lambda device: moments + 10_000)
    assert found.parts() == 2
    monkeypatch.setattr(distributed, "size", lambda: 2)
    assert found.parts() == 1


@pytest.mark.parametrize("error", [None, OUT_OF_MEMORY[0]])
def test_a_trial_of_memory_counts_the_second_step_and_leaves_no_trace(output, monkeypatch, error):
    """In the first one cuDNN tries algorithms; here a CPU stands in for the card."""
    training = fold_training(output)
    training.optimization.start_epoch(0)
    before = {name: value.clone() for name, value in training.network.state_dict().items()}
    generator = torch.get_rng_state()
    peaks = iter([9000, 700])

    def peak(device):
        if error is not None:
            raise error
        return next(peaks)

    for name, found in (("reset_peak_memory_stats", None), ("memory_allocated", 200)):
        monkeypatch.setattr(torch.cuda, name, lambda device, found=found: found)
    monkeypatch.setattr(torch.cuda, "max_memory_allocated", peak)
    if error is None:
        assert training.optimization._peak_bytes(2) == 500
    else:
        with pytest.raises(torch.OutOfMemoryError):
            training.optimization._peak_bytes(2)
    after = training.network.state_dict()
    assert all(torch.equal(value, after[name]) for name, value in before.items())
    assert all(parameter.grad is None for parameter in training.network.parameters())
    assert torch.equal(torch.get_rng_state(), generator)
