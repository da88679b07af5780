"""Files of weights as people have them: tensors by name, whatever they are wrapped in."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import TypeGuard

import torch
from safetensors.torch import load_file

State = dict[str, torch.Tensor]

IN_A_FOLDER = "model.safetensors"  # written by save_pretrained of smp and of timm
SAFETENSORS = ".safetensors"
PICKLED = (".pth", ".pt", ".bin", ".ckpt", ".tar")  # all written by torch.save
# Where checkpoints keep the network. Lightning and timm say state_dict, this project network.
WRAPPERS = ("state_dict", "model_state_dict", "model", "network", "net")
MAX_NESTED = 4  # a pickle can contain itself
COMPILED = "_orig_mod."  # torch.compile puts it before the names of what it compiled
MAX_LISTED = 10


class WeightsError(ValueError):
    """Encoder weights are missing or do not fit. The message says what differs and what to do."""


def read(path: Path) -> State:
    """Tensors by name from a file, or from a folder that save_pretrained wrote.

    A checkpoint's network is found under one of WRAPPERS. No code in the file is executed.
    Raises WeightsError.
    """
    if path.is_dir():
        path = path / IN_A_FOLDER
    if not path.is_file():
        raise WeightsError(
            f"encoder weights {path}: no such file; pass imagenet, none or the path of a file"
        )
    if path.suffix not in (SAFETENSORS, *PICKLED):
        endings = f"{', '.join(PICKLED)} or {SAFETENSORS}"
        raise WeightsError(f"encoder weights {path}: the name must end in {endings}")
    try:
        if path.suffix == SAFETENSORS:
            content: object = load_file(path)
        else:
            content = torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:  # a damaged file raises almost anything
        raise WeightsError(
            f"encoder weights {path} cannot be read as plain tensors: {_reason(error)}"
        ) from error
    state = _unwrapped(content)
    if not _is_state(state):
        found = f"a dict with {listed(state)}" if isinstance(state, dict) else type(state).__name__
        raise WeightsError(
            f"encoder weights {path}: expected a dict of tensors by name, alone or as one of "
            f"{', '.join(WRAPPERS)}; found {found}"
        )
    return {name.replace(COMPILED, ""): value for name, value in state.items()}


def part(state: Mapping[str, torch.Tensor], names: Iterable[str]) -> State:
    """The tensors of the module that has these names, without the module's own name.

    It is called encoder in smp's models, model.encoder in Lightning's, module.encoder after
    DataParallel, and so on: what stands before most of the names. If nothing does, `state`.

    Args:
        names: the module's, as `flat` spells them.

    Raises:
        WeightsError: `state` holds several such modules.
    """
    wanted = set(names)
    found: Counter[str] = Counter()
    for name in state:
        starts = [0, *(dot.end() for dot in re.finditer(r"\.", name))]
        found.update(name[:start] for start in starts if flat(name[start:]) in wanted)
    if not found or 2 * max(found.values()) < len(wanted):
        return dict(state)
    prefix, *others = [each for each in found if found[each] == max(found.values())]
    if others:
        raise WeightsError(
            f"the encoder is there {1 + len(others)} times, as {listed([prefix, *others])}: "
            "save one of them alone"
        )
    return {
        name.removeprefix(prefix): value for name, value in state.items() if name.startswith(prefix)
    }


def flat(name: str) -> str:
    """The same for stages.0 and stages_0: timm's files have one, its encoders the other."""
    return name.replace(".", "_")


def listed(names: Iterable[object]) -> str:
    """The first names, and how many more there are."""
    texts = [str(name) for name in names]
    more = f" and {len(texts) - MAX_LISTED} more" if len(texts) > MAX_LISTED else ""
    return ", ".join(texts[:MAX_LISTED]) + more


def _reason(error: Exception) -> str:
    foreign = re.search(r"GLOBAL (\S+)", str(error))  # in the message of weights_only
    if foreign:
        return (
            f"it holds {foreign[1]}, and only tensors are read; save them alone: "
            "torch.save(network.state_dict(), 'weights.pth')"
        )
    return str(error).splitlines()[0] if str(error) else type(error).__name__


def _unwrapped(content: object) -> object:
    for _ in range(MAX_NESTED):
        if not isinstance(content, dict) or _is_state(content):
            break
        inner = [content[key] for key in WRAPPERS if isinstance(content.get(key), dict)]
        if not inner:
            break
        content = inner[0]
    return content


def _is_state(content: object) -> TypeGuard[State]:
    """Whether it is plain tensors by name: neither sparse nor without values."""
    return isinstance(content, dict) and all(
        isinstance(name, str)
        and isinstance(value, torch.Tensor)
        and value.layout is torch.strided
        and value.device.type == "cpu"
        for name, value in content.items()
    )
