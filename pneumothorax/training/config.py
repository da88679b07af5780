"""One experiment: every setting that defines it, with the paper's values as defaults where it gives any.

A YAML file holds only what differs; `--set key=value` overrides it; the resolved whole is saved with the run.
"""

import re
from pathlib import Path
from typing import Any, Literal, Self

import pydantic
import yaml

from pneumothorax.errors import BadConfig
from pneumothorax.pipeline import atomic
from pneumothorax.training import schedules

Setting = bool | int | float | str | list[int] | None


class TrainConfig(pydantic.BaseModel, extra="forbid", frozen=True):
    """One experiment. "Paper": Yao Zhang, Segmentation of Pneumothorax Disease based on Deep Learning, section 3.1."""

    model: str = "ica_resunet"
    model_settings: dict[str, Setting] = {}  # handed to models.build
    image_size: int = pydantic.Field(512, ge=32, multiple_of=32)  # pixels, square; the paper's 512
    epochs: int = pydantic.Field(
        40, ge=1
    )  # an epoch holds every positive once; the paper gives no number
    batch_size: int = pydantic.Field(
        16, ge=2
    )  # images per step of the optimizer, over all processes
    accumulation_steps: int = pydantic.Field(
        1, ge=1
    )  # parts in which a batch is computed one by one, to save memory
    learning_rate: float = pydantic.Field(
        1e-4, gt=0, allow_inf_nan=False
    )  # Adam's, at the start; not in the paper
    final_learning_rate: float = pydantic.Field(
        1e-6, ge=0, allow_inf_nan=False
    )  # CosineAnnealingLR's eta_min
    weight_decay: float = pydantic.Field(0.0, ge=0)
    clip_gradient_norm: float | None = pydantic.Field(None, gt=0, allow_inf_nan=False)
    mixed_precision: bool = False  # bf16 where the device has it, else fp16 with loss scaling
    compile: bool = False  # torch.compile, of the training step
    batch_norm: Literal["trained", "frozen", "synchronised"] = (
        "trained"  # synchronised: over processes, on GPUs alone
    )
    loss: Literal["bce_dice", "combo", "focal", "lovasz"] = "bce_dice"  # the paper names none
    # A name of schedules.py, or steps (share of training done, positives per negative).
    sampling: schedules.Steps | Literal["paper", "steps", "linear", "natural"] = "paper"
    positive_repeat: int = pydantic.Field(
        1, ge=1
    )  # copies of every positive in an epoch, each augmented differently
    # Chance of each augmentation on a negative and on a positive image: the paper distorts positives more often.
    augment_negative: float = pydantic.Field(0.3, ge=0, le=1)
    augment_positive: float = pydantic.Field(0.5, ge=0, le=1)
    init_from: str | None = None  # "runs/<run>": start from the weights of that run's same fold
    frozen_encoder_epochs: int = pydantic.Field(
        0, ge=0
    )  # in the first ones the encoder's weights stay as they are
    ema_decay: float | None = pydantic.Field(
        None, gt=0, lt=1
    )  # validate and keep an exponential average of weights
    average_best: int = pydantic.Field(
        1, ge=1
    )  # best.pt is the mean weights of so many best epochs
    patience: int | None = pydantic.Field(
        None, ge=1
    )  # validations without a better score before training ends
    validate_every: int = pydantic.Field(1, ge=1)  # epochs; the last one is always validated
    seed: int = pydantic.Field(42, ge=0, lt=2**32)

    @pydantic.field_validator("sampling")
    @classmethod
    def _schedule(cls, steps: schedules.Steps | str) -> schedules.Steps | str:
        if isinstance(steps, str):
            return steps
        shares = [share for share, _ in steps]
        if (
            not steps
            or shares[0] != 0
            or shares != sorted(set(shares))
            or not all(0 <= share < 1 for share in shares)
        ):
            raise ValueError("the shares of training done begin at 0, rise, and stay below 1")
        if not all(ratio > 0 for _, ratio in steps):
            raise ValueError("positives per negative must be above 0")
        return steps

    @pydantic.field_validator("init_from")
    @classmethod
    def _run(cls, name: str | None) -> str | None:
        if name is not None and not re.fullmatch(r"runs/[A-Za-z0-9][A-Za-z0-9._-]{0,63}", name):
            raise ValueError("runs/<name of a run>")
        return name

    @pydantic.model_validator(mode="after")
    def _parts(self) -> Self:
        part, rest = divmod(self.batch_size, self.accumulation_steps)
        if rest or part < 2:
            raise ValueError(
                "batch_size is a multiple of accumulation_steps, with at least two images in each part"
            )
        return self


def load(path: Path, overrides: list[str], **fixed: Any) -> TrainConfig:
    """The YAML file, then `key=value` overrides, then `fixed` values that are not None. Raises BadConfig."""
    try:
        values = yaml.safe_load(path.read_text(encoding="utf-8")) or {}
    except (OSError, UnicodeDecodeError, yaml.YAMLError) as error:
        raise BadConfig(f"{path} cannot be read: {error}") from error
    if not isinstance(values, dict):
        raise BadConfig(f"{path} must hold `key: value` lines")
    for text in overrides:
        _override(values, text)
    values.update({key: value for key, value in fixed.items() if value is not None})
    try:
        return TrainConfig(**values)
    except pydantic.ValidationError as error:
        named = [(".".join(map(str, one["loc"])), one["msg"]) for one in error.errors()]
        wrong = "\n  ".join(
            f"{name}: {text}" if name else text for name, text in named
        )  # "": several settings
        known = ", ".join(TrainConfig.model_fields)
        raise BadConfig(
            f"{path}, with what --set and --seed change:\n  {wrong}\nknown settings: {known}"
        ) from error
    except TypeError as error:
        raise BadConfig(f"{path}: {error}") from error


def _override(values: dict[str, Any], text: str) -> None:
    """Apply one `key=value` or `key.inner=value`; the value is read as YAML."""
    key, equals, value = text.partition("=")
    if not equals:
        raise BadConfig(f"--set {text}: expected key=value")
    outer, _, inner = key.partition(".")
    try:
        parsed = yaml.safe_load(value)
    except yaml.YAMLError as error:
        raise BadConfig(f"--set {text}: {error}") from error
    if not inner:
        values[outer] = parsed
        return
    nested = values.setdefault(outer, {})
    if not isinstance(nested, dict):
        raise BadConfig(f"--set {text}: {outer} holds no settings of its own")
    nested[inner] = parsed


def as_dict(config: TrainConfig) -> dict[str, Any]:
    """Plain types only: what goes into checkpoints, records and YAML."""
    return config.model_dump(mode="json")


def save(path: Path, config: TrainConfig) -> None:
    atomic.write_text(path, yaml.safe_dump(as_dict(config), sort_keys=False))


def saved(path: Path) -> dict[str, Any]:
    """The settings saved with a run. Raises BadConfig when the file is damaged."""
    return as_dict(load(path, []))


def differences(old: dict[str, Any], new: dict[str, Any]) -> list[str]:
    """One line per setting that differs."""
    keys = [*new, *(key for key in old if key not in new)]
    return [
        f"{key}: {old.get(key)} there, {new.get(key)} now"
        for key in keys
        if old.get(key) != new.get(key)
    ]
