"""Damaged media, the same on every machine: every way to damage x every format x seeds."""

from __future__ import annotations

import io
import random
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import cache

import av
import numpy as np
from PIL import Image

SEEDS = 10


@dataclass(frozen=True)
class Damaged:
    """One damaged file: its format, how it was damaged, which try, and its bytes."""

    fmt: str
    kind: str
    seed: int
    data: bytes

    @property
    def name(self) -> str:
        """What to call it in an error."""
        return f"{self.fmt}-{self.kind}-{self.seed}"

    @property
    def is_video(self) -> bool:
        """Whether it was a video."""
        return self.fmt in VIDEOS


def _cut(data: bytearray, noise: random.Random) -> bytes:
    return bytes(data[: noise.randrange(len(data))])


def _flip(data: bytearray, noise: random.Random) -> bytes:
    for _ in range(noise.choice([1, 2, 20])):
        data[noise.randrange(len(data))] ^= 1 << noise.randrange(8)
    return bytes(data)


def _zero(data: bytearray, noise: random.Random) -> bytes:
    start, size = noise.randrange(len(data)), noise.choice([16, 256, 4096])
    data[start : start + size] = bytes(len(data[start : start + size]))
    return bytes(data)


def _garble(data: bytearray, noise: random.Random) -> bytes:
    start, size = noise.randrange(len(data)), noise.choice([16, 256])
    data[start : start + size] = noise.randbytes(len(data[start : start + size]))
    return bytes(data)


def _wrong_header(data: bytearray, noise: random.Random) -> bytes:
    other = originals()[noise.choice(sorted(originals()))]
    size = noise.choice([4, 12, 64])
    data[:size] = other[:size]
    return bytes(data)


def _swap_blocks(data: bytearray, noise: random.Random) -> bytes:
    size = min(noise.choice([32, 512]), len(data) // 4)
    one, two = sorted(noise.randrange(len(data) // size) * size for _ in range(2))
    data[one : one + size], data[two : two + size] = data[two : two + size], data[one : one + size]
    return bytes(data)


def _shift(data: bytearray, noise: random.Random) -> bytes:
    start = noise.randrange(len(data))
    if noise.random() < 0.5:
        del data[start : start + noise.choice([1, 7, 300])]
    else:
        data[start:start] = noise.randbytes(noise.choice([1, 7, 300]))
    return bytes(data)


KINDS: dict[str, Callable[[bytearray, random.Random], bytes]] = {
    "cut": _cut,
    "flipped bits": _flip,
    "zeroed block": _zero,
    "garbled block": _garble,
    "wrong header": _wrong_header,
    "swapped blocks": _swap_blocks,
    "shifted": _shift,
}
VIDEOS = ("mp4", "mkv")


@cache
def originals() -> dict[str, bytes]:
    """One sound file of every format, with texture, so that there is something to damage."""
    pixels = np.random.default_rng(0).integers(0, 255, (12, 16, 3), dtype=np.uint8)
    image = Image.fromarray(pixels).resize((128, 96), Image.Resampling.BICUBIC)
    files = {
        "jpeg": _encode(image, "JPEG", quality=90),
        "png": _encode(image, "PNG"),
        "webp": _encode(image, "WEBP", quality=80),
        "gif": _encode(image.quantize(64), "GIF"),
    }
    return {**files, "mp4": _clip("mp4"), "mkv": _clip("matroska")}


def _encode(image: Image.Image, fmt: str, **options: int) -> bytes:
    out = io.BytesIO()
    image.save(out, fmt, **options)
    return out.getvalue()


def _clip(fmt: str) -> bytes:
    out, texture = io.BytesIO(), np.random.default_rng(1).integers(0, 255, (64, 96, 3), dtype=np.uint8)
    with av.open(out, "w", format=fmt) as container:
        stream = container.add_stream("libx264", rate=10)
        stream.height, stream.width, stream.pix_fmt = 64, 96, "yuv420p"
        stream.codec_context.gop_size, stream.codec_context.thread_count = 8, 1
        for index in range(24):
            frame = av.VideoFrame.from_ndarray(np.roll(texture, 3 * index, axis=1), format="rgb24")
            frame.pts = index
            container.mux(stream.encode(frame))
        container.mux(stream.encode())
    return out.getvalue()


def corpus() -> Iterator[Damaged]:
    """Every damaged file: 6 formats x 7 kinds x 10 seeds = 420."""
    for fmt, original in originals().items():
        for kind, damage in KINDS.items():
            for seed in range(SEEDS):
                noise = random.Random(f"{fmt} {kind} {seed}")
                yield Damaged(fmt, kind, seed, damage(bytearray(original), noise))
