"""Bundles with one thing wrong, sealed again, so that only the check for that thing can notice."""

import hashlib
import io
import json
import struct
import zipfile

SEAL_BYTES = 64
LOCAL, CENTRAL, END = b"PK\3\4", b"PK\1\2", b"PK\5\6"


def members_of(data):
    """{name: bytes} of a bundle, in its order."""
    with zipfile.ZipFile(io.BytesIO(data)) as archive:
        return {info.filename: archive.read(info) for info in archive.infolist()}


def sealed(content):
    """The bytes of a zip file, of which the last ones are room for the seal -> sealed."""
    content = content[:-SEAL_BYTES]
    return content + hashlib.sha256(content).hexdigest().encode()


def zipped(members, *, method=zipfile.ZIP_STORED):
    """[(name, bytes)] -> a sealed zip file, which may hold a name twice."""
    file = io.BytesIO()
    with zipfile.ZipFile(file, "w", method) as archive:
        for name, data in members:
            archive.writestr(zipfile.ZipInfo(name), data, compress_type=method)
        archive.comment = bytes(SEAL_BYTES)
    return sealed(file.getvalue())


def described(members, change=lambda body: None):
    """The members with a model.json that describes all others, after `change` of its body."""
    body = json.loads(members["model.json"])
    others = {name: data for name, data in members.items() if name != "model.json"}
    body["members"] = {
        name: {"bytes": len(data), "sha256": hashlib.sha256(data).hexdigest()}
        for name, data in others.items()
    }
    change(body)
    return [("model.json", json.dumps(body).encode()), *others.items()]


def with_field(data, signature, offset, form, value):
    """A sealed zip file with another value in the first record of this signature."""
    at = data.index(signature) + offset if signature != END else data.rindex(END) + offset
    changed = bytearray(data)
    struct.pack_into(form, changed, at, value)
    return sealed(bytes(changed))
