"""Calls for a child process to run: a crash, a hang, and some that are fine."""

from __future__ import annotations

import ctypes
import time
from pathlib import Path

from mmrlhf.media.images import decode_image


def crash() -> None:
    """Read from address 0: a segmentation fault."""
    ctypes.string_at(0)


def hang() -> None:
    """Never return."""
    while True:
        time.sleep(60)


def crash_once(flag: Path) -> str:
    """Crash unless an earlier call has left the flag."""
    if flag.exists():
        return "fine"
    flag.touch()
    return str(crash())


def size_of(data: bytes) -> tuple[int, int]:
    """Decode a picture."""
    return decode_image(data, where="here").size


def behave(item: int) -> int:
    """Crash at 3, hang at 5, else double the number, sooner for larger ones."""
    if item == 3:
        crash()
    if item == 5:
        hang()
    time.sleep(0.05 / (item + 1))
    return 2 * item


def crash_with(*_: object) -> None:
    """Crash, whatever is wanted."""
    crash()


def hang_with(*_: object) -> None:
    """Never return, whatever is wanted."""
    hang()
