"""Pictures and clips of every allowed format with their bytes changed: pixels, or a DataError that says where."""

from __future__ import annotations

import io
import struct
from collections.abc import Callable
from functools import cache
from pathlib import Path

import av
import numpy as np
import pytest
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st
from PIL import Image
from stand_ins.any_damage import Change, changed, changes

from mmrlhf.errors import DataError
from mmrlhf.media.images import decode_image, image_size, is_first_of_several
from mmrlhf.media.video import decode_video, probe_video
from mmrlhf.records.draft import Draft
from mmrlhf.reporting.pack_table import Tally
from mmrlhf.types import Media, PreferenceGroup, Response

FORMATS = ["PNG", "JPEG", "WEBP", "GIF", "BMP", "TIFF", "AVIF", "JPEG2000", "PPM", "MPO", "TGA", "ICO", "PCX", "DDS"]
# AVIF is not among them: its encoder, which only this test would use, crashes at an animation so small
SEVERAL = ("GIF", "MPO", "PNG", "TIFF", "WEBP")
UPRIGHT = np.random.default_rng(0).integers(0, 255, (4, 6, 3), dtype=np.uint8)


@cache
def picture(fmt: str, several: bool = False) -> bytes:
    """A file with texture, EXIF and a colour table, so that there is something to damage."""
    image = Image.fromarray(UPRIGHT).resize((40, 24))
    exif = Image.Exif()
    exif[0x0112], exif[0x010F], exif[0x011A] = 6, "maker", 72.0
    options = {"exif": exif} if fmt in ("PNG", "JPEG", "WEBP", "TIFF", "AVIF", "MPO") else {}
    if several:
        options |= {"save_all": True, "append_images": [image.rotate(90), image.rotate(180)]}
    out = io.BytesIO()
    image.save(out, fmt, **options)
    return out.getvalue()


def refused_or(read: Callable[[], object]) -> object:
    """What was read; a refusal must say where."""
    try:
        return read()
    except DataError as error:
        assert error.where == "key k1"
        return None


@pytest.mark.parametrize("fmt", FORMATS)
@settings(max_examples=40)
@given(steps=changes, several=st.booleans())
def test_any_damage_to_a_picture(fmt: str, steps: list[Change], several: bool) -> None:
    data = changed(picture(fmt, several and fmt in SEVERAL), steps)
    refused_or(lambda: image_size(data, where="key k1"))
    refused_or(lambda: is_first_of_several(data, where="key k1"))
    shown = refused_or(lambda: decode_image(data, where="key k1"))
    assert shown is None or (isinstance(shown, Image.Image) and shown.mode == "RGB")


def with_exif(entries: list[tuple[int, int, int, bytes]], tail: bytes) -> bytes:
    """A JPEG of 6 x 4 pixels whose EXIF holds these entries (tag, type, count, 4 bytes) and some bytes behind them."""
    body = b"".join(struct.pack(">HHL", tag, kind, count) + value for tag, kind, count, value in entries)
    exif = b"Exif\0\0MM\0*\0\0\0\x08" + struct.pack(">H", len(entries)) + body + b"\0\0\0\0" + tail
    out = io.BytesIO()
    Image.fromarray(UPRIGHT).save(out, "JPEG")
    plain = out.getvalue()
    return plain[:2] + b"\xff\xe1" + struct.pack(">H", len(exif) + 2) + exif + plain[2:]


ORIENTATION = (0x0112, 3, 1, b"\0\x06\0\0")
others = st.tuples(
    st.sampled_from([0x010F, 0x011A, 0x011B, 0x0128, 0x0100, 0x8769, 0x8825, 0xA005, 0x927C, 0x02BC, 0x9286]),
    st.integers(0, 14),
    st.sampled_from([0, 1, 2, 4, 100, 2**31, 2**32 - 1]),
    st.binary(min_size=4, max_size=4),
)


@given(entries=st.lists(others, max_size=5), tail=st.binary(max_size=40))
@example([(0x011A, 11, 1, struct.pack(">f", float("nan")))], b"")
@example([(0x0100, 2, 4, b"abc\0")], b"")
@example([(0x011A, 2, 4, b"abc\0")], b"")
@example([(0x011A, 10, 1, b"\0\0\0\x38")], b"\xff\xff\xff\xff\xff\xff\xff\xff" * 4)
def test_a_picture_is_turned_upright_whatever_else_its_exif_holds(
    entries: list[tuple[int, int, int, bytes]], tail: bytes
) -> None:
    data = with_exif([ORIENTATION, *entries], tail)
    plain = decode_image(with_exif([], b""), where="key k1")
    shown = decode_image(data, where="key k1")
    assert image_size(data) == shown.size == (4, 6)
    assert np.array_equal(np.asarray(shown), np.rot90(np.asarray(plain), 3))


@pytest.mark.parametrize("orientation", range(10))
def test_every_orientation_is_that_of_pillow(orientation: int) -> None:
    """Against `ImageOps.exif_transpose`, which rewrites all of EXIF for it; 0 and 9 mean nothing."""
    from PIL import ImageOps

    data = with_exif([(0x0112, 3, 1, struct.pack(">HH", orientation, 0))], b"")
    expected = ImageOps.exif_transpose(Image.open(io.BytesIO(data)))
    assert np.array_equal(np.asarray(decode_image(data, where="x")), np.asarray(expected))


@pytest.mark.parametrize(("kind", "value"), [(1, b"\x06\0\0\0"), (4, b"\0\0\0\x06"), (7, b"\x06\0\0\0")])
def test_another_sort_of_integer_is_an_orientation_too(kind: int, value: bytes) -> None:
    data = with_exif([(0x0112, kind, 1, value)], b"")
    assert decode_image(data, where="x").size == image_size(data) == (4, 6)


@pytest.mark.parametrize(
    ("pixels", "fmt", "given"),
    [
        (np.linspace(0, 1, 24, dtype=np.float32), "TIFF", "floating-point"),
        (np.linspace(0, 255, 24, dtype=np.float32), "TIFF", "floating-point"),
        (np.arange(24, dtype=np.int32) * 10, "TIFF", "32-bit"),
        (np.linspace(0, 2**31 - 1, 24).astype(np.int32), "TIFF", "32-bit"),
        (np.linspace(0, 4095, 24).astype(np.uint16), "PNG", "brightest is 4095"),
        (np.linspace(0, 255, 24).astype(np.uint16), "TIFF", "brightest is 255"),
    ],
)
def test_brightness_of_an_unknown_range_is_refused(pixels: np.ndarray, fmt: str, given: str) -> None:
    out = io.BytesIO()
    Image.fromarray(pixels.reshape(4, 6)).save(out, fmt)
    with pytest.raises(DataError, match="brightness is unknown") as caught:
        decode_image(out.getvalue(), where="key k1")
    assert given in str(caught.value.given) and caught.value.where == "key k1"


@pytest.mark.parametrize("pixels", [np.linspace(0, 65535, 24), np.zeros(24)])
def test_sixteen_bits_in_full_and_black_are_shown(pixels: np.ndarray) -> None:
    out = io.BytesIO()
    Image.fromarray(pixels.astype(np.uint16).reshape(4, 6)).save(out, "PNG")
    shown = np.asarray(decode_image(out.getvalue(), where="x"))[..., 0].flatten()
    assert np.abs(shown - pixels / 257).max() <= 1


@pytest.mark.parametrize("fmt", [fmt for fmt in SEVERAL if fmt != "MPO"])
def test_what_is_left_of_several_pictures_is_counted_in_the_pack_table(fmt: str) -> None:
    assert is_first_of_several(picture(fmt, several=True)) and not is_first_of_several(picture(fmt))
    several = Media("image", ("0", "1", "2"), (picture(fmt, several=True), picture(fmt), picture(fmt, several=True)))
    group = PreferenceGroup("k", "p", (Response("a", rank=0), Response("b", rank=1)), media=(several,))
    tally = Tally()
    tally.add(Draft("k", group, Path()), group)
    assert tally.counts["first_of_several"] == 2


@cache
def clip(container: str, codec: str, pixels: str) -> bytes:
    out = io.BytesIO()
    with av.open(out, "w", format=container) as file:
        file.metadata["comment"] = "made for a test"
        stream = file.add_stream(codec, rate=10)
        stream.height, stream.width, stream.pix_fmt = 32, 48, pixels
        for index in range(8):
            frame = av.VideoFrame.from_ndarray(np.full((32, 48, 3), 20 * index, np.uint8), format="rgb24")
            frame.pts = index
            file.mux(stream.encode(frame))
        file.mux(stream.encode())
    return out.getvalue()


CLIPS = [("mp4", "libx264", "yuv420p"), ("avi", "mjpeg", "yuvj420p"), ("matroska", "mjpeg", "yuvj420p")]


@pytest.mark.parametrize("kind", CLIPS, ids=lambda kind: f"{kind[0]} {kind[1]}")
@settings(max_examples=8, suppress_health_check=[HealthCheck.too_slow])
@given(steps=changes)
def test_any_damage_to_a_clip(kind: tuple[str, str, str], steps: list[Change]) -> None:
    data = changed(clip(*kind), steps)
    refused_or(lambda: probe_video(data, "key k1"))
    shown = refused_or(lambda: decode_video(data, num_frames=3, where="key k1"))
    assert shown is None or len(shown.frames) > 0  # type: ignore[attr-defined]


def test_the_shared_cases_of_broken_exif(project: Path) -> None:
    folder = project.parent / "shared" / "cases" / "09_broken_exif" / "data" / "long"
    if not folder.is_dir():
        pytest.skip(f"needs {folder}")
    for path in sorted(folder.iterdir()):
        decode_image(path.read_bytes(), where=path.name)
