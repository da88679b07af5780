"""A zip file whose every byte is accounted for: a few members, stored as they are, and a seal.

Nothing unpacks to more than the file's own size, and members lie one behind the other. The
file's comment is the SHA-256 of everything before it. Any program opens such a file; what
is written in any other way is refused here.
"""

import hashlib
import io
import os
import stat
import struct
import zipfile
import zlib
from collections.abc import Mapping
from typing import BinaryIO, NamedTuple

from pneumothorax.pipeline import sharing

MOST_BYTES = 2**30
MOST_MEMBERS = 16
MOST_DIRECTORY_BYTES = 2**12
SEAL_BYTES = 64

# The directory's entries, and the record after it (PKWARE's APPNOTE.TXT, 4.3.12 and 4.3.16)
ENTRY, END = struct.Struct("<4s6H3L5H2L"), struct.Struct("<4s4H2LH")
REPEATED = slice(6, 32)  # of an entry: what its local header says again, after 4 bytes


class Member(NamedTuple):
    """Where a member's content is, and its CRC-32."""

    start: int
    size: int
    crc: int


def pack(members: Mapping[str, bytes]) -> bytes:
    """The file with these members, in their order. Equal members give equal bytes."""
    file = io.BytesIO()
    with zipfile.ZipFile(file, "w") as archive:
        sharing.add(archive, members)
        archive.comment = bytes(SEAL_BYTES)
    content = file.getbuffer()[:-SEAL_BYTES]
    return b"".join([content, hashlib.sha256(content).hexdigest().encode()])


def check_seal(file: BinaryIO) -> None:
    """ValueError for another kind of file, and for one that was cut or changed."""
    size = file.seek(0, os.SEEK_END)
    if size > MOST_BYTES:
        raise ValueError(f"it has {size >> 20} MiB, and at most {MOST_BYTES >> 20} are read")
    file.seek(max(0, size - SEAL_BYTES - END.size))
    end = file.read(END.size)
    if len(end) < END.size or not end.startswith(b"PK\5\6") or END.unpack(end)[-1] != SEAL_BYTES:
        raise ValueError("it is another kind of file, or cut short")
    file.seek(0)
    digest, left = hashlib.sha256(), size - SEAL_BYTES
    while left and (part := file.read(min(left, 2**20))):
        digest.update(part)
        left -= len(part)
    if file.read() != digest.hexdigest().encode():
        raise ValueError("it was damaged or changed since it was written")


def members(file: BinaryIO) -> dict[str, Member]:
    """Where each member is, by the directory. ValueError unless `pack` could have written it.

    Not with zipfile, which takes memory for any number of entries and follows several kinds
    of records.
    """
    at = file.seek(-SEAL_BYTES - END.size, os.SEEK_END)
    _, *disks, n_here, n_members, size, start, _ = END.unpack(file.read(END.size))
    if n_members > MOST_MEMBERS or size > MOST_DIRECTORY_BYTES or start + size != at:
        raise ValueError("its directory is too large, or not at its end")
    if any(disks) or n_here != n_members:
        raise ValueError("it is one of several parts")
    file.seek(start)
    directory, found, expected = io.BytesIO(file.read(size)), {}, 0
    for _ in range(n_members):
        entry = directory.read(ENTRY.size)
        if len(entry) < ENTRY.size:
            raise ValueError("its directory is cut short")
        signature, _, _, flags, method, _, _, crc, packed, length, *more = ENTRY.unpack(entry)
        name_length, extra, comment, _, _, attributes, offset = more
        name = directory.read(name_length).decode("ascii")
        is_stored = not flags and method == zipfile.ZIP_STORED and packed == length
        if signature != b"PK\1\2" or not is_stored or stat.S_ISLNK(attributes >> 16):
            raise ValueError("a member is encrypted, compressed, a link or of an unknown kind")
        if extra or comment or offset != expected or name in found:
            raise ValueError("its members overlap, or two have the same name")
        header = b"PK\3\4" + entry[REPEATED] + name.encode("ascii")
        file.seek(offset)
        if file.read(len(header)) != header:
            raise ValueError("a member and its entry in the directory contradict each other")
        found[name] = Member(offset + len(header), length, crc)
        expected = found[name].start + length
    if directory.read() or expected != start:
        raise ValueError("it holds more than its members")
    return found


def content(file: BinaryIO, member: Member, *, most_bytes: int) -> bytes:
    """A member's bytes. ValueError if they are too many to be read at once."""
    if member.size > most_bytes:
        raise ValueError(
            f"a member has {member.size >> 20} MiB; at most {most_bytes >> 20} are read"
        )
    file.seek(member.start)
    data = file.read(member.size)
    if zlib.crc32(data) != member.crc:
        raise ValueError("a member has another CRC-32 than its directory says")
    return data
