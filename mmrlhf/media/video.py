"""Video bytes to frames through PyAV or decord, with the same frames from both.

Every file is first scanned packet by packet, without decoding. The scan numbers the frames in display order by their
time stamps and is what both back ends are held to, so sampling cannot depend on the back end.

`auto` is PyAV. On good files both give equal bytes at equal speed. Of 400 damaged clips, PyAV refused 82% and showed
a wrong picture for 8% (damage inside the picture data that still parses), decord refused 60% and showed a wrong
picture for 30%: it conceals what it cannot decode, and no check short of decoding tells. decord belongs on packed
shards, whose clips were decoded by PyAV when they were packed and whose bytes are checksummed since. On
some damaged files it crashes or never returns.

Both are C code: they run in a process of their own (`isolation`), so that a file that crashes or blocks one of them is
a DataError wherever it is met: in packing, in training with and without workers, in scoring.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal, TypeVar

import numpy as np

from mmrlhf.errors import ConfigError, DataError
from mmrlhf.media.decord_reader import decode_with_decord, has_decord
from mmrlhf.media.headers import Deadline, Scan, damaged, scan_video
from mmrlhf.media.images import Alpha, decode_image
from mmrlhf.media.isolation import ProcessDied, guarded
from mmrlhf.media.pyav_reader import decode_with_pyav

T = TypeVar("T")
Sampling = Literal["uniform", "fps", "keyframes"]
Backend = Literal["auto", "decord", "pyav"]
TIMEOUT = 120.0
_LONGEST = 1e9  # seconds of a clip, or its frames; anyone may write more into a record
_FIRST = re.compile(r"f\d+")
_STANDSTILL = 3  # times as long may pass on the clock, for machines that do much else


@dataclass(frozen=True)
class VideoClip:
    """Sampled frames (F, H, W, 3) uint8, upright, and their timestamps (F,) in seconds from the first frame.

    fps, total_frames and duration (seconds) describe the whole source, not the sample.
    """

    frames: np.ndarray
    timestamps: np.ndarray
    fps: float
    total_frames: int
    duration: float


def sample_indices(total: int, num_frames: int) -> np.ndarray:
    """Spread num_frames (F,) evenly over total frames, both ends included: floor(i (total - 1) / (F - 1)).

    One frame is the middle one. A clip shorter than num_frames repeats frames, in order, so the shape is constant.
    Source: the rule of LLaVA-NeXT's video loader, `linspace(0, total - 1, num_frames)`, in exact integer arithmetic.
    """
    if num_frames < 1:
        raise ConfigError("a video needs at least one frame", given=num_frames, expected="num_frames >= 1")
    if num_frames == 1:
        return np.array([(total - 1) // 2])
    return np.arange(num_frames) * (total - 1) // (num_frames - 1)


def decode_video(
    data: bytes,
    *,
    num_frames: int,
    sampling: Sampling = "uniform",
    fps: float | None = None,
    backend: Backend = "auto",
    timeout: float = TIMEOUT,
    where: str,
) -> VideoClip:
    """Sample frames of one encoded video; rotation metadata is applied.

    Args:
        data: the encoded file.
        num_frames: frames to return; with sampling="fps" the most to return.
        sampling: "uniform" over the whole clip; "fps": as many as `fps` frames a second give, evenly spread, between
            1 and num_frames; "keyframes": evenly over the key frames only.
        fps: frames a second for sampling="fps".
        backend: "pyav", "decord", or "auto", which is PyAV (the module's docstring says why).
        timeout: seconds of work that a clip may take; three times as long may pass on the clock.
        where: what to call it in an error (key, shard, member).

    Raises:
        DataError: the file is damaged, has no frames, cannot be shown upright or takes too long; never wrong frames.
        ConfigError: settings that do not go together.
    """
    return _guarded(_sample, data, where, timeout, num_frames, sampling, fps, backend)


def decode_frames(
    images: Sequence[bytes],
    *,
    num_frames: int,
    sampling: Sampling = "uniform",
    fps: float | None = None,
    packed: Mapping[str, Any] | None = None,
    alpha: Alpha = "white",
    where: str,
) -> VideoClip:
    """Sample a video that is given as frames: those of `pack` with `video=frames`, or a folder of the user's.

    Frames that were packed with these settings come back all and in order, with their times in the clip. Of a folder,
    one frame counts as one second, and frames are chosen as `decode_video` chooses them.

    Args:
        images: the encoded frames, in order.
        num_frames, sampling, fps: as in `decode_video`.
        packed: what `frames_record` said when the frames were packed; None for a folder of frames.
        alpha: as in `decode_image`.
        where: what to call it in an error.

    Raises:
        DataError: no frames, an unreadable one, or frames of different sizes.
        ConfigError: the frames were packed with other settings and cannot give what is asked for.
    """
    if not images:
        raise DataError("video without frames", where=where, expected="at least one frame image")
    times, total, duration = np.arange(len(images), dtype=float), len(images), float(len(images))
    if packed is not None:
        times, total, duration = np.array(packed["timestamps"]), int(packed["total_frames"]), float(packed["duration"])
    wanted = count_frames(duration, num_frames, sampling, fps)
    if packed is not None:
        _check_packed(packed, len(images), wanted, sampling, fps, where)
        indices = sample_indices(len(images), wanted)
    else:
        indices = choose_from_folder(len(images), num_frames, sampling, fps, where)
    decoded = {
        i: np.asarray(decode_image(images[i], alpha=alpha, where=f"{where} frame {i}"))
        for i in np.unique(indices).tolist()
    }
    sizes = {frame.shape[:2] for frame in decoded.values()}
    if len(sizes) > 1:
        raise DataError("frames of one video differ in size", where=where, given=sorted(sizes), expected="one size")
    frames = np.stack([decoded[i] for i in indices.tolist()])
    return VideoClip(frames, times[indices], total / duration if duration else 1.0, total, duration)


def choose_from_folder(total: int, num_frames: int, sampling: Sampling, fps: float | None, where: str) -> np.ndarray:
    """Indices (F,) of the frames to take from a folder of `total` frames, one a second; ConfigError for key frames."""
    if sampling == "keyframes":
        raise ConfigError(
            "a folder of frames has no key frames", where=where, given="sampling=keyframes", expected="uniform or fps"
        )
    return sample_indices(total, count_frames(float(total), num_frames, sampling, fps))


def frames_record(clip: VideoClip, sampling: Sampling, fps: float | None) -> dict[str, Any]:
    """Say how the frames of a clip were chosen, in JSON; `decode_frames` reads it as `packed`."""
    return {
        "timestamps": [round(float(time), 6) for time in clip.timestamps],
        "fps": round(float(clip.fps), 6),
        "total_frames": int(clip.total_frames),
        "duration": round(float(clip.duration), 6),
        "sampling": sampling,
        "sampled_fps": fps,
    }


def packed_key(name: str) -> str:
    """Where a group's meta data say how frames were chosen, by the name of their first member.

    A query's first video has names without a prefix (`f000.jpg`).
    """
    prefix = name.partition(".")[0]
    return "video" if _FIRST.fullmatch(prefix) else f"video {prefix}"


def packed_record(meta: Mapping[str, Any], name: str = "f000.jpg") -> Mapping[str, Any] | None:
    """Find what `frames_record` said in the meta data of a group; None if nothing of that form is there.

    Args:
        name: the frames' first member.
    """
    record = meta.get(packed_key(name))
    if not isinstance(record, Mapping) or not isinstance(record.get("timestamps"), list):
        return None
    numbers = [*record["timestamps"], record.get("total_frames"), record.get("duration")]
    return record if all(type(number) in (int, float) and 0 <= number <= _LONGEST for number in numbers) else None


def _check_packed(
    packed: Mapping[str, Any], stored: int, wanted: int, sampling: Sampling, fps: float | None, where: str
) -> None:
    said = packed.get("sampling", "uniform"), packed.get("sampled_fps")
    if len(packed["timestamps"]) != stored:
        raise DataError(
            "frames are not those that were packed",
            where=where, given=f"{stored} frames", expected=f"{len(packed['timestamps'])}", fix="pack the data again",
        )  # fmt: skip
    too_few = wanted > stored < packed["total_frames"]
    if said != (sampling, fps) or too_few:
        raise ConfigError(
            "videos were packed as frames, chosen in another way than they are wanted now",
            where=f"data.media, {where}",
            given=f"packed: {stored} frames, sampling={said[0]}, fps={said[1]}",
            expected=f"{wanted} frames, sampling={sampling}, fps={fps}",
            fix="set data.media as it was when they were packed, or pack again (data.video=keep leaves it open)",
        )


def probe_video(data: bytes, where: str) -> tuple[int, float, int, int]:
    """Read (number of frames, duration in seconds, width, height as displayed) without decoding the clip.

    Raises:
        DataError: as `decode_video`, as far as it shows without decoding.
    """
    return _guarded(_probe, data, where, TIMEOUT)


def _guarded(function: Callable[..., T], data: bytes, where: str, timeout: float, *settings: Any) -> T:
    """Call a function on a clip where a crash or a hang is a DataError."""
    try:
        return guarded(function, data, where, timeout, *settings, timeout=_STANDSTILL * timeout)
    except ProcessDied as died:
        raise damaged(where, f"its decoder {died}") from died


def _sample(
    data: bytes,
    where: str,
    timeout: float,
    num_frames: int,
    sampling: Sampling,
    fps: float | None,
    backend: Backend,
) -> VideoClip:
    deadline = Deadline(timeout, where)
    scan = scan_video(data, where, deadline)
    indices = _choose(scan, num_frames, sampling, fps)
    distinct, inverse = np.unique(indices, return_inverse=True)
    frames = _decode(data, scan, distinct.tolist(), backend, deadline)[inverse]
    return VideoClip(frames, scan.times[indices], scan.fps, scan.num_frames, scan.duration)


def _probe(data: bytes, where: str, timeout: float) -> tuple[int, float, int, int]:
    scan = scan_video(data, where, Deadline(timeout, where))
    width, height = (scan.height, scan.width) if scan.rotation % 180 else (scan.width, scan.height)
    return scan.num_frames, scan.duration, width, height


def count_frames(duration: float, num_frames: int, sampling: Sampling, fps: float | None) -> int:
    """How many frames to take; raises ConfigError for settings that do not go together."""
    if sampling not in ("uniform", "fps", "keyframes"):
        raise ConfigError("unknown frame sampling", given=sampling, expected="uniform, fps or keyframes")
    if (sampling == "fps") != (fps is not None) or (fps is not None and fps <= 0):
        raise ConfigError(
            "fps goes with sampling=fps, and only with it", given=f"sampling={sampling}, fps={fps}", expected="fps > 0"
        )
    return num_frames if fps is None else max(1, min(num_frames, round(duration * fps)))


def _choose(scan: Scan, num_frames: int, sampling: Sampling, fps: float | None) -> np.ndarray:
    count = count_frames(scan.duration, num_frames, sampling, fps)
    if sampling == "keyframes":
        return scan.keyframes[sample_indices(len(scan.keyframes), count)]
    return sample_indices(scan.num_frames, count)


def _decode(data: bytes, scan: Scan, indices: list[int], backend: Backend, deadline: Deadline) -> np.ndarray:
    if backend not in ("auto", "decord", "pyav"):
        raise ConfigError("unknown video back end", given=backend, expected="auto, decord or pyav")
    if backend == "decord":
        if not has_decord():
            raise ConfigError("decord is not installed", given="backend=decord", fix="install decord, or backend=pyav")
        return decode_with_decord(data, scan, indices, deadline.where)
    return decode_with_pyav(data, scan, indices, deadline)
