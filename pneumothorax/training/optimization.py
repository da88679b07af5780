"""One step of the optimizer: gradients of a batch, in parts and over processes, in 16 or 32 bits."""

import math
import warnings
from collections.abc import Iterable
from contextlib import nullcontext
from typing import Any

import torch
from torch import nn
from torch.nn.parallel import DistributedDataParallel

from pneumothorax.compute import distributed, precision
from pneumothorax.training.averaging import MovingAverage
from pneumothorax.training.config import TrainConfig
from pneumothorax.training.losses import CRITERIA

Part = tuple[torch.Tensor, torch.Tensor, list[int]]  # images, masks, how many count on each process


class Optimization:
    """The optimizer, its schedule, loss scaling and moving average of a network that is on its device."""

    def __init__(self, network: Any, config: TrainConfig, device: torch.device) -> None:
        self.network, self.config = network, config
        self.criterion = distributed.OverAllProcesses(CRITERIA[config.loss])
        self.optimizer = torch.optim.Adam(
            network.parameters(),
            lr=config.learning_rate,
            weight_decay=config.weight_decay,
            fused=True,
        )
        self.scheduler = torch.optim.lr_scheduler.CosineAnnealingLR(
            self.optimizer, T_max=config.epochs, eta_min=config.final_learning_rate
        )
        self.autocast = precision.autocast(device, enabled=config.mixed_precision)
        self.scaler = precision.scaler(device, enabled=config.mixed_precision)
        self.average = (
            None if config.ema_decay is None else MovingAverage(network, config.ema_decay)
        )
        self.frozen: list[nn.Parameter] = []
        self.buffers = list(network.buffers())
        self.buffers_before = [buffer.clone() for buffer in self.buffers]
        self.compute = self._shared()

    @property
    def result(self) -> nn.Module:
        """The network to validate and to keep: the moving average where there is one."""
        return self.network if self.average is None else self.average.network

    def start_epoch(self, epoch: int) -> None:
        """Training mode, and the encoder frozen or not, for an epoch counted from 0."""
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
            self.compute = self._shared()  # which gradients travel is settled when it is made

    def step(self, parts: Iterable[Part], n_parts: int, n_images: int) -> tuple[float, bool]:
        """Train on one batch -> (its loss, whether the step was taken).

        It is not where the loss or the gradients are not finite: weights and statistics stay as they were.
        """
        self.optimizer.zero_grad(set_to_none=True)
        for before, buffer in zip(self.buffers_before, self.buffers, strict=True):
            before.copy_(buffer)
        value = 0.0
        for number, (images, masks, counts) in enumerate(parts, start=1):
            self.criterion.counts = counts
            last = number == n_parts
            with nullcontext() if last or distributed.size() == 1 else self.compute.no_sync():  # type: ignore[operator]
                with self.autocast:
                    loss = self.compute(images, masks) * (sum(counts) / n_images)
                self.scaler.scale(loss).backward()
            value += float(loss.detach())
        self.scaler.unscale_(self.optimizer)
        # Every process needs the same answer, or they would part ways.
        value, broken = distributed.sums(
            [value / distributed.size(), float(not self._is_finite(value))]
        )
        scale = self.scaler.get_scale()
        if not broken:
            self.scaler.step(self.optimizer)
        self.scaler.update()
        if broken or self.scaler.get_scale() < scale:  # fp16: the optimizer's step was left out
            for before, buffer in zip(self.buffers_before, self.buffers, strict=True):
                buffer.copy_(before)  # statistics of a forward pass that came to no good
            return value, False
        if self.average is not None:
            self.average.update(self.network)
        return value, True

    def end_epoch(self) -> None:
        """The learning rate of the next epoch."""
        with (
            warnings.catch_warnings()
        ):  # that no step was taken before, in this process: true after a resume
            warnings.filterwarnings("ignore", "Detected call of `lr_scheduler.step")
            self.scheduler.step()

    def _is_finite(self, loss: float) -> bool:
        """Of the loss and of the gradients' norm, which is limited here. Loss scaling looks at gradients itself."""
        gradients = [
            parameter.grad for parameter in self.network.parameters() if parameter.grad is not None
        ]
        norm = nn.utils.get_total_norm(gradients)
        if self.config.clip_gradient_norm is not None:
            nn.utils.clip_grads_with_norm_(
                self.network.parameters(), self.config.clip_gradient_norm, norm
            )
        return math.isfinite(loss) and (self.scaler.is_enabled() or bool(torch.isfinite(norm)))

    def state(self) -> dict[str, Any]:
        """Plain types and tensors: all but the network's own weights."""
        return {
            "optimizer": self.optimizer.state_dict(),
            "scheduler": self.scheduler.state_dict(),
            "scaler": self.scaler.state_dict(),
            "average": None if self.average is None else self.average.state(),
        }

    def load(self, state: dict[str, Any]) -> None:
        self.optimizer.load_state_dict(state["optimizer"])
        self.scheduler.load_state_dict(state["scheduler"])
        if (
            state["scaler"] and self.scaler.is_enabled()
        ):  # a night begun in bf16 may go on on a card with fp16 alone
            self.scaler.load_state_dict(state["scaler"])
        if self.average is not None:
            self.average.load(state["average"])

    def _shared(self) -> nn.Module:
        """images, masks -> loss; with several processes, the backward pass averages the gradients over them."""
        loss = TrainingLoss(self.network, self.criterion)
        if self.config.compile:
            loss.compile()
        if distributed.size() == 1:
            return loss
        return DistributedDataParallel(
            loss, find_unused_parameters=self.network.has_idle_parameters
        )


class TrainingLoss(nn.Module):
    """images (N, 1, H, W) in [0, 1], masks (N, 1, H, W) of 0 and 1 -> the loss to minimise."""

    def __init__(self, network: Any, criterion: distributed.OverAllProcesses) -> None:
        super().__init__()
        self.network = network
        self.criterion = criterion

    def forward(self, images: torch.Tensor, masks: torch.Tensor) -> torch.Tensor:
        return self.network.training_loss(images, masks, self.criterion)["loss"]
