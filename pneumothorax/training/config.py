"""One experiment: every setting that defines it.

Defaults follow the paper where it speaks and measurement does not speak against it.

A YAML file holds only what differs; its key `base` names a file whose settings come first.
`--set key=value` overrides both. The resolved settings are saved with the run.
"""

import re
from pathlib import Path
from typing import Annotated, Any, Literal, Self

import pydantic
import yaml
from pydantic import Field

from pneumothorax.errors import BadConfig
from pneumothorax.pipeline import atomic
from pneumothorax.training.sampling import Steps

Setting = bool | int | float | str | list[int] | None

# How steps are computed, not what: a run may continue with other values, on another card.
HOW = ("accumulation_steps", "precision", "compile")
BASE = "base"  # a key of the file, not a setting: the path of another file, relative to this one
RENAMED = {
    "model_settings.presence_weight": "model_settings.classification_weight",
    "mixed_precision": "precision: auto, fp32, bf16 or fp16",
}


class TrainConfig(pydantic.BaseModel, extra="forbid", frozen=True, allow_inf_nan=False):
    """One experiment.

    "Paper" is Yao Zhang, Segmentation of Pneumothorax Disease based on Deep Learning,
    section 3.1.
    """

    model: str = "ica_resunet"
    # Arguments of models.build.
    model_settings: dict[str, Setting] = {}
    # Pixels, square; the paper's 512.
    image_size: int = Field(512, ge=32, multiple_of=32)
    # An epoch holds every positive once. The paper gives no number of epochs.
    epochs: int = Field(40, ge=1)
    # Images per step of the optimizer, over all processes.
    batch_size: int = Field(16, ge=2)
    # Parts of a batch that are computed one after the other, to save memory. auto: on a GPU
    # as few as fit into its free memory, found by trial; else 1.
    accumulation_steps: Annotated[int, Field(ge=1)] | Literal["auto"] = 1
    # Adam's, at the start; not in the paper.
    learning_rate: float = Field(1e-4, gt=0)
    # CosineAnnealingLR's eta_min.
    final_learning_rate: float = Field(1e-6, ge=0)
    # Steps in which the learning rate rises from near 0, half of all at most; then the cosine
    # begins.
    warmup_steps: int = Field(0, ge=0)
    weight_decay: float = Field(0.0, ge=0)
    clip_gradient_norm: float | None = Field(None, gt=0)
    # auto: 16 bits where the device has units for them and trains faster with them. fp16 scales
    # the loss.
    precision: Literal["auto", "fp32", "bf16", "fp16"] = "auto"
    # torch.compile the training step.
    compile: bool = False
    # synchronised: over processes, on GPUs only.
    batch_norm: Literal["trained", "frozen", "synchronised"] = "trained"
    # The paper names none.
    loss: Literal["bce_dice", "combo", "focal", "lovasz", "positive_combo"] = "bce_dice"
    # A name (see sampling.py), or steps: (share of training done, positives per negative).
    sampling: Steps | Literal["paper", "steps", "linear", "natural"] = "paper"
    # Copies of every positive in an epoch, each augmented differently.
    positive_repeat: int = Field(1, ge=1)
    # Probability of an intensity change, and of a distortion. The paper changes positives more
    # often than negatives; a network sees that and takes "distorted" for "positive".
    augment_negative: float = Field(0.5, ge=0, le=1)
    augment_positive: float = Field(0.5, ge=0, le=1)
    # Probability of shift, scale and rotation together, for all images. Not in the paper.
    shift_scale_rotate: float = Field(0.5, ge=0, le=1)
    # Wider changes, noise, blur, sharpness, hidden rectangles (augment.py). Not in the paper.
    strong_augmentation: bool = False
    # "runs/<run>": start from the weights of the same fold of that run.
    init_from: str | None = None
    # The encoder's weights stay fixed in the first epochs.
    frozen_encoder_epochs: int = Field(0, ge=0)
    # Validate and keep an exponential moving average of the weights.
    ema_decay: float | None = Field(None, gt=0, lt=1)
    # best.pt is the mean of the weights of this number of best epochs.
    average_best: int = Field(1, ge=1)
    # Validations without a better score before training ends.
    patience: int | None = Field(None, ge=1)
    # Epochs; the last one is always validated.
    validate_every: int = Field(1, ge=1)
    seed: int = Field(42, ge=0, lt=2**32)

    @pydantic.field_validator("sampling")
    @classmethod
    def _rising_steps(cls, steps: Steps | str) -> Steps | str:
        if isinstance(steps, str):
            return steps
        shares = [share for share, _ in steps]
        rising = shares == sorted(set(shares))
        if not steps or shares[0] != 0 or not rising or not all(0 <= share < 1 for share in shares):
            raise ValueError("the shares of training done must begin at 0, rise, and stay below 1")
        if not all(ratio > 0 for _, ratio in steps):
            raise ValueError("positives per negative must be above 0")
        return steps

    @pydantic.field_validator("init_from")
    @classmethod
    def _name_of_run(cls, name: str | None) -> str | None:
        if name is not None and not re.fullmatch(r"runs/[A-Za-z0-9][A-Za-z0-9._-]{0,63}", name):
            raise ValueError("must be runs/<name of a run>")
        return name

    @pydantic.model_validator(mode="after")
    def _equal_parts(self) -> Self:
        parts = 1 if self.accumulation_steps == "auto" else self.accumulation_steps
        part, rest = divmod(self.batch_size, parts)
        if rest or part < 2:
            raise ValueError(
                "batch_size must be a multiple of accumulation_steps, with two images or more each"
            )
        return self


def load(path: Path, overrides: list[str], **fixed: Any) -> TrainConfig:
    """The file on top of its bases, then `key=value` overrides, then `fixed` if not None.

    Raises BadConfig.
    """
    values = read(path)
    for text in overrides:
        _override(values, text)
    values.update({key: value for key, value in fixed.items() if value is not None})
    source = f"{path} with --set and --seed applied"
    _refuse_renamed(values, source)
    try:
        return TrainConfig(**values)
    except pydantic.ValidationError as error:
        unknown = {"extra_forbidden": "is not a setting"}
        named = [
            (".".join(map(str, one["loc"])), unknown.get(one["type"], one["msg"]))
            for one in error.errors()
        ]
        # An error about several settings has no name.
        wrong = "\n  ".join(f"{name}: {text}" if name else text for name, text in named)
        known = ", ".join(TrainConfig.model_fields)
        raise BadConfig(f"{source}:\n  {wrong}\nknown settings: {known}") from error
    except TypeError as error:
        raise BadConfig(f"{path}: the names of settings must be text ({error})") from error


def read(path: Path, named_by: tuple[Path, ...] = ()) -> dict[str, Any]:
    """A file's settings on top of those of its base, and of the base's base, unchecked.

    `model_settings` are merged key by key. Raises BadConfig for a file that cannot be read
    and for bases that form a loop.

    Args:
        named_by: the files that led here through `base`.
    """
    chain = " -> ".join(map(str, (*named_by, path)))
    try:
        if path.resolve() in [one.resolve() for one in named_by]:
            raise BadConfig(f"base: these configs form a loop: {chain}")
        values = yaml.safe_load(path.read_text(encoding="utf-8"))
    except (OSError, UnicodeDecodeError, RecursionError, yaml.YAMLError) as error:
        raise BadConfig(f"{chain} cannot be read: {_reason(error)}") from error
    if values is None:  # an empty file
        return {}
    if not isinstance(values, dict):
        raise BadConfig(f"{chain} must hold `key: value` lines")
    if BASE not in values:
        return values
    base = values.pop(BASE)
    if not isinstance(base, str) or not base or "\0" in base:
        raise BadConfig(f"{chain}: base must be the path of another config, got {base!r}")
    return _merged(read(path.parent / base, (*named_by, path)), values)


def _merged(below: dict[str, Any], above: dict[str, Any]) -> dict[str, Any]:
    merged = {**below, **above}
    first, last = below.get("model_settings"), above.get("model_settings")
    if isinstance(first, dict) and isinstance(last, dict):
        merged["model_settings"] = {**first, **last}
    return merged


def _override(values: dict[str, Any], text: str) -> None:
    """Apply one `key=value` or `key.inner=value`; the value is read as YAML."""
    key, equals, value = text.partition("=")
    if not equals:
        raise BadConfig(f"--set {text}: expected key=value")
    outer, _, inner = key.partition(".")
    try:
        parsed = yaml.safe_load(value)
    except (RecursionError, yaml.YAMLError) as error:
        raise BadConfig(f"--set {text}: {_reason(error)}") from error
    if not inner:
        values[outer] = parsed
        return
    nested = values.setdefault(outer, {})
    if not isinstance(nested, dict):
        raise BadConfig(f"--set {text}: {outer} is a single value and has no inner settings")
    nested[inner] = parsed


def _reason(error: Exception) -> str:
    """Why a text is not YAML, or a file cannot be read, on one line."""
    if isinstance(error, yaml.MarkedYAMLError) and error.problem_mark is not None:
        return f"line {error.problem_mark.line + 1}: {error.problem}"
    if isinstance(error, UnicodeDecodeError):
        return "it is not UTF-8 text"
    if isinstance(error, RecursionError):
        return "it is nested too deeply"
    strerror = getattr(error, "strerror", None)
    return strerror or " ".join(str(error).split())


def _refuse_renamed(values: dict[str, Any], source: str) -> None:
    nested = values.get("model_settings")
    inner = nested if isinstance(nested, dict) else {}
    names = {*values, *(f"model_settings.{key}" for key in inner)}
    renamed = [f"{old} is now {new}" for old, new in RENAMED.items() if old in names]
    if renamed:
        raise BadConfig("\n  ".join([f"{source}:", *renamed]))


def as_dict(config: TrainConfig) -> dict[str, Any]:
    """Plain types only, for checkpoints, records and YAML."""
    return config.model_dump(mode="json")


def save(path: Path, config: TrainConfig) -> None:
    atomic.write_text(path, yaml.safe_dump(as_dict(config), sort_keys=False))


def saved(path: Path) -> dict[str, Any]:
    """The settings saved with a run. Raises BadConfig if the file is damaged."""
    return as_dict(load(path, []))


def differences(old: dict[str, Any], new: dict[str, Any]) -> list[str]:
    """One line per setting that makes another experiment: any but HOW."""
    keys = [*new, *(key for key in old if key not in new)]
    return [
        f"{key}: {old.get(key)} before, {new.get(key)} now"
        for key in keys
        if old.get(key) != new.get(key) and key not in HOW
    ]
