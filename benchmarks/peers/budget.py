"""How long a peer trains. Needs only the standard library: nnU-Net's environment imports it."""


def epochs_within(seconds: float, *, done: int, elapsed: float) -> int:
    """The number of whole epochs, `done` ones included, that end within `seconds`.

    Asked again after every epoch, because machines drift. Never fewer than `done`.

    Args:
        done: finished epochs, at least 1.
        elapsed: seconds that these took.
    """
    return max(done, int(seconds * done / elapsed))
