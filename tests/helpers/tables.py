"""Look-up tables of DICOM files."""

import numpy as np
from pydicom.dataset import Dataset
from pydicom.sequence import Sequence


def sequence(*items):
    return Sequence(list(items))


def table(first, bits, entries, *, packed=False, big_endian=False, length=None, vrs="US OW"):
    """An item of ModalityLUTSequence or VOILUTSequence (PS3.3 C.11.1.1 and C.11.2.1.1).

    Args:
        first: the value of the first entry; negative ones become two's complement.
        packed: one byte per entry instead of one word.
        length: number of entries to declare, if it is not theirs.
        vrs: of the descriptor (US or SS) and of the data (OW, OB or US).
    """
    entries = np.asarray(entries)
    item = Dataset()
    length = (len(entries) if length is None else length) % 0x10000  # 0 is 65,536
    of_descriptor, of_data = vrs.split()
    first = first & 0xFFFF if of_descriptor == "US" else first
    item.add_new("LUTDescriptor", of_descriptor, [length, first, bits])
    words = entries.astype("<u2")
    if packed:
        padded = np.append(entries, [0] * (len(entries) % 2)).astype(np.uint8)
        words = padded.view("<u2")
    swapped = big_endian and of_data == "OW"  # bytes have no order, numbers that of the file
    data = (
        words.tolist() if of_data == "US" else words.astype(">u2" if swapped else "<u2").tobytes()
    )
    item.add_new("LUTData", of_data, data)
    return item
