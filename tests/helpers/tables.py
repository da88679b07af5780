"""Look-up tables of DICOM files."""

import numpy as np
from pydicom.dataset import Dataset
from pydicom.sequence import Sequence


def sequence(*items):
    return Sequence(list(items))


def table(first, bits, entries, *, packed=False, big_endian=False, length=None):
    """An item of ModalityLUTSequence or VOILUTSequence (PS3.3 C.11.1.1 and C.11.2.1.1).

    Args:
        first: the value of the first entry; negative ones become two's complement.
        packed: one byte per entry instead of one word.
        length: number of entries to declare, if it is not theirs.
    """
    entries = np.asarray(entries)
    item = Dataset()
    length = (len(entries) if length is None else length) % 0x10000  # 0 is 65,536
    item.add_new("LUTDescriptor", "US", [length, first & 0xFFFF, bits])
    words = entries.astype("<u2")
    if packed:
        padded = np.append(entries, [0] * (len(entries) % 2)).astype(np.uint8)
        words = padded.view("<u2")
    item.add_new("LUTData", "OW", words.astype(">u2" if big_endian else "<u2").tobytes())
    return item
