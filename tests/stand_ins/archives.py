"""Archives in memory: name -> bytes of their members."""

from __future__ import annotations

import io
import tarfile
import zipfile
from collections.abc import Callable, Mapping
from typing import Any


def zip_of(members: Mapping[str, bytes]) -> bytes:
    """A zip file."""
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w") as archive:
        for name, data in members.items():
            archive.writestr(name, data)
    return buffer.getvalue()


def tar_of(members: Mapping[str, bytes]) -> bytes:
    """A plain tar."""
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w") as archive:
        for name, data in members.items():
            info = tarfile.TarInfo(name)
            info.size = len(data)
            archive.addfile(info, io.BytesIO(data))
    return buffer.getvalue()


def member(name: str, data: bytes = b"", *, pax: Mapping[str, str] | None = None, **header: Any) -> bytes:
    """One member of a tar, whose header says of it whatever it is told to; `pax` are keywords of an extended one."""
    info = tarfile.TarInfo(name)
    info.size = len(data)
    for field, value in header.items():
        setattr(info, field, value)
    info.pax_headers = dict(pax or {})
    kind = tarfile.PAX_FORMAT if pax else tarfile.GNU_FORMAT
    return info.tobuf(kind, "utf-8", "surrogateescape") + data + bytes(-len(data) % tarfile.BLOCKSIZE)


END = bytes(2 * tarfile.BLOCKSIZE)
# what no tar program writes and tarfile stumbles over: name -> the member that takes the place of one with these bytes
HOSTILE: dict[str, Callable[[str, bytes], bytes]] = {
    "size -1024": lambda name, data: member(name, data, size=-1024),
    "size -512, back to itself": lambda name, data: member(name, data, size=-512),
    "long name of size -512": lambda name, data: member(name, size=-512, type=tarfile.GNUTYPE_LONGNAME),
    "long name of a terabyte": lambda name, data: member(name, size=1 << 40, type=tarfile.GNUTYPE_LONGNAME),
    "sparse map of letters": lambda name, data: member(name, data, pax={"GNU.sparse.map": "a"}),
    "sparse map absent": lambda name, data: member(name, data, pax={"GNU.sparse.major": "1", "GNU.sparse.minor": "0"}),
    "sparse size of letters": lambda name, data: member(name, data, pax={"GNU.sparse.realsize": "x"}),
    "pax size -5000": lambda name, data: member(name, data, pax={"size": "-5000"}),
    "pax size of 400 digits": lambda name, data: member(name, data, pax={"size": "9" * 400}),
    "headers of headers": lambda name, data: member("x", type=tarfile.XHDTYPE) * 3000 + member(name, data),
}


def cut_sparse_table(name: str) -> bytes:
    """A sparse member that has another block in its table than the header, where the tar ends."""
    header = bytearray(member(name, type=tarfile.GNUTYPE_SPARSE))
    header[482] = 1
    header[148:156] = b"        "
    header[148:156] = b"%06o\0 " % sum(header)
    return bytes(header)
