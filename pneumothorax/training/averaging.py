"""Averages of weights: over the steps of training, and over the best epochs."""

import copy
from collections.abc import Iterable, Sequence
from typing import Any

import torch
from torch import nn
from torch.optim import swa_utils

from pneumothorax.compute import distributed

State = dict[str, torch.Tensor]


class MovingAverage:
    """Exponential moving average of all weights and batch norm statistics, after every step.

    The decay grows to its value as (1 + n) / (10 + n) with n steps done, as in TensorFlow's ExponentialMovingAverage:
    a fixed one would keep the initial weights for hundreds of steps.
    """

    def __init__(self, network: nn.Module, decay: float) -> None:
        self.decay = decay
        self.steps = 0
        self.network = copy.deepcopy(network).eval().requires_grad_(False)

    @torch.no_grad()
    def update(self, network: nn.Module) -> None:
        decay = min(self.decay, (1 + self.steps) / (10 + self.steps))
        self.steps += 1
        new = network.state_dict()
        for name, value in self.network.state_dict().items():
            if value.is_floating_point():
                value.lerp_(new[name], 1 - decay)
            else:
                value.copy_(new[name])

    def state(self) -> dict[str, Any]:
        return {"steps": self.steps, "network": self.network.state_dict()}

    def load(self, state: dict[str, Any]) -> None:
        self.steps = state["steps"]
        self.network.load_state_dict(state["network"])


def mean(states: Sequence[State]) -> State:
    """The mean of weights of the same network; counters come from the first."""
    return {
        name: torch.stack([state[name].double() for state in states]).mean(0).to(value.dtype)
        if value.is_floating_point()
        else value
        for name, value in states[0].items()
    }


def estimate_batch_norms(network: nn.Module, images: Iterable[torch.Tensor]) -> None:
    """Statistics anew, the mean over the batches: those of averaged weights are no average of statistics."""
    swa_utils.update_bn(images, network)
    distributed.average_buffers(network)
