"""One step of the optimizer: a batch in parts and over processes, in 16 or 32 bits."""

import copy
import enum
import functools
import math
from collections.abc import Iterable, Sequence
from contextlib import nullcontext
from typing import Any

import numpy as np
import torch
from torch import nn
from torch.nn.parallel import DistributedDataParallel

from pneumothorax.compute import distributed, precisions, runtime
from pneumothorax.training.config import TrainConfig
from pneumothorax.training.losses import CRITERIA

# Images, masks, and how many images of each process count.
Part = tuple[torch.Tensor, torch.Tensor, list[int]]


class Outcome(enum.Enum):
    """What became of a step. Only a TAKEN one changes weights and statistics."""

    TAKEN = enum.auto()
    SCALED_DOWN = enum.auto()  # fp16: the scaled loss was too large for its gradients
    NOT_FINITE = enum.auto()  # the loss or the gradients


class LearningRates:
    """The learning rate of every step: a linear warm-up, then half a cosine.

    Without warm-up the rates at the starts of epochs are those of PyTorch's
    CosineAnnealingLR over epochs. The cosine continues between them, however many steps an
    epoch has. A rate depends on the step's place in the training alone: there is no state
    to save, and none that could disagree after a resume.

    Args:
        steps: of each epoch. At most half of them are warm-up.
    """

    def __init__(self, config: TrainConfig, steps: Sequence[int]) -> None:
        total, top = sum(steps), config.learning_rate
        warm_up = min(config.warmup_steps, total // 2)
        self.first_steps = np.cumsum([0, *steps[:-1]])
        done = [epoch + np.arange(n) / n for epoch, n in enumerate(steps)]  # in epochs
        share = np.concatenate(done) / len(steps)
        share = (share - share[warm_up]) / (1 - share[warm_up])
        final = config.final_learning_rate
        cosine = final + (top - final) * (1 + np.cos(np.pi * share)) / 2
        rising = top * np.arange(1, total + 1) / (warm_up + 1)
        self.rates = np.where(np.arange(total) < warm_up, rising, cosine)  # (total,)

    def at(self, epoch: int, step: int = 0) -> float:
        """The rate of a step of an epoch, both from 0."""
        return float(self.rates[self.first_steps[epoch] + step])


class Optimization:
    """Optimizer, loss scaling and moving average of a network on its device."""

    def __init__(self, network: Any, config: TrainConfig, device: torch.device) -> None:
        self.network, self.config, self.device = network, config, device
        self.optimizer = torch.optim.Adam(
            network.parameters(),
            lr=config.learning_rate,
            weight_decay=config.weight_decay,
            fused=True,
        )
        # The same in all processes: only some would scale their gradients.
        precision = distributed.on_main(precisions.of_training, config.precision, device)
        self.compute_in(precision or precisions.FP32)
        self.needs_timing = precision is None
        self.average = (
            None if config.ema_decay is None else MovingAverage(network, config.ema_decay)
        )
        self.frozen: list[nn.Parameter] = []
        # Batch norm statistics, saved before a step and restored unless it is taken.
        buffers = list(network.buffers())
        before = [buffer.clone() for buffer in buffers]
        self.save_buffers, self.restore_buffers = (
            TensorPairs(before, buffers),
            TensorPairs(buffers, before),
        )
        self.compute = self._shared()

    @property
    def result(self) -> nn.Module:
        """The network to validate and keep: the moving average, if there is one."""
        return self.network if self.average is None else self.average.network

    def compute_in(self, precision: str) -> None:
        """Take the steps to come in fp32, bf16 or fp16."""
        self.precision, self.needs_timing = precision, False
        self.autocast = precisions.autocast(self.device, precision)
        self.scaler = precisions.loss_scaler(self.device, precision)

    def faster_precision(self) -> tuple[str, float]:
        """Time a small step in fp32 and in bf16: see precisions.faster.

        Weights, statistics and random generators stay as they are.
        """
        size, criterion = self.config.image_size, CRITERIA[self.config.loss]
        images = torch.linspace(0, 1, 2 * size * size).reshape(2, 1, size, size)
        masks = (images > 0.99).float()
        with torch.random.fork_rng(devices=[]):
            network = copy.deepcopy(self.network).train()
            return precisions.faster(
                lambda: network.training_loss(images, masks, criterion)["loss"], self.device
            )

    def start_epoch(self, epoch: int) -> None:
        """Set training mode, and freeze or release the encoder, for an epoch (from 0)."""
        self.network.train()
        if self.config.batch_norm == "frozen":
            for module in self.network.modules():
                if isinstance(module, nn.modules.batchnorm._BatchNorm):
                    module.eval()
        frozen = (
            self.network.encoder_parameters() if epoch < self.config.frozen_encoder_epochs else []
        )
        if len(frozen) != len(self.frozen):
            for parameter in (*self.frozen, *frozen):
                parameter.requires_grad_(not frozen)
                parameter.grad = None
            self.frozen = frozen
            # DistributedDataParallel decides on construction which gradients it exchanges.
            self.compute = self._shared()

    def set_learning_rate(self, rate: float) -> None:
        for group in self.optimizer.param_groups:
            group["lr"] = rate

    def step(self, parts: Iterable[Part], n_parts: int, n_images: int) -> tuple[float, Outcome]:
        """Train on one batch -> its loss, and what became of the step.

        The host waits for the device once, when it reads loss and gradient norm together.
        """
        self.optimizer.zero_grad(set_to_none=True)
        self.save_buffers.copy()
        losses = []
        for number, (images, masks, counts) in enumerate(parts, start=1):
            last = number == n_parts
            with nullcontext() if last or distributed.size() == 1 else self.compute.no_sync():  # type: ignore[operator]
                with self.autocast:
                    loss = self.compute(images, masks, counts) * (sum(counts) / n_images)
                self.scaler.scale(loss).backward()
            losses.append(loss.detach())
        self.scaler.unscale_(self.optimizer)
        norm = self._clip()
        *values, norm_value = torch.stack([*losses, norm]).tolist()
        value, outcome = self._judge(sum(values), norm_value)
        if outcome is not Outcome.NOT_FINITE:
            self.scaler.step(self.optimizer)  # skips a step by itself if it is SCALED_DOWN
        self.scaler.update()
        if outcome is not Outcome.TAKEN:
            self.restore_buffers.copy()
        elif self.average is not None:
            self.average.update()
        return value, outcome

    def parts(self) -> int:
        """How many parts of a batch are computed one after the other; call before any step."""
        wanted, device = self.config.accumulation_steps, self.device
        if wanted != "auto":
            return wanted
        if device.type != "cuda":
            return 1
        weights = sum(parameter.nbytes for parameter in self.network.parameters())
        available = runtime.free_bytes(device) - 2 * weights  # for Adam's two moments
        own = runtime.fewest_parts(
            self.config.batch_size, self._peak_bytes, available, processes=distributed.size()
        )
        return max(distributed.gather(own))

    def _peak_bytes(self, n_images: int) -> int:
        """The peak of what a step with `n_images` black images allocates on the GPU.

        The second of two such steps counts: in the first one cuDNN tries algorithms, in as
        much memory as there is. They leave no trace.
        """
        random = runtime.random_state(self.device)
        self.save_buffers.copy()
        try:
            self._trial_peak(n_images)
            return self._trial_peak(n_images)
        finally:
            self.optimizer.zero_grad(set_to_none=True)
            self.restore_buffers.copy()
            runtime.set_random_state(random, self.device)

    def _trial_peak(self, n_images: int) -> int:
        device, size = self.device, self.config.image_size
        self.optimizer.zero_grad(set_to_none=True)
        torch.cuda.reset_peak_memory_stats(device)
        before = torch.cuda.memory_allocated(device)
        images = torch.zeros(n_images, 1, size, size, device=device)
        with self.autocast:
            loss = self.compute(images, images, [n_images] * distributed.size())
        self.scaler.scale(loss).backward()
        return torch.cuda.max_memory_allocated(device) - before

    def state(self) -> dict[str, Any]:
        """Everything but the network's weights, in plain types and tensors."""
        return {
            "optimizer": self.optimizer.state_dict(),
            "scaler": self.scaler.state_dict(),
            "precision": self.precision,
            "device": self.device.type,
            "average": None if self.average is None else self.average.state(),
        }

    def load(self, state: dict[str, Any]) -> None:
        self.optimizer.load_state_dict(state["optimizer"])
        if self.needs_timing and state.get("device") == self.device.type:
            self.compute_in(state["precision"])  # a fold stays in what it was begun in
        # A run begun in bf16 may be resumed on a GPU with fp16 only, and vice versa.
        if state["scaler"] and self.scaler.is_enabled():
            self.scaler.load_state_dict(state["scaler"])
        if self.average is not None:
            self.average.load(state["average"])

    def _clip(self) -> torch.Tensor:
        """Clip the gradients -> their norm before."""
        gradients = [
            parameter.grad for parameter in self.network.parameters() if parameter.grad is not None
        ]
        norm = nn.utils.get_total_norm(gradients)
        if self.config.clip_gradient_norm is not None:
            nn.utils.clip_grads_with_norm_(
                self.network.parameters(), self.config.clip_gradient_norm, norm
            )
        return norm

    def _judge(self, loss: float, norm: float) -> tuple[float, Outcome]:
        """The mean loss over the processes, and the outcome, which is the same for all."""
        scales = self.scaler.is_enabled()
        broken = not math.isfinite(loss) or not (scales or math.isfinite(norm))
        overflow = scales and not math.isfinite(norm)
        loss, n_broken, n_overflow = distributed.sums(
            [loss / distributed.size(), float(broken), float(overflow)]
        )
        if n_broken:
            return loss, Outcome.NOT_FINITE
        return loss, Outcome.SCALED_DOWN if n_overflow else Outcome.TAKEN

    def _shared(self) -> nn.Module:
        """The training loss, whose backward pass averages gradients over the processes."""
        loss = TrainingLoss(self.network, CRITERIA[self.config.loss])
        if self.config.compile:
            loss.compile()
        if distributed.size() == 1:
            return loss
        return DistributedDataParallel(
            loss, find_unused_parameters=self.network.has_idle_parameters
        )


class TrainingLoss(nn.Module):
    """images (N, 1, H, W) in [0, 1], masks (N, 1, H, W) of 0 and 1 -> the loss to minimise.

    `counts` says how many images of each process count.
    """

    def __init__(self, network: Any, criterion: distributed.Criterion) -> None:
        super().__init__()
        self.network = network
        self.criterion = criterion

    def forward(self, images: torch.Tensor, masks: torch.Tensor, counts: list[int]) -> torch.Tensor:
        criterion = functools.partial(distributed.over_all_processes, self.criterion, counts=counts)
        return self.network.training_loss(images, masks, criterion)["loss"]


class MovingAverage:
    """Exponential moving average of all weights and batch norm statistics, step by step.

    The decay after n steps is (1 + n) / (10 + n), up to `decay`, as in TensorFlow's
    ExponentialMovingAverage: a fixed decay would keep initial weights for hundreds of steps.
    """

    def __init__(self, network: nn.Module, decay: float) -> None:
        self.decay = decay
        self.steps = 0
        self.network = copy.deepcopy(network).eval().requires_grad_(False)
        self.pairs = TensorPairs(self.network.state_dict().values(), network.state_dict().values())

    def update(self) -> None:
        """Take in the weights that the network has now."""
        decay = min(self.decay, (1 + self.steps) / (10 + self.steps))
        self.steps += 1
        self.pairs.move(1 - decay)

    def state(self) -> dict[str, Any]:
        return {"steps": self.steps, "network": self.network.state_dict()}

    def load(self, state: dict[str, Any]) -> None:
        self.steps = state["steps"]
        self.network.load_state_dict(state["network"])


class TensorPairs:
    """Targets and sources of equal shapes, written in one kernel per data type.

    A network has hundreds of small tensors; a kernel for each costs a GPU more than the work.
    """

    def __init__(self, targets: Iterable[torch.Tensor], sources: Iterable[torch.Tensor]) -> None:
        self.groups: dict[torch.dtype, tuple[list[torch.Tensor], list[torch.Tensor]]] = {}
        for target, source in zip(targets, sources, strict=True):
            group = self.groups.setdefault(target.dtype, ([], []))
            group[0].append(target)
            group[1].append(source)

    @torch.no_grad()
    def copy(self) -> None:
        for targets, sources in self.groups.values():
            torch._foreach_copy_(targets, sources)

    @torch.no_grad()
    def move(self, share: float) -> None:
        """Move each target by a share of the way to its source; whole numbers are copied."""
        for dtype, (targets, sources) in self.groups.items():
            if dtype.is_floating_point:
                torch._foreach_lerp_(targets, sources, share)
            else:
                torch._foreach_copy_(targets, sources)
