"""What a video file says about its frames, read packet by packet without decoding."""

from __future__ import annotations

import io
import struct
import time
from dataclasses import dataclass
from fractions import Fraction

import av
import av.error
import numpy as np
from av.container import InputContainer
from av.packet import Packet
from av.video.stream import VideoStream

from mmrlhf.errors import DataError

# Containers that hold their own frames. Others of FFmpeg's are lists of further files or addresses (concat, HLS, SDP),
# or pictures (a GIF, which belongs among the images).
CONTAINERS = (
    "asf", "avi", "flv", "matroska", "mov", "mpeg", "mpegts", "ogg", "webm",
    "h264", "hevc", "m4v", "mjpeg", "mpegvideo",
)  # fmt: skip
# 8,192 x 8,192; the decoder would ask for that memory before anybody sees the picture
MAX_FRAME_PIXELS = 1 << 26
_OPTIONS = {
    "format_whitelist": ",".join(CONTAINERS),
    "protocol_whitelist": "none",  # no file or address that a clip names is opened
    "max_pixels": str(MAX_FRAME_PIXELS),
}


@dataclass(frozen=True)
class Scan:
    """The frames of a clip in display order.

    pts (F,) int64 in units of time_base (empty where the file has none), times (F,) seconds from the first frame,
    keyframes: positions of the key frames, and 0, rotation: degrees counter-clockwise that set the picture upright,
    width and height: as stored, before rotation. `stamped`: every frame has a time stamp of its own.
    `plain`: nothing in the file is of a kind that decord is known to get wrong (see `video`).
    """

    pts: np.ndarray
    times: np.ndarray
    keyframes: np.ndarray
    fps: float
    duration: float
    width: int
    height: int
    rotation: int
    stamped: bool
    plain: bool

    @property
    def num_frames(self) -> int:
        """F."""
        return len(self.times)

    def position(self, pts: int | None) -> int | None:
        """The display position of a time stamp, None for one that belongs to no frame."""
        if pts is None:
            return None
        at = int(np.searchsorted(self.pts, pts))
        return at if at < len(self.pts) and self.pts[at] == pts else None


class Deadline:
    """Work that one clip may take, in seconds of this thread's processor time: waiting for the machine is no fault."""

    def __init__(self, seconds: float, where: str) -> None:
        self.seconds, self.where = seconds, where
        self._end = time.thread_time() + seconds

    def check(self) -> None:
        """Raise DataError if the work takes too long."""
        if time.thread_time() > self._end:
            raise damaged(self.where, f"it takes longer than {self.seconds:g} s of work")


def scan_video(data: bytes, where: str, deadline: Deadline) -> Scan:
    """Scan the first video stream.

    Raises:
        DataError: unreadable, empty, cut short, not beginning with a key frame, mirrored or tilted; or more work than
            the deadline allows.
    """
    try:
        with open_clip(data) as container:
            if not container.streams.video or container.streams.video[0].codec_context is None:
                raise _unusable(where, "no video stream that FFmpeg can decode")
            stream = container.streams.video[0]
            _check_size(stream, where)
            packets = _read_packets(container, stream, deadline)
            return _build(packets, stream, _first_picture(data, where), where)
    except av.error.FFmpegError as error:
        raise _unusable(where, f"{type(error).__name__}: {error}") from error


def open_clip(data: bytes) -> InputContainer:
    """Open an encoded video of one of the CONTAINERS; damaged names and titles in it are not worth an error."""
    container = av.open(io.BytesIO(data), mode="r", metadata_errors="replace", options=_OPTIONS)
    for stream in container.streams.video:
        if stream.codec_context is not None:
            stream.codec_context.options = {"max_pixels": _OPTIONS["max_pixels"]}
    return container


def _check_size(stream: VideoStream, where: str) -> None:
    width, height = stream.codec_context.width, stream.codec_context.height
    if width * height > MAX_FRAME_PIXELS:
        raise _unusable(where, f"frames of {width} x {height} pixels; the limit is {MAX_FRAME_PIXELS} pixels")


def _read_packets(container: InputContainer, stream: VideoStream, deadline: Deadline) -> list[Packet]:
    """The video packets, after checking that the file is as long as its header says.

    FFmpeg reads a truncated Matroska or fast-start MP4 without complaint, as a shorter clip.
    """
    packets, end, where = [], 0.0, deadline.where
    for packet in container.demux():
        deadline.check()
        if packet.size and packet.stream.index == stream.index:
            packets.append(packet)
        if packet.pts is not None and packet.time_base:
            end = max(end, float((packet.pts + (packet.duration or 0)) * packet.time_base))
    declares = any(name in container.format.name for name in ("mov", "matroska"))
    declared = (container.duration or 0) / av.time_base
    if declares and end < declared - max(0.5, 0.02 * declared):
        raise _unusable(where, f"it ends after {end:.2f} s, its header says {declared:.2f} s")
    if packets and not packets[0].is_keyframe:
        raise _unusable(where, "it does not begin with a key frame, so its first frames cannot be decoded")
    return packets


def _build(packets: list[Packet], stream: VideoStream, picture: tuple[int, int, int], where: str) -> Scan:
    unit = stream.time_base or Fraction(1, 1)
    rate = float(stream.average_rate or stream.guessed_rate or 25)
    # Packets that an edit list cuts off are decoded, because others refer to them, but never shown.
    shown = [packet for packet in packets if not packet.is_discard]
    if not shown:
        raise _unusable(where, "no frames")
    stamps = [packet.pts for packet in shown if packet.pts is not None]
    stamped = len(set(stamps)) == len(shown)
    if stamped:
        order = np.argsort(np.array(stamps), kind="stable")
        pts = np.array(stamps, dtype=np.int64)[order]
        times = (pts - pts[0]) * unit.numerator / unit.denominator  # of whole numbers: rounded once
        last = (shown[order[-1]].duration or 0) * float(unit) or 1 / rate
        keyframes = np.flatnonzero([shown[i].is_keyframe for i in order])
    else:
        # Without usable stamps only decoding from the start numbers the frames; the packet count is their number.
        pts, times = np.empty(0, np.int64), np.arange(len(shown)) / rate
        last, keyframes = 1 / rate, np.array([0])
    whole = len(shown) == len(packets)
    if whole and 0 not in keyframes:
        raise _unusable(where, "its first frames refer to frames before the clip, so they cannot be decoded")
    duration = float(times[-1] + last)
    return Scan(
        pts=pts, times=times, keyframes=np.union1d(keyframes, [0]), fps=len(times) / duration, duration=duration,
        rotation=picture[0], width=picture[1], height=picture[2], stamped=stamped,
        plain=whole and stamped and not any(packet.is_corrupt for packet in packets),
    )  # fmt: skip


def _first_picture(data: bytes, where: str) -> tuple[int, int, int]:
    """(rotation, width, height) from the first decoded frame, where the display matrix is at hand."""
    with open_clip(data) as container:
        stream = container.streams.video[0]
        stream.codec_context.thread_count = 1
        frame = next(container.decode(stream), None)
        if frame is None:
            raise _unusable(where, "no frame can be decoded")
        matrix = frame.side_data.get("DISPLAYMATRIX")
        if matrix is not None:
            a, b, _, c, d = struct.unpack("<5i", bytes(matrix)[:20])
            if a * d - b * c < 0:
                raise _unusable(where, "its metadata asks for a mirrored picture")
        if frame.rotation % 90:
            raise _unusable(where, f"its metadata asks for a rotation by {frame.rotation} degrees")
        return frame.rotation % 360, frame.width, frame.height


def _unusable(where: str, given: str) -> DataError:
    return DataError(
        "video cannot be used",
        where=where,
        given=given,
        expected=f"a complete video file ({', '.join(CONTAINERS)}) that begins with a key frame, turned by a multiple "
        "of 90 degrees if at all",
        fix="re-encode it (for example with ffmpeg), or drop the record",
    )


def damaged(where: str, given: str) -> DataError:
    """Make the error for a clip whose frames cannot be had."""
    return DataError(
        "video cannot be decoded faithfully",
        where=where,
        given=given,
        expected="a complete file whose sampled frames all decode",
        fix="re-encode or replace the file, or drop the record; `pack` rejects such records and lists them",
    )
