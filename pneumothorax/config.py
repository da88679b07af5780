"""One experiment: every setting that defines it, with the paper's values as defaults where it gives any.

A YAML file holds only what differs; `--set key=value` overrides it; the resolved whole is saved with the run.
"""

from pathlib import Path
from typing import Any, Literal

import pydantic
import yaml

from pneumothorax import atomic
from pneumothorax.errors import BadConfig

Setting = bool | int | float | str | list[int] | None


class TrainConfig(pydantic.BaseModel, extra="forbid", frozen=True):
    """One experiment. "Paper": Yao Zhang, Segmentation of Pneumothorax Disease based on Deep Learning, section 3.1."""

    model: str = "ica_resunet"
    model_settings: dict[str, Setting] = {}  # handed to models.build
    image_size: int = pydantic.Field(512, ge=32, multiple_of=32)  # pixels, square; the paper's 512
    epochs: int = pydantic.Field(40, ge=1)  # an epoch holds every positive once; the paper gives no number
    batch_size: int = pydantic.Field(16, ge=2)
    learning_rate: float = pydantic.Field(1e-4, gt=0, allow_inf_nan=False)  # Adam's, at the start; not in the paper
    final_learning_rate: float = pydantic.Field(1e-6, ge=0, allow_inf_nan=False)  # CosineAnnealingLR's eta_min
    weight_decay: float = pydantic.Field(0.0, ge=0)
    mixed_precision: bool = False  # bf16 where the device has it, else fp16 with loss scaling
    loss: Literal["bce_dice"] = "bce_dice"  # the paper names none
    # (share of training done, positives per negative): the paper's 2:1 first, then 1:1; the switch point is ours.
    sampling: tuple[tuple[float, float], ...] = ((0.0, 2.0), (0.33, 1.0))
    # Chance of each augmentation on a negative and on a positive image: the paper distorts positives more often.
    augment_negative: float = pydantic.Field(0.3, ge=0, le=1)
    augment_positive: float = pydantic.Field(0.5, ge=0, le=1)
    validate_every: int = pydantic.Field(1, ge=1)  # epochs; the last one is always validated
    seed: int = pydantic.Field(42, ge=0, lt=2**32)

    @pydantic.field_validator("sampling")
    @classmethod
    def _schedule(cls, steps: tuple[tuple[float, float], ...]) -> tuple[tuple[float, float], ...]:
        shares = [share for share, _ in steps]
        if not steps or shares[0] != 0 or shares != sorted(set(shares)) or not all(0 <= share < 1 for share in shares):
            raise ValueError("the shares of training done begin at 0, rise, and stay below 1")
        if not all(ratio > 0 for _, ratio in steps):
            raise ValueError("positives per negative must be above 0")
        return steps


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
        wrong = "\n  ".join(f"{'.'.join(map(str, one['loc']))}: {one['msg']}" for one in error.errors())
        known = ", ".join(TrainConfig.model_fields)
        raise BadConfig(f"{path}, with what --set and --seed change:\n  {wrong}\nknown settings: {known}") from error
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
    return [f"{key}: {old.get(key)} there, {new.get(key)} now" for key in keys if old.get(key) != new.get(key)]
