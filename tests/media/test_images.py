import io

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from mmrlhf.errors import DataError
from mmrlhf.media.images import decode_image, image_size


def encode(image: Image.Image, fmt: str = "PNG", **options) -> bytes:
    out = io.BytesIO()
    image.save(out, fmt, **options)
    return out.getvalue()


@pytest.mark.parametrize(("orientation", "turns"), [(1, 0), (3, 2), (6, 3), (8, 1)])
def test_exif_orientation_is_applied_to_pixels_and_size(orientation, turns):
    """EXIF 6 says: turn clockwise to see it upright, which is three quarter turns counter-clockwise."""
    pixels = np.random.default_rng(0).integers(0, 255, (4, 6, 3), dtype=np.uint8)
    exif = Image.Exif()
    exif[0x0112] = orientation
    data = encode(Image.fromarray(pixels), exif=exif)
    decoded = decode_image(data, where="x")
    assert np.array_equal(np.asarray(decoded), np.rot90(pixels, turns))
    assert image_size(data) == decoded.size


# what undoes EXIF's number: the picture as somebody sees it -> the pixels that a camera stored
_STORED = {
    1: lambda seen: seen, 2: np.fliplr, 3: lambda seen: np.rot90(seen, 2), 4: np.flipud,
    5: lambda seen: seen.transpose(1, 0, 2), 6: np.rot90, 7: lambda seen: np.rot90(seen, 2).transpose(1, 0, 2),
    8: lambda seen: np.rot90(seen, 3),
}  # fmt: skip
_WITH_ORIENTATION = {
    "JPEG": {"quality": 100, "subsampling": 0}, "MPO": {"quality": 100, "subsampling": 0}, "PNG": {},
    "WEBP": {"lossless": True}, "AVIF": {"quality": 100, "subsampling": "4:4:4"},
    "TIFF": {}, "TIFF-LZW": {"compression": "tiff_lzw"}, "TIFF-Deflate": {"compression": "tiff_adobe_deflate"},
    "TIFF-PackBits": {"compression": "packbits"}, "TIFF-JPEG": {"compression": "jpeg", "quality": 100},
    "TIFF-pages": {"save_all": True, "append_images": [Image.new("RGB", (9, 9))]},
}  # fmt: skip


@pytest.mark.parametrize("orientation", _STORED)
@pytest.mark.parametrize("form", _WITH_ORIENTATION)
def test_every_format_that_stores_an_orientation_is_shown_upright(form: str, orientation: int) -> None:
    """What is seen is 48 x 32: red and green above, blue and white below."""
    seen = np.zeros((32, 48, 3), np.uint8)
    seen[:16, :24, 0] = seen[:16, 24:, 1] = seen[16:, :24, 2] = seen[16:, 24:] = 255
    exif = Image.Exif()
    exif[0x0112] = orientation
    stored = Image.fromarray(np.ascontiguousarray(_STORED[orientation](seen)))
    data = encode(stored, form.partition("-")[0], exif=exif, **_WITH_ORIENTATION[form])
    decoded = decode_image(data, where="x")
    assert image_size(data) == decoded.size == (48, 32)
    middles = np.s_[8::16, 12::24]
    assert np.abs(np.asarray(decoded)[middles].astype(int) - seen[middles]).max() < 12


@pytest.mark.parametrize("kind", [1, 3, 4, 6, 8, 9])
def test_a_tiff_may_hold_its_orientation_in_another_sort_of_integer(kind: int) -> None:
    """Pillow turns only those of a SHORT or LONG; a picture is turned once whoever does it."""
    exif = Image.Exif()
    exif[0x0112] = 6
    data = bytearray(encode(Image.fromarray(np.arange(24 * 3, dtype=np.uint8).reshape(4, 6, 3)), "TIFF", exif=exif))
    entry = data.index(b"\x12\x01\x03\x00\x01\x00\x00\x00\x06\x00")
    data[entry + 2] = kind
    decoded = decode_image(bytes(data), where="x")
    assert image_size(bytes(data)) == decoded.size == (4, 6)


@pytest.mark.parametrize("mode", ["1", "L", "LA", "P", "RGB", "RGBA", "I;16", "CMYK"])
def test_every_mode_becomes_rgb(mode):
    image = Image.new("L", (5, 3), 200)
    image = Image.fromarray(np.full((3, 5), 200 * 257, np.uint16)) if mode == "I;16" else image.convert(mode)
    data = encode(image, "TIFF" if mode == "CMYK" else "PNG")
    decoded = decode_image(data, where="x")
    assert (decoded.mode, decoded.size) == ("RGB", (5, 3))


def test_sixteen_bit_grey_keeps_its_brightness():
    """Pillow's own conversion clips: 0x8000 would come out as white."""
    data = encode(Image.fromarray(np.full((2, 2), 0x8000, np.uint16)))
    assert np.asarray(decode_image(data, where="x")).flatten().tolist() == [127] * 12


def test_transparent_pixels_are_white():
    data = encode(Image.new("RGBA", (2, 2), (0, 0, 0, 0)))
    assert np.asarray(decode_image(data, where="x")).min() == 255


@settings(deadline=None)
@given(st.binary(max_size=200))
def test_noise_is_a_data_error_that_says_where(data):
    for read in (lambda: decode_image(data, where="key k1, shard s.tar"), lambda: image_size(data, where="key k1")):
        with pytest.raises(DataError, match="key k1"):
            read()


@settings(deadline=None)
@given(cut=st.integers(0, 400))
def test_a_truncated_jpeg_is_refused(cut):
    data = encode(Image.fromarray(np.random.default_rng(0).integers(0, 255, (32, 32, 3), dtype=np.uint8)), "JPEG")
    with pytest.raises(DataError):
        decode_image(data[: min(cut, len(data) - 3)], where="x")


def test_a_decompression_bomb_is_refused(monkeypatch):
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 100)
    for sides in ((15, 10), (150, 10)):
        with pytest.raises(DataError, match="too many pixels") as caught:
            decode_image(encode(Image.new("L", sides)), where="x")
        assert caught.value.expected == "at most 100" and "pixels" in str(caught.value.given)


def test_real_images_have_the_size_that_the_header_gives(shared_data):
    for path in sorted((shared_data / "real_pairs" / "long").iterdir()):
        assert decode_image(path.read_bytes(), where=path.name).size == image_size(path.read_bytes())


@pytest.mark.parametrize("fmt", ["EPS", "PDF", "PSD", "FITS", "XBM", "SGI"])
def test_formats_that_start_programs_or_are_no_pictures_are_refused(fmt, monkeypatch):
    """EPS would run Ghostscript: no process may start, whatever the bytes say."""
    monkeypatch.setattr("subprocess.Popen", lambda *_, **__: pytest.fail("a program was started"))
    data = {
        "EPS": b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 10 10\n%%EndComments\nshowpage\n",
        "PDF": b"%PDF-1.4\n",
        "PSD": b"8BPS\x00\x01" + bytes(20),
        "FITS": b"SIMPLE  =                    T".ljust(2880),
        "XBM": b"#define a_width 8\n#define a_height 1\nstatic char a_bits[] = {0x01};\n",
        "SGI": b"\x01\xda" + bytes(600),
    }[fmt]
    for read in (lambda: decode_image(data, where="key k1"), lambda: image_size(data, where="key k1")):
        with pytest.raises(DataError, match="key k1"):
            read()


@pytest.mark.parametrize("fmt", ["PNG", "JPEG", "WEBP", "GIF", "BMP", "TIFF", "AVIF", "JPEG2000", "PPM", "MPO", "TGA"])
def test_every_allowed_format_is_read(fmt):
    decoded = decode_image(encode(Image.new("RGB", (16, 12), (200, 100, 50)), fmt), where="x")
    assert decoded.size == (16, 12) and np.abs(np.asarray(decoded)[6, 8].astype(int) - (200, 100, 50)).max() < 12
