"""Calls for a child process to run: a crash, a hang, and some that are fine."""

from __future__ import annotations

import ctypes
import time
from pathlib import Path

import numpy as np

from mmrlhf.media.images import decode_image
from mmrlhf.media.video import VideoClip


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


def decode_or_crash(data: bytes, where: str, timeout: float, num_frames: int, *_: object) -> VideoClip:
    """Crash on some bytes, take all others for a black clip."""
    if data == b"crash":
        crash()
    return VideoClip(np.zeros((num_frames, 4, 6, 3), np.uint8), np.arange(float(num_frames)), 1.0, 9, 9.0)


def probe_or_crash(data: bytes, where: str, timeout: float) -> tuple[int, float, int, int]:
    """The same clip, or the same crash."""
    if data == b"crash":
        crash()
    return 9, 9.0, 6, 4


def slow_double(number: int) -> int:
    """Long enough that another thread's call falls into it."""
    time.sleep(0.05)
    return 2 * number
