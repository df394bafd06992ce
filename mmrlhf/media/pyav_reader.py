"""Frames through PyAV: every one is identified by its time stamp, and none that the decoder patched up is taken."""

from __future__ import annotations

import av.error
import numpy as np

from mmrlhf.media.headers import Deadline, Scan, damaged, open_clip


def decode_with_pyav(data: bytes, scan: Scan, indices: list[int], deadline: Deadline) -> np.ndarray:
    """Frames (F, H, W, 3) uint8 at the given display positions.

    Raises:
        DataError: damage of any kind, or more work than the deadline allows.
    """
    where = deadline.where
    try:
        frames = _collect(data, scan, indices, deadline, seeking=scan.stamped)
        if len(frames) < len(indices) and scan.stamped:
            frames = _collect(data, scan, indices, deadline, seeking=False)
    except (av.error.FFmpegError, _Corrupt) as error:
        raise damaged(where, f"{type(error).__name__}: {error}") from error
    missing = [i for i in indices if i not in frames]
    if missing:
        raise damaged(where, f"no picture for frames {missing[:8]} of {scan.num_frames}")
    if len({frames[i].shape for i in indices}) > 1:
        raise damaged(where, "the picture size changes inside the clip")
    return np.stack([frames[i] for i in indices])


class _Corrupt(Exception):
    """The decoder marked a picture as damaged."""


def _collect(
    data: bytes, scan: Scan, indices: list[int], deadline: Deadline, *, seeking: bool
) -> dict[int, np.ndarray]:
    """Decode forward, jumping to a later key frame where that saves work; returns what was found."""
    found: dict[int, np.ndarray] = {}
    with open_clip(data) as container:
        stream = container.streams.video[0]
        stream.codec_context.thread_count = 1
        position, pictures = -1, enumerate(container.decode(stream))
        for index in indices:
            key = int(scan.keyframes[np.searchsorted(scan.keyframes, index, side="right") - 1])
            if seeking and key > position + 1:
                container.seek(int(scan.pts[key]), stream=stream)
                pictures = enumerate(container.decode(stream))
            for count, frame in pictures:
                deadline.check()
                position = scan.position(frame.pts) if scan.stamped else count
                if position is None or (seeking and position < key):
                    position = -1
                    continue
                if frame.is_corrupt:
                    raise _Corrupt(f"frame {position}")
                if position == index:
                    found[index] = np.rot90(frame.to_ndarray(format="rgb24"), k=scan.rotation // 90)
                if position >= index:
                    break
    return found
