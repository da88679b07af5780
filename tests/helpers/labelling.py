"""Test images with labels, as stage 00 leaves them."""

import pandas as pd

from pneumothorax.pipeline import artifacts, records


def label_test_images(output, rows):
    """Give test images labels, and no others.

    Args:
        rows: test image id -> its mask rows as text, () for a negative one; {} removes all
            labels.
    """
    table = artifacts.TEST_LABELS
    lines = [(image_id, text) for image_id, own in rows.items() for text in own or ("-1",)]
    body = records.read(output, artifacts.PREPARED)
    paths = set(body.pop("outputs")) - {table.path}
    if lines:
        artifacts.write_table(output, table, pd.DataFrame(lines, columns=list(table.columns)))
        paths.add(table.path)
    else:
        (output / table.path).unlink(missing_ok=True)
    body.pop("made_by")
    records.write(output, artifacts.PREPARED, outputs=sorted(paths), **body)
