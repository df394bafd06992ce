"""Files that are one JSON array of records, read item by item, so that a file of any size passes through."""

from __future__ import annotations

import codecs
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any, BinaryIO, NamedTuple

from mmrlhf.errors import DataError
from mmrlhf.records.json_text import DECODER, PLAIN, TwiceError, as_row, check_value

BLOCK = 1 << 20
# What does not end within so many characters is no record; a clip in base64 is shorter.
LONGEST_ITEM = 1 << 29
_SPACE = re.compile(r"[ \t\r\n]*")
_BOM = codecs.BOM_UTF8


class Item(NamedTuple):
    """One item of an array: the byte at which it begins, what it is or what is wrong with it, how it is written."""

    at: int
    value: Any
    raw: bytes


def is_array(path: Path) -> bool:
    """Say whether a file begins as a JSON array does."""
    with path.open("rb") as stream:
        return stream.read(256).removeprefix(_BOM).lstrip()[:1] == b"["


def read_items(path: Path, name: str) -> Iterator[Item]:
    """Yield the items of a JSON array.

    Raises:
        DataError: the file is not UTF-8 or not a JSON array, with the item at which that shows. What follows cannot be
            told apart, so nothing after it is read.
    """
    number = 0
    with path.open("rb") as stream:
        text = _Text(stream)
        try:
            text.expect("[")
            while not text.skip("]"):
                if number:
                    text.expect(",")
                item, number = text.value(), number + 1
                yield item._replace(value=_checked(item, f"{name}:{number}"))
            text.expect("")
        except (ValueError, RecursionError) as error:
            raise DataError(
                "file is not a JSON array",
                where=f"{name}: item {number + 1}",
                given=f"{text.ahead()!r} ({error})",
                expected="[{...}, {...}, ...]",
                fix="repair the file; one record a line (.jsonl) is read around broken records",
            ) from error


def read_row_at(path: Path, at: int) -> dict[str, Any]:
    """Read the record of JSON that begins at a byte: a line, or an item of an array."""
    with path.open("rb") as stream:
        stream.seek(at)
        text = _Text(stream)
        try:
            return as_row(_checked(text.value(), str(path)), f"{path}:{at}")
        except (ValueError, RecursionError) as error:
            raise DataError("no record begins here any more", where=f"{path}:{at}", given=str(error)) from error


def _checked(item: Item, where: str) -> Any:
    """The item's value, or the error that says why it is none."""
    if isinstance(item.value, TwiceError):
        return DataError("record is not clear", where=where, given=str(item.value), fix="keep one of them")
    try:
        check_value(item.raw, item.value, where)
    except DataError as error:
        return error
    return item.value


class _Text:
    """The characters of a file from where it stands, a block at a time; it knows at which byte it is."""

    def __init__(self, stream: BinaryIO) -> None:
        self._stream, self._decode = stream, codecs.getincrementaldecoder("utf-8")()
        self._text, self._at, self._byte, self._ended = "", 0, stream.tell(), False
        if self._byte == 0 and stream.read(len(_BOM)) == _BOM:
            self._byte = len(_BOM)
        stream.seek(self._byte)

    def skip(self, sign: str) -> bool:
        """Pass white space and then a sign, if that is what comes."""
        self._pass(self._white_space())
        if self._at < len(self._text) and self._text[self._at] == sign:
            self._pass(self._at + 1)
            return True
        return False

    def expect(self, sign: str) -> None:
        """Pass a sign ("": the end of the file); raises ValueError if something else comes."""
        if not self.skip(sign) and (sign or self._at < len(self._text)):
            raise ValueError(f"expected {sign or 'the end of the file'!r}")

    def value(self) -> Item:
        """Read one value; what cannot be read is read again with more text, as long as there is any."""
        self._pass(self._white_space())
        while True:
            try:
                value, end = _decode(self._text, self._at)
                if end < len(self._text) or not self._more():
                    raw = self._text[self._at : end].encode()
                    found = Item(self._byte, value, raw)
                    self._at, self._byte = end, self._byte + len(raw)
                    return found
            except ValueError:
                if len(self._text) - self._at > LONGEST_ITEM or not self._more():
                    raise

    def ahead(self) -> str:
        """The beginning of what could not be read."""
        return self._text[self._at : self._at + 60]

    def _white_space(self) -> int:
        while True:
            end = _SPACE.match(self._text, self._at).end()  # pyright: ignore[reportOptionalMemberAccess]
            if end < len(self._text) or not self._more():
                return end

    def _pass(self, end: int) -> None:
        self._byte += len(self._text[self._at : end].encode())
        self._at = end

    def _more(self) -> bool:
        """Read as much as is waiting, at least a block; says whether there was anything."""
        if self._ended:
            return False
        raw = self._stream.read(max(BLOCK, len(self._text) - self._at))
        self._ended = not raw
        self._text, self._at = self._text[self._at :] + self._decode.decode(raw, final=not raw), 0
        return not self._ended


def _decode(text: str, at: int) -> tuple[Any, int]:
    """The value that begins at a character, or the error that it is not clear; and where it ends."""
    try:
        return DECODER.raw_decode(text, at)
    except TwiceError as error:
        return error, PLAIN.raw_decode(text, at)[1]
