"""Diagrams of a network from what `network_trace` recorded: the paper's figures 1 and 3, with true shapes."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from pneumothorax import plotting
from pneumothorax.plotting import Style

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

ATTENTION = "ImprovedCoordAttention"
WIDTH, HEIGHT, GAP = 2.05, 0.5, 0.18  # of a box and below it, in inches
ROW_GAP, COLUMN_GAP = 0.4, 0.6
LANE = 0.11  # between the lines that pass over the boxes of a level
DIAGONAL = 0.45  # how far a coarser level stands to the right, as a share of a column
LONGEST = 28  # characters of a line in a box
ATTENTION_COLOUR, PLAIN_COLOUR, END_COLOUR = 1, 0, 2  # of the style's series
FOLDED = ("batch norm", "hard-swish", "sigmoid")  # drawn in the box of the operation before them


@dataclass(eq=False)
class Box:
    """One part: what is written in it, and where it stands (centre, inches, y upwards)."""

    title: str
    shapes: list[str]
    kind: str  # the class; "" for the image and the output
    sources: list[int]
    level: float  # log2 of the stride; after all strides where the part gives no feature map
    x: float = 0.0
    y: float = 0.0


@dataclass(eq=False)
class Stack:
    """Boxes above each other in one level, each fed by the one before it."""

    boxes: list[int]
    column: float = 0.0
    upwards: bool = False  # the first box is the lowest: what comes in comes from below


@dataclass(eq=False)
class Level:
    """All stacks of one stride; `y` is its lower edge, in inches.

    `lanes` are the boxes whose output passes over others of the level, each with a line of its own above them.
    """

    label: str
    stacks: list[Stack] = field(default_factory=list)
    lanes: list[int] = field(default_factory=list)
    y: float = 0.0

    @property
    def height(self) -> float:
        most = max(len(stack.boxes) for stack in self.stacks)
        return most * (HEIGHT + GAP) - GAP

    def lane(self, source: int) -> float:
        return self.y + self.height + LANE * (1 + self.lanes.index(source))


def draw(trace: dict[str, Any], style: Style) -> Figure:
    """The network's parts (network_trace.trace): a row per stride, fine above coarse, so that a U-Net is a U.

    Within a row parts stand in the order of the forward pass; arrows are the tensors that pass between parts. Every
    box names its module and the shape of what it gives, channels x height x width.
    """
    boxes = _boxes(trace)
    levels = _levels(boxes, trace["size"])
    _place(boxes, levels)
    rows = list(levels.values())
    right = max(box.x for box in boxes) + WIDTH / 2 + 0.15
    top = rows[0].y + rows[0].height + LANE * len(rows[0].lanes) + 0.15
    left, bottom = -WIDTH / 2 - 1.0, rows[-1].y - 0.15
    with style.settings():
        figure, axes = _canvas(style, (left, right), (bottom, top))
        for row, level in enumerate(rows):
            height = level.height
            if row % 2 == 0:
                span = (
                    level.y - ROW_GAP / 2,
                    level.y + height + LANE * len(level.lanes) + ROW_GAP / 2,
                )
                axes.axhspan(*span, color=style.muted, alpha=0.1, linewidth=0)
            middle = level.y + height / 2
            axes.text(
                left + 0.1,
                middle,
                level.label,
                va="center",
                ha="left",
                fontsize=9,
                color=style.text,
            )
        for number, box in enumerate(boxes):
            for source in box.sources:
                _arrow(axes, boxes, levels, (source, number), style)
        for box in boxes:
            _draw_box(axes, box, style)
        facts = f"{trace['parameters'] / 1e6:.1f} M weights, {trace['multiply_adds'] / 1e9:.2f} G multiply-adds"
        size = f"{trace['size']} × {trace['size']}"
        axes.set_title(f"{trace['network']}: {facts} for one image of {size}", fontsize=12)
    return figure


def draw_attention(trace: dict[str, Any], style: Style) -> Figure:
    """The inside of the first attention block, from left to right in the order of its operations.

    Raises ValueError where the network has no attention block (`trace["attention"]` is None).
    """
    attention = trace["attention"]
    if attention is None:
        raise ValueError(f"{trace['network']} has no attention block")
    boxes = _operation_boxes(attention["operations"])
    columns: dict[int, list[Box]] = {}
    depths: list[int] = []
    for box in boxes:
        depths.append(1 + max((depths[source] for source in box.sources), default=-1))
        columns.setdefault(depths[-1], []).append(box)
    most = max(len(column) for column in columns.values())
    for depth, column in columns.items():
        for number, box in enumerate(column):
            box.x = depth * (WIDTH + COLUMN_GAP * 0.8)
            box.y = (
                ((len(column) - 1) / 2 - number)
                * (HEIGHT + GAP)
                * 1.25
                * max(1.0, (most - 1) / len(column) / 1.4)
            )
    lowest = min(box.y for box in boxes) - HEIGHT
    with style.settings():
        right = max(box.x for box in boxes) + WIDTH / 2 + 0.15
        top = max(box.y for box in boxes) + HEIGHT * 0.8
        figure, axes = _canvas(style, (-WIDTH / 2 - 0.15, right), (lowest - 0.1, top))
        for number, box in enumerate(boxes):
            for source in box.sources:
                if depths[number] - depths[source] > 1:
                    _detour(axes, boxes[source], box, lowest, style)
                else:
                    start = boxes[source].x + WIDTH / 2, boxes[source].y
                    _line(axes, start, (box.x - WIDTH / 2, box.y), style)
        for box in boxes:
            _draw_box(axes, box, style)
        axes.set_title(
            f"{trace['network']}, {attention['name']}: improved coordinate attention", fontsize=12
        )
    return figure


def shape_text(shape: Sequence[int]) -> str:
    """[64, 128, 128] -> 64 × 128 × 128; a single number for a scalar or a vector."""
    return " × ".join(str(length) for length in shape) or "1"


def _boxes(trace: dict[str, Any]) -> list[Box]:
    """The image, the parts and, where the last part is not the output itself, the output."""
    size, parts = trace["size"], trace["parts"]
    coarsest = max((math.log2(part["stride"]) for part in parts if part["stride"]), default=0.0)
    outer = {part["name"].partition(".")[0] for part in parts}
    prefix = f"{outer.pop()}." if len(outer) == 1 else ""  # of a network that wraps another
    boxes = [Box("image", [shape_text([1, size, size])], "", [], 0.0)]
    for part in parts:
        shapes = list(dict.fromkeys(shape_text(shape) for shape in part["shapes"]))
        if len(shapes) > 2:
            shapes = [shapes[0], f"… {shapes[-1]}"]
        level = math.log2(part["stride"]) if part["stride"] else coarsest + 1
        sources = [source + 1 for source in part["from"]] or [0]
        boxes.append(Box(part["name"].removeprefix(prefix), shapes, part["class"], sources, level))
    last = len(parts) - 1
    if trace["output_from"] != [last] or parts[last]["shapes"] != [trace["output"]]:
        sources = [source + 1 for source in trace["output_from"]]
        boxes.append(Box("output", [shape_text(trace["output"])], "", sources, 0.0))
    return boxes


def _levels(boxes: list[Box], size: int) -> dict[float, Level]:
    """Boxes gathered in stacks, stacks in levels, fine to coarse."""
    maps = {box.level for box in boxes if box.level == int(box.level)}
    levels: dict[float, Level] = {}
    for level in sorted({box.level for box in boxes}):
        labelled = level in maps and any(_is_map(box, level, size) for box in boxes)
        levels[level] = Level(f"stride {2**level:g}" if labelled else "no map")
    for number, box in enumerate(boxes):
        stacks = levels[box.level].stacks
        fed = number - 1 in box.sources and boxes[number - 1].level == box.level
        if fed and boxes[number - 1].kind:
            stacks[-1].boxes.append(number)
        else:
            main = box.sources[-1] if box.sources else number
            stacks.append(Stack([number], upwards=boxes[main].level > box.level))
    return levels


def _is_map(box: Box, level: float, size: int) -> bool:
    side = f"{size / 2**level:g}"
    return box.level == level and box.shapes[0].endswith(f"{side} × {side}")


def _place(boxes: list[Box], levels: dict[float, Level]) -> None:
    """Columns from what a stack is fed by, rows from the levels' heights."""
    stack_of = {
        number: stack
        for level in levels.values()
        for stack in level.stacks
        for number in stack.boxes
    }
    before: dict[float, Stack] = {}
    for number in sorted(stack_of):
        stack, box = stack_of[number], boxes[number]
        if number != stack.boxes[0]:
            continue
        columns = [0.0]
        if box.level in before:
            columns.append(before[box.level].column + 1)
        for source in {
            source for member in stack.boxes for source in boxes[member].sources if source < number
        }:
            step = 1.0 if boxes[source].level == box.level else DIAGONAL
            columns.append(stack_of[source].column + step)
        stack.column = max(columns)
        before[box.level] = stack
    for number, box in enumerate(boxes):
        for source in box.sources:
            lanes = levels[box.level].lanes
            if source not in lanes and _passes_others(
                levels[box.level], stack_of[source], stack_of[number]
            ):
                lanes.append(source)
    y = 0.0
    for level in levels.values():
        y -= LANE * len(level.lanes) + level.height
        level.y = y
        for stack in level.stacks:
            for place, number in enumerate(stack.boxes if stack.upwards else reversed(stack.boxes)):
                boxes[number].x = stack.column * (WIDTH + COLUMN_GAP)
                boxes[number].y = y + HEIGHT / 2 + place * (HEIGHT + GAP)
        y -= ROW_GAP


def _passes_others(level: Level, start: Stack, end: Stack) -> bool:
    """Whether both stacks are in the level, with others between them."""
    inside = [stack.column for stack in level.stacks if start.column < stack.column < end.column]
    return start in level.stacks and end in level.stacks and bool(inside)


def _operation_boxes(operations: list[dict[str, Any]]) -> list[Box]:
    """One box per operation; what works value by value is written into the box before it."""
    boxes: list[Box] = []
    box_of: list[int] = []
    takers = [
        sum(number in operation["from"] for operation in operations)
        for number in range(len(operations))
    ]
    for operation in operations:
        sources = sorted({box_of[source] for source in operation["from"]})
        shape = shape_text(operation["shape"])
        only = len(operation["from"]) == 1 and takers[operation["from"][0]] == 1
        if operation["name"] in FOLDED and only:
            boxes[sources[0]].title += f" + {operation['name']}"
        else:
            module = operation["module"].partition(".")[0]
            title = f"{module}: {operation['name']}" if module else operation["name"]
            kind = ATTENTION if module else "operation"
            boxes.append(Box(title, [shape], kind if operation["from"] else "", sources, 0.0))
            sources = [len(boxes) - 1]
        box_of.append(sources[0])
    return boxes


def _canvas(style: Style, x: tuple[float, float], y: tuple[float, float]) -> tuple[Figure, Axes]:
    """A figure on which one unit is one inch."""
    figure = plotting.new(style, x[1] - x[0], y[1] - y[0] + 0.45)
    axes = figure.add_subplot()
    axes.set(xlim=x, ylim=y, aspect="equal")
    axes.set_axis_off()
    return figure, axes


def _draw_box(axes: Axes, box: Box, style: Style) -> None:
    from matplotlib.patches import FancyBboxPatch

    number = (
        END_COLOUR if not box.kind else ATTENTION_COLOUR if box.kind == ATTENTION else PLAIN_COLOUR
    )
    corner = box.x - WIDTH / 2 + 0.05, box.y - HEIGHT / 2 + 0.05
    look: plotting.Look = {
        "edgecolor": style.colour(number),
        "facecolor": style.pale(number),
        "linewidth": 1.2,
        "zorder": 3,
    }
    axes.add_patch(
        FancyBboxPatch(corner, WIDTH - 0.1, HEIGHT - 0.1, boxstyle="round,pad=0.05", **look)
    )
    lines = [*_title_lines(box.title), *box.shapes]
    longest = max(len(line) for line in lines)
    size = min(8.5, 8.5 * LONGEST / longest) * (1.0 if len(lines) <= 3 else 0.75)
    axes.text(
        box.x,
        box.y,
        "\n".join(lines),
        ha="center",
        va="center",
        fontsize=size,
        linespacing=1.15,
        zorder=4,
    )


def _title_lines(title: str) -> list[str]:
    """One line, or two where it is long, broken after " + ", ": " or a dot near the middle."""
    if len(title) <= LONGEST:
        return [title]
    ends = [
        at + len(mark)
        for mark in (" + ", ": ", ".")
        for at in range(len(title))
        if title.startswith(mark, at)
    ]
    if not ends:
        return [title]
    middle = min(ends, key=lambda end: abs(end - len(title) / 2))
    return [title[:middle].rstrip(), title[middle:]]


def _arrow(
    axes: Axes, boxes: list[Box], levels: dict[float, Level], edge: tuple[int, int], style: Style
) -> None:
    """Within a stack and sideways straight, past others of the level over their heads, else from edge to edge."""
    source, target = edge
    start, end, skip = boxes[source], boxes[target], target - source > 1
    level = levels[end.level]
    stacks = {
        number: stack for one in levels.values() for stack in one.stacks for number in stack.boxes
    }
    if stacks[source] is stacks[target] and abs(start.y - end.y) < 1.5 * (HEIGHT + GAP):
        side = HEIGHT / 2 if end.y > start.y else -HEIGHT / 2
        _line(axes, (start.x, start.y + side), (end.x, end.y - side), style)
    elif _passes_others(level, stacks[source], stacks[target]):
        lane, aside = (
            level.lane(source),
            end.x - WIDTH / 2 - 0.14 - 0.08 * level.lanes.index(source),
        )
        rise = start.x + WIDTH / 2 - 0.15
        look: plotting.Look = {
            "color": style.muted,
            "linewidth": 1.1,
            "linestyle": "--",
            "zorder": 1,
        }
        axes.plot([rise, rise, aside, aside], [start.y + HEIGHT / 2, lane, lane, end.y], **look)
        _line(axes, (aside, end.y), (end.x - WIDTH / 2, end.y), style, skip=True)
    elif start.level == end.level:
        _line(axes, (start.x + WIDTH / 2, start.y), (end.x - WIDTH / 2, end.y), style, skip=skip)
    else:
        side = -1 if end.y < start.y else 1
        leave = start.x, start.y + side * HEIGHT / 2
        if _neighbour(boxes, stacks[source], start, side):
            leave = start.x + WIDTH / 2, start.y
        enter = end.x, end.y - side * HEIGHT / 2
        if _neighbour(boxes, stacks[target], end, -side):
            enter = end.x - WIDTH / 2, end.y
        _line(axes, leave, enter, style, skip=skip)


def _neighbour(boxes: list[Box], stack: Stack, box: Box, side: int) -> bool:
    """Whether another box of the stack stands above (side = 1) or below (-1)."""
    return any((boxes[number].y - box.y) * side > 0 for number in stack.boxes)


def _line(
    axes: Axes,
    start: tuple[float, float],
    end: tuple[float, float],
    style: Style,
    *,
    skip: bool = False,
) -> None:
    """An arrow; `skip`: past other parts, dashed."""
    from matplotlib.patches import FancyArrowPatch

    look: plotting.Look = {
        "color": style.muted if skip else style.text,
        "linestyle": "--" if skip else "-",
    }
    ends: plotting.Look = {"arrowstyle": "-|>", "mutation_scale": 9, "shrinkA": 0, "shrinkB": 0}
    axes.add_patch(FancyArrowPatch(start, end, **look, **ends, linewidth=1.1, zorder=2))


def _detour(axes: Axes, start: Box, end: Box, lowest: float, style: Style) -> None:
    """Down from one box, along below all others, and up into another: the residual path."""
    look: plotting.Look = {"color": style.muted, "linewidth": 1.1, "linestyle": "--", "zorder": 1}
    axes.plot([start.x, start.x, end.x], [start.y - HEIGHT / 2, lowest, lowest], **look)
    _line(axes, (end.x, lowest), (end.x, end.y - HEIGHT / 2), style, skip=True)
