"""Frames through decord, which is held to what the scan of the file says.

Nothing else in the package imports decord. It is fed from a file and never from bytes (damaged bytes crash it most), a
reader lives for one call and so crosses no fork, it must agree with the scan on frame count and time stamps, and it
must not fill gaps with copies of other frames. On some damaged files it crashes or never returns all the same: `video`
calls it in a process that may.
"""

from __future__ import annotations

import contextlib
import importlib.util
import os
import tempfile
from collections.abc import Iterator
from functools import cache

import numpy as np

from mmrlhf.media.headers import Scan, damaged
from mmrlhf.text import first_line


@cache
def has_decord() -> bool:
    """Say whether decord is installed."""
    return importlib.util.find_spec("decord") is not None


def decode_with_decord(data: bytes, scan: Scan, indices: list[int], where: str) -> np.ndarray:
    """Frames (F, H, W, 3) uint8 at the given display positions.

    Raises:
        DataError: damage, or an edit list or missing time stamps (which decord gets wrong).
    """
    if not scan.plain:
        raise damaged(where, "edit lists or missing time stamps, which decord gets wrong; backend=pyav may read it")
    found = _read(data, indices)
    if isinstance(found, str):
        raise damaged(where, f"decord: {found}")
    num_frames, times, frames = found
    if num_frames != scan.num_frames:
        raise damaged(where, f"decord counts {num_frames} frames, the file has {scan.num_frames}")
    if np.abs(times[1:] - times[0] - scan.times[indices]).max() > 0.25 / scan.fps:
        raise damaged(where, "decord's time stamps are not the file's")
    return frames


def _read(data: bytes, indices: list[int]) -> tuple[int, np.ndarray, np.ndarray] | str:
    """(frames in the file, times of frame 0 and the wanted ones, the wanted frames), or what decord complains of."""
    import decord  # some platforms lack it, and it loads an FFmpeg of its own

    decord.logging.set_level(decord.logging.QUIET)
    with _as_path(data) as path:
        try:
            # decord fills gaps with copies of other frames; one such copy is too many (a tolerance of 0 means any).
            reader = decord.VideoReader(path, num_threads=1, fault_tol=1e-9)  # pyright: ignore[reportArgumentType]
            if indices[-1] >= len(reader):
                return f"the file has {len(reader)} frames, frame {indices[-1]} is wanted"
            times = reader.get_frame_timestamp([0, *indices])[:, 0]
            return len(reader), times, reader.get_batch(indices).asnumpy()
        except (decord.DECORDError, decord.DECORDLimitReachedError, AssertionError, RuntimeError) as error:
            return first_line(error)


@contextlib.contextmanager
def _as_path(data: bytes) -> Iterator[str]:
    """Give bytes a path without touching the disk where the system can (Linux), else a temporary file."""
    if hasattr(os, "memfd_create"):
        with os.fdopen(os.memfd_create("clip"), "wb") as file:
            file.write(data)
            file.flush()
            yield f"/proc/self/fd/{file.fileno()}"
    else:
        with tempfile.TemporaryDirectory() as folder:
            path = os.path.join(folder, "clip")
            with open(path, "wb") as file:
                file.write(data)
            yield path
