"""The headers of a tar that anyone may have written: each is read in bounds, or the tar is called damaged.

Python's tarfile takes a header's word for its numbers. A size below zero sends it back to where it was, for ever; a
size without end makes it read a whole archive (unpacked) as one name; numbers that are none, sparse tables that end too
early and headers within headers end it with whatever error they meet.
"""

from __future__ import annotations

import tarfile
from collections.abc import Iterator
from typing import IO

# names take up to 4 KiB, and few have more to say
LONGEST_HEADER = 1 << 16


def tar_members(stream: IO[bytes]) -> Iterator[tarfile.TarInfo]:
    """Yield every member of an uncompressed tar; its bytes are those of the stream, `size` from `offset_data` on.

    The stream may be moved while a member is looked at.

    Raises:
        tarfile.TarError: anything that is wrong with a header.
    """
    headers, last = _Headers(stream), -1
    try:
        with tarfile.open(fileobj=headers, mode="r:", encoding="utf-8") as tar:  # type: ignore[arg-type]
            for info in tar:
                if info.size < 0 or info.offset <= last:
                    raise tarfile.ReadError(f"{info.name} has {info.size} bytes, or lies before another member")
                headers.left, last = LONGEST_HEADER, info.offset
                yield info
    except (ValueError, LookupError, ArithmeticError, RecursionError) as error:
        raise tarfile.ReadError(f"a header holds what none may hold ({type(error).__name__}: {error})") from error


class _Headers:
    """A stream of which no more than a header is read between two members."""

    def __init__(self, stream: IO[bytes]) -> None:
        self._stream, self.left = stream, LONGEST_HEADER
        self.tell = stream.tell

    def read(self, size: int) -> bytes:
        if not 0 <= size <= self.left:
            raise tarfile.ReadError(f"a header of more than {LONGEST_HEADER} bytes, or of {size}")
        self.left -= size
        return self._stream.read(size)

    def seek(self, position: int) -> int:
        if position < 0:
            raise tarfile.ReadError(f"a member at byte {position}")
        return self._stream.seek(position)
