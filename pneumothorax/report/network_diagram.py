"""The paper's figures 1 and 3 with true shapes: the network, and its attention block.

Both are drawn from the description of a forward pass that stage 02 saves with the run.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from pneumothorax import plotting
from pneumothorax.plotting import Style

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure
    from matplotlib.patches import FancyBboxPatch

ATTENTION = "ImprovedCoordAttention"  # as in compute/network_cost.py, which needs PyTorch
WIDTH, HEIGHT = 2.05, 0.5  # of a box, in inches
COLUMN, ROW, LEVEL_GAP = 2.6, 0.7, 0.45  # from box to box; between the levels of strides
DIAGONAL = 0.45  # how far a coarser level begins to the right, in columns
BEND = 0.36  # how high an arrow rises that is bent around boxes, in inches
LONGEST = 28  # characters of a line at full size
PLAIN, SPECIAL, END = 0, 1, 2  # the style's series: parts, attention, image and output


@dataclass
class Box:
    """One part: its text, the boxes it takes tensors from, and its place (centre, inches)."""

    title: str
    shape: str
    series: int
    sources: list[int]
    level: int = 0  # log2 of the stride; one more than all others without a feature map
    x: float = 0.0
    y: float = 0.0


def draw(trace: dict[str, Any], style: Style) -> Figure:
    """The parts of a network (network_cost.trace): one row per stride, so that a U-Net is a U."""
    boxes = boxes_of(trace)
    edges = place(boxes)
    facts = f"{trace['parameters'] / 1e6:.1f} M weights"
    facts += f", {trace['multiply_adds'] / 1e9:.2f} G multiply-adds"
    title = f"{trace['network']}: {facts} for one image of {trace['size']} × {trace['size']}"
    last_level = max(box.level for box in boxes)
    has_maps = any(part["stride"] == 2**last_level for part in trace["parts"])
    with style.settings():
        figure, axes = _canvas(boxes, style, title, margin=1.0)
        for level, (bottom, top) in edges.items():
            if level % 2 == 0:
                axes.axhspan(bottom, top, color=style.muted, alpha=0.1, linewidth=0)
            name = f"stride {2**level}" if level < last_level or has_maps else "other"
            axes.text(axes.get_xlim()[0] + 0.1, (bottom + top) / 2, name, va="center", fontsize=9)
        _draw(axes, boxes, style)
    return figure


def boxes_of(trace: dict[str, Any]) -> list[Box]:
    """The image, the parts and, unless the last part gives it, the output."""
    parts = trace["parts"]
    other = 1 + max((int(math.log2(part["stride"])) for part in parts if part["stride"]), default=0)
    outer = {part["name"].partition(".")[0] for part in parts}
    prefix = f"{outer.pop()}." if len(outer) == 1 else ""  # of a network that wraps another
    boxes = [Box("image", shape_text([1, trace["size"], trace["size"]]), END, [])]
    for part in parts:
        shapes = list(dict.fromkeys(shape_text(shape) for shape in part["shapes"]))
        shape = shapes[0] if len(shapes) == 1 else f"{shapes[0]} … {shapes[-1]}"
        series = SPECIAL if part["class"] == ATTENTION else PLAIN
        level = int(math.log2(part["stride"])) if part["stride"] else other
        sources = [source + 1 for source in part["from"]] or [0]
        boxes.append(Box(part["name"].removeprefix(prefix), shape, series, sources, level))
    if trace["output_from"] != [len(parts) - 1] or parts[-1]["shapes"] != [trace["output"]]:
        sources = [source + 1 for source in trace["output_from"]]
        boxes.append(Box("output", shape_text(trace["output"]), END, sources))
    return boxes


def place(boxes: list[Box]) -> dict[int, tuple[float, float]]:
    """Set the boxes' places; returns each level's lower and upper edge.

    Boxes of a level that follow each other share a column. A column stands to the right
    of those on its level and of all that feed it.
    """
    stacks: list[list[int]] = []
    for number, box in enumerate(boxes):
        before = number - 1
        if before > 0 and before in box.sources and boxes[before].level == box.level:
            stacks[-1].append(number)
        else:
            stacks.append([number])
    column: dict[int, float] = {}
    for stack in stacks:
        level = boxes[stack[0]].level
        free = [at + 1 for number, at in column.items() if boxes[number].level == level]
        for source in {source for number in stack for source in boxes[number].sources} - {*stack}:
            free.append(column[source] + (1 if boxes[source].level == level else DIAGONAL))
        column |= dict.fromkeys(stack, max(free, default=0.0))

    edges: dict[int, tuple[float, float]] = {}
    top = 0.0
    for level in sorted({box.level for box in boxes}):
        here = [stack for stack in stacks if boxes[stack[0]].level == level]
        bottom = top - LEVEL_GAP - ROW * max(len(stack) for stack in here)
        for stack in here:
            # What comes from a coarser level comes from below and is read upwards.
            upwards = any(boxes[source].level > level for source in boxes[stack[0]].sources)
            for row, number in enumerate(stack if upwards else reversed(stack)):
                boxes[number].x = column[number] * COLUMN
                boxes[number].y = bottom + LEVEL_GAP / 2 + (row + 0.5) * ROW
        edges[level] = bottom, top
        top = bottom
    return edges


def draw_attention(trace: dict[str, Any], style: Style) -> Figure:
    """The inside of the network's first attention block, from left to right.

    Raises ValueError where the network has no attention block.
    """
    if trace["attention"] is None:
        raise ValueError(f"{trace['network']} has no attention block")
    boxes = attention_boxes(trace["attention"])
    title = f"{trace['network']}, {trace['attention']['name']}: improved coordinate attention"
    with style.settings():
        figure, axes = _canvas(boxes, style, title)
        _draw(axes, boxes, style)
    return figure


def attention_boxes(block: dict[str, Any]) -> list[Box]:
    """The block's operations (models/coord_attention.py), with output shapes and places."""
    channels, height, width = block["shape"]
    whole, joint = shape_text(block["shape"]), height + width
    names = [{"mean": "means", "amax": "maxima"}[name] for name in block["pooling"]]
    boxes = [Box("input", whole, END, [])]
    for number, name in enumerate(names):
        y = ((len(names) - 1) / 2 - number) * 2 * ROW
        title = f"{name} of rows and columns"
        boxes.append(Box(title, shape_text([channels, joint]), PLAIN, [0], x=COLUMN, y=y))
    profiles = list(range(1, len(boxes)))
    x = COLUMN
    if len(names) == 2 and block["merge"] != "shared":
        x += COLUMN
        title, length = {"concat": ("concatenation", 2), "sum": ("sum", 1)}[block["merge"]]
        shape = shape_text([length * channels, joint])
        boxes.append(Box(title, shape, PLAIN, profiles, x=x))
        profiles = [len(boxes) - 1]
    both = "of each, " if len(profiles) == 2 else ""
    squeezed = shape_text([block["squeezed"], joint])
    x += COLUMN
    boxes.append(Box(f"{both}1 × 1 conv, norm, hard-swish", squeezed, SPECIAL, profiles, x=x))
    squeeze, after = len(boxes) - 1, "1 × 1 conv, sum, sigmoid" if both else "1 × 1 conv, sigmoid"
    for part, length, y in (("rows", height, ROW), ("columns", width, -ROW)):
        shape = shape_text([channels, length])
        boxes.append(Box(f"{part}: {after}", shape, SPECIAL, [squeeze], x=x + COLUMN, y=y))
    gate = Box("product", whole, PLAIN, [squeeze + 1, squeeze + 2], x=x + 2 * COLUMN)
    title = "input + input · gate" if block["residual"] else "input · gate"
    output = Box(title, whole, END, [squeeze + 3, 0], x=x + 3 * COLUMN)
    return [*boxes, gate, output]


def shape_text(shape: Sequence[int]) -> str:
    """[64, 128, 128] -> 64 × 128 × 128; a single number for a scalar or a vector."""
    return " × ".join(str(length) for length in shape) or "1"


def _canvas(
    boxes: list[Box], style: Style, title: str, *, margin: float = 0.15
) -> tuple[Figure, Axes]:
    """A figure on which one unit is one inch, with a margin for the levels' names on the left."""
    left, right = -WIDTH / 2 - margin, max(box.x for box in boxes) + WIDTH / 2 + 0.15
    bottom, top = (end(box.y for box in boxes) for end in (min, max))
    bottom, top = bottom - ROW, top + ROW
    figure = plotting.new(style, right - left, top - bottom + 0.45)
    axes = figure.add_subplot()
    axes.set(xlim=(left, right), ylim=(bottom, top), aspect="equal")
    axes.set_axis_off()
    axes.set_title(title, fontsize=12)
    return figure, axes


def _draw(axes: Axes, boxes: list[Box], style: Style) -> None:
    patches = [_box(axes, box, style) for box in boxes]
    for number, end in enumerate(boxes):
        for source in end.sources:
            start = boxes[source]
            between = [box for box in boxes if start.x < box.x < end.x and box.level == end.level]
            bent = start.level == end.level and bool(between)
            covered = (
                end.y > start.y
                and end.x > start.x
                and any(
                    box.x == start.x and box.level == start.level and box.y > start.y
                    for box in boxes
                )
            )
            way = "bent" if bent else "from the side" if covered else "straight"
            _arrow(axes, patches[source], patches[number], style, way=way)


def _box(axes: Axes, box: Box, style: Style) -> FancyBboxPatch:
    from matplotlib.patches import FancyBboxPatch

    corner = box.x - WIDTH / 2 + 0.05, box.y - HEIGHT / 2 + 0.05
    patch = FancyBboxPatch(
        corner,
        WIDTH - 0.1,
        HEIGHT - 0.1,
        boxstyle="round,pad=0.05",
        edgecolor=style.colour(box.series),
        facecolor=style.pale(box.series),
        linewidth=1.2,
        zorder=3,
    )
    axes.add_patch(patch)
    text = f"{box.title}\n{box.shape}"
    longest = max(len(line) for line in text.split("\n"))
    size = min(8.5, 8.5 * LONGEST / longest)
    axes.text(box.x, box.y, text, ha="center", va="center", fontsize=size, zorder=4)
    return patch


def _arrow(
    axes: Axes, start: FancyBboxPatch, end: FancyBboxPatch, style: Style, *, way: str
) -> None:
    """From box to box; dashed where it passes a column.

    Args:
        way: "straight", "from the side" of a box below others, or "bent" upwards around
            boxes in between.
    """
    from matplotlib.patches import FancyArrowPatch

    (x, y), (to_x, to_y) = (
        (patch.get_x() + patch.get_width() / 2, patch.get_y() + patch.get_height() / 2)
        for patch in (start, end)
    )
    from_side = way == "from the side"
    bend = 2 * BEND / math.hypot(to_x - x, to_y - y) if way == "bent" else 0.0
    far = to_x - x > 1.5 * COLUMN
    arrow = FancyArrowPatch(
        (x + WIDTH / 2, y) if from_side else (x, y),
        (to_x, to_y),
        patchA=None if from_side else start,
        patchB=end,
        connectionstyle=f"arc3,rad={-bend}",
        arrowstyle="-|>",
        mutation_scale=9,
        shrinkA=0,
        shrinkB=0,
        color=style.muted if far else style.text,
        linestyle="--" if far else "-",
        linewidth=1.1,
        zorder=2,
    )
    axes.add_patch(arrow)
