"""What a clip may be: containers that hold their own frames, of a size that memory holds; nothing else is opened."""

from __future__ import annotations

import io
import os
import socket
from pathlib import Path

import av
import numpy as np
import pytest
from PIL import Image

from mmrlhf.errors import DataError
from mmrlhf.media import headers
from mmrlhf.media.video import decode_video, probe_video

CLIP = {"mp4": "mpeg4", "mov": "mjpeg", "matroska": "mpeg4", "avi": "mjpeg", "mpegts": "mpeg2video", "flv": "flv"}


def clip(fmt: str, codec: str) -> bytes:
    out = io.BytesIO()
    with av.open(out, "w", format=fmt) as container:
        stream = container.add_stream(codec, rate=10)
        stream.width, stream.height = 64, 48
        stream.pix_fmt = "yuvj420p" if codec == "mjpeg" else "yuv420p"
        for shade in np.linspace(40, 200, 60).round():  # enough bytes for MPEG-TS to be recognised
            frame = av.VideoFrame.from_ndarray(np.full((48, 64, 3), int(shade), np.uint8), format="rgb24")
            container.mux(stream.encode(frame))
        container.mux(stream.encode())
    return out.getvalue()


@pytest.mark.parametrize("fmt", CLIP)
def test_the_allowed_containers_are_read(fmt: str) -> None:
    found = decode_video(clip(fmt, CLIP[fmt]), num_frames=2, where="k")
    assert [round(float(frame.mean()), -1) for frame in found.frames] == [40, 200]


@pytest.mark.parametrize(
    "text", ["ffconcat version 1.0\nfile {file}\n", "#EXTM3U\n#EXTINF:1,\n{file}\n#EXT-X-ENDLIST\n"]
)
def test_a_list_of_files_opens_none_of_them(tmp_path: Path, text: str) -> None:
    """The file that is named is a pipe: whoever opened it would wait, and be seen."""
    os.mkfifo(tmp_path / "outside.mp4")
    with pytest.raises(DataError, match="key k1"):
        probe_video(text.format(file=tmp_path / "outside.mp4").encode(), "key k1")
    with pytest.raises(OSError):  # nobody reads it
        os.open(tmp_path / "outside.mp4", os.O_WRONLY | os.O_NONBLOCK)


def test_a_session_description_opens_no_socket() -> None:
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    lines = ["v=0", "o=- 0 0 IN IP4 127.0.0.1", "s=x", "c=IN IP4 127.0.0.1", "t=0 0", f"m=video {port} RTP/AVP 96"]
    with pytest.raises(DataError, match="key k1"):
        probe_video("\r\n".join([*lines, "a=rtpmap:96 H264/90000", ""]).encode(), "key k1")


def test_a_picture_is_no_clip() -> None:
    """A GIF of 16,000 squared took 11 GiB as a clip; a small one is refused for the same reason."""
    out = io.BytesIO()
    Image.new("L", (8, 8)).save(out, "GIF", save_all=True, append_images=[Image.new("L", (8, 8), 255)])
    with pytest.raises(DataError, match="key k1"):
        probe_video(out.getvalue(), "key k1")


def test_frames_above_the_limit_are_refused_by_the_header(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(headers, "MAX_FRAME_PIXELS", 64 * 48 - 1)
    with pytest.raises(DataError, match="64 x 48 pixels"):
        headers.scan_video(clip("mp4", "mpeg4"), "key k1", headers.Deadline(10, "key k1"))
