"""Sampling schedules as data: how many positives an epoch holds per negative, as training goes on.

Steps are pairs (share of training done, positives per negative), the shares rising from 0. Four schedules have names.
"""

Steps = tuple[tuple[float, float], ...]

NATURAL = "natural"  # every image once: as many positives per negative as there are
LINEAR = "linear"  # the share of positives falls evenly from LINEAR_SHARES[0] to LINEAR_SHARES[1]
LINEAR_SHARES = (0.8, 0.22)  # 0.22: the share in the competition's training images
STEPS: dict[str, Steps] = {
    # Zhang, section 3.1.1: 2:1 early, 1:1 in the middle and late stages; the paper gives no switch point.
    "paper": ((0.0, 2.0), (0.33, 1.0)),
    # Shares of positives 0.8, 0.6 and 0.4, those of the first place of SIIM-ACR, a third of training each.
    "steps": ((0.0, 0.8 / 0.2), (1 / 3, 0.6 / 0.4), (2 / 3, 0.4 / 0.6)),
}
NAMES = (*STEPS, LINEAR, NATURAL)


def positives_per_negative(
    schedule: str | Steps, epoch: int, epochs: int, *, natural: float
) -> float:
    """What the schedule asks for in `epoch` (counted from 0) of `epochs`.

    Args:
        schedule: one of NAMES, or steps.
        natural: positives per negative in the data.
    """
    if schedule == NATURAL:
        return natural
    if schedule == LINEAR:
        first, last = LINEAR_SHARES
        share = first + (last - first) * epoch / max(1, epochs - 1)
        return share / (1 - share)
    steps = STEPS[schedule] if isinstance(schedule, str) else schedule
    return [ratio for share, ratio in steps if share <= epoch / epochs][-1]
