"""Media as a browser can show them: pictures and clips in forms that it has, others written anew in one."""

from __future__ import annotations

import io
from collections.abc import Iterator
from dataclasses import dataclass
from typing import cast

import av
import numpy as np
from av.video.stream import VideoStream

from mmrlhf.media.headers import damaged, open_clip
from mmrlhf.media.images import decode_image
from mmrlhf.media.isolation import ProcessDied, guarded
from mmrlhf.media.video import TIMEOUT, decode_video, probe_video
from mmrlhf.types import Media, PreferenceGroup, Response

MOST_FRAMES = 240  # of a clip that is written anew
_PICTURES = {b"\xff\xd8\xff": "jpg", b"\x89PNG": "png", b"GIF8": "gif"}
_CODECS = ("h264", "vp8", "vp9", "av1", "libdav1d")
TYPES = {
    "jpg": "image/jpeg", "png": "image/png", "gif": "image/gif", "webp": "image/webp", "mp4": "video/mp4",
    "webm": "video/webm",
}  # fmt: skip


@dataclass(frozen=True)
class Shown:
    """A picture or clip in a form that browsers show: its bytes and the suffix of its form, one of `TYPES`."""

    data: bytes
    suffix: str

    @property
    def is_video(self) -> bool:
        """Whether it is a clip."""
        return self.suffix in ("mp4", "webm")


def shown_media(group: PreferenceGroup, response: Response | None = None) -> list[Shown]:
    """What a query shows, or one response's own media, in their order; frames of a clip are pictures.

    Raises:
        DataError: media that cannot be decoded.
    """
    media = group.media if response is None else response.media
    return [shown for each in media for shown in _shown(each, f"{group.key}:{each.names[0]}")]


def kinds_of(media: tuple[Media, ...]) -> list[bool]:
    """Whether each of what `shown_media` gives is a clip, without looking at the media."""
    return [each.kind == "video" for each in media for _ in each.names]


def _shown(media: Media, where: str) -> Iterator[Shown]:
    for data in media.data:
        yield _clip(data, where) if media.kind == "video" else _picture(data, where)


def _picture(data: bytes, where: str) -> Shown:
    suffix = next((suffix for magic, suffix in _PICTURES.items() if data.startswith(magic)), "")
    if data[:4] == b"RIFF" and data[8:12] == b"WEBP":
        suffix = "webp"
    picture = decode_image(data, where=where)  # also of a form that browsers have: what is damaged is said here
    if suffix:
        return Shown(data, suffix)
    stream = io.BytesIO()
    picture.save(stream, "PNG")
    return Shown(stream.getvalue(), "png")


def _clip(data: bytes, where: str) -> Shown:
    total, *_ = probe_video(data, where)
    try:
        codec, container = guarded(_codec, data, timeout=TIMEOUT)
    except ProcessDied as died:
        raise damaged(where, f"its decoder {died}") from died
    if codec in _CODECS:
        if "webm" in container and data[:4] == b"\x1aE\xdf\xa3" and b"webm" in data[:64]:
            return Shown(data, "webm")
        if "mp4" in container and data[4:8] == b"ftyp" and data[8:10] != b"qt":
            return Shown(data, "mp4")
    clip = decode_video(data, num_frames=min(total, MOST_FRAMES), where=where)
    return Shown(_as_h264(clip.frames, len(clip.frames) / max(clip.duration, 1e-3)), "mp4")


def _codec(data: bytes) -> tuple[str, str]:
    with open_clip(data) as container:
        return container.streams.video[0].codec_context.name, container.format.name


def _as_h264(frames: np.ndarray, rate: float) -> bytes:
    """Frames (F, H, W, 3) as an mp4 file; odd sides get one more line of pixels."""
    even = [(0, 0), *((0, side % 2) for side in frames.shape[1:3]), (0, 0)]
    out = io.BytesIO()
    with av.open(out, "w", format="mp4") as container:
        stream = cast(VideoStream, container.add_stream("libx264", rate=max(1, round(rate))))
        padded = np.pad(frames, even, mode="edge")
        stream.height, stream.width = padded.shape[1:3]
        stream.pix_fmt = "yuv420p"
        for number, pixels in enumerate(padded):
            frame = av.VideoFrame.from_ndarray(np.ascontiguousarray(pixels), format="rgb24")
            frame.pts = number
            container.mux(stream.encode(frame))
        container.mux(stream.encode())
    return out.getvalue()
