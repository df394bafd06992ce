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
    with pytest.raises(DataError):
        decode_image(encode(Image.new("L", (15, 10))), where="x")


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
