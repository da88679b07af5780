"""How many images at a time fit into a GPU's memory."""

from collections.abc import Callable

import torch

MARGIN = 0.9  # of the free memory: the caching allocator loses some between its blocks


def free_bytes(device: torch.device) -> int:
    """What this process can still allocate on a CUDA device, with its allocator's own reserve."""
    free, _ = torch.cuda.mem_get_info(device)
    return free + torch.cuda.memory_reserved(device) - torch.cuda.memory_allocated(device)


def fewest_parts(batch_size: int, peak_bytes: Callable[[int], int], available_bytes: float) -> int:
    """Into how few equal parts a batch must be cut so that one fits; of two images at least.

    Memory grows in proportion to the number of images, from a start: two trials give both.
    Where even two images do not fit, the answer is the largest number of parts.

    Args:
        batch_size: at least 2.
        peak_bytes: number of images -> what a training step with them allocates at its peak.
    """
    possible = [parts for parts in range(1, batch_size // 2 + 1) if batch_size % parts == 0]
    if len(possible) == 1:
        return 1
    two, four = peak_bytes(2), peak_bytes(4)
    per_image = (four - two) / 2
    start = two - 2 * per_image
    fitting = (
        parts
        for parts in possible
        if start + per_image * (batch_size // parts) <= MARGIN * available_bytes
    )
    return next(fitting, possible[-1])
