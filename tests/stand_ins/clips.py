"""Clips whose frames tell their numbers, at any time stamps."""

from __future__ import annotations

import io

import av
import numpy as np


def picture(index: int, height: int = 48, width: int = 64) -> np.ndarray:
    """A flat grey whose brightness tells the frame's number: 4 per frame, so that coding noise cannot hide it."""
    return np.full((height, width, 3), 8 + 4 * index, np.uint8)


def number(frame: np.ndarray) -> int:
    return round((float(frame.mean()) - 8) / 4)


def make_clip(
    num_frames=50, *, fmt="mp4", codec="libx264", gop=12, b_frames=2, stamps=None, drop=(), still=None, rotation=0
) -> bytes:
    """Encode numbered frames, 10 a second, or a still.

    `stamps` are times in tenths of a second; `drop` leaves packets out when muxing; `rotation` is metadata only.
    """
    out = io.BytesIO()
    with av.open(out, "w", format=fmt) as container:
        stream = container.add_stream(codec, rate=10, bit_rate=4_000_000)
        stream.height, stream.width = picture(0).shape[:2] if still is None else still.shape[:2]
        stream.pix_fmt = "yuv420p"
        stream.codec_context.gop_size, stream.codec_context.max_b_frames = gop, b_frames
        stream.codec_context.thread_count = 1
        if rotation:
            stream.set_display_rotation(rotation)
        packets = []
        for index in range(num_frames):
            frame = av.VideoFrame.from_ndarray(picture(index) if still is None else still, format="rgb24")
            frame.pts = stamps[index] if stamps else index
            packets += stream.encode(frame)
        packets += stream.encode()
        for order, packet in enumerate(packets):
            if order not in drop:
                container.mux(packet)
    return out.getvalue()
