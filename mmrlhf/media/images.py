"""Image bytes to pixels: one decoder for every stage, so that training and evaluation see the same picture."""

from __future__ import annotations

import io
import warnings

from PIL import Image, ImageOps, UnidentifiedImageError

from mmrlhf.errors import DataError

# PIL reports damage as any of these, depending on the plugin and on how far it came.
_UNREADABLE = (
    UnidentifiedImageError, OSError, SyntaxError, ValueError, IndexError, EOFError,
    Image.DecompressionBombError, Image.DecompressionBombWarning,
)  # fmt: skip
# Formats whose decoders only turn bytes into pixels. Pillow knows others that start programs (EPS runs Ghostscript),
# read further files, or are not pictures.
FORMATS = ("AVIF", "BMP", "DDS", "DIB", "GIF", "ICO", "JPEG", "JPEG2000", "PCX", "PNG", "PPM", "QOI", "TGA",
           "TIFF", "WEBP")  # fmt: skip
_SWAPS_SIDES = frozenset({5, 6, 7, 8})
_ORIENTATION = 0x0112


def decode_image(data: bytes, *, where: str) -> Image.Image:
    """Decode one image to RGB, upright as its EXIF orientation says.

    Transparent pixels are laid over white, 16-bit grey is scaled to 8 bits, and of an animation the first frame counts.

    Args:
        data: the encoded file.
        where: what to call it in an error (key, shard, member).

    Raises:
        DataError: empty, truncated, damaged or absurdly large data.
    """
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("error", Image.DecompressionBombWarning)
            warnings.simplefilter("ignore", UserWarning)
            with Image.open(io.BytesIO(data), formats=FORMATS) as image:
                image.load()
                return _to_rgb(ImageOps.exif_transpose(image))
    except _UNREADABLE as error:
        raise _unreadable(data, where, error) from error


def image_size(data: bytes, *, where: str = "image") -> tuple[int, int]:
    """Read (width, height) as displayed, EXIF orientation applied, from the header alone.

    Raises:
        DataError: the header cannot be read. Damage behind the header goes unnoticed here.
    """
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("error", Image.DecompressionBombWarning)
            warnings.simplefilter("ignore", UserWarning)
            with Image.open(io.BytesIO(data), formats=FORMATS) as image:
                width, height = image.size
                turned = image.getexif().get(_ORIENTATION) in _SWAPS_SIDES
    except _UNREADABLE as error:
        raise _unreadable(data, where, error) from error
    return (height, width) if turned else (width, height)


def _to_rgb(image: Image.Image) -> Image.Image:
    if image.mode.startswith("I"):
        # PIL's own conversion clips 16-bit grey at 255, which turns nearly every pixel white.
        image = image.convert("I").point(lambda value: value / 257).convert("L")
    if image.has_transparency_data:
        image = image.convert("RGBA")
        canvas = Image.new("RGBA", image.size, "white")
        image = Image.alpha_composite(canvas, image)
    return image.convert("RGB")


def _unreadable(data: bytes, where: str, error: Exception) -> DataError:
    return DataError(
        "image cannot be decoded",
        where=where,
        given=f"{len(data)} bytes, {type(error).__name__}: {error}",
        expected=f"a complete picture file of one of the formats {', '.join(FORMATS)}",
        fix="replace the file, or drop the record; `pack` rejects such records and lists them",
    )
