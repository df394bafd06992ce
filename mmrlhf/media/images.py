"""Image bytes to pixels: one decoder for every stage, so that training and evaluation see the same picture."""

from __future__ import annotations

import io
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Literal

from PIL import Image, ImageFile
from PIL.TiffImagePlugin import IMAGELENGTH, IMAGEWIDTH, TiffImageFile

from mmrlhf.errors import DataError

# Formats whose decoders only turn bytes into pixels. Pillow knows others that start programs (EPS runs Ghostscript),
# read further files, or are not pictures.
FORMATS = ("AVIF", "BMP", "DDS", "DIB", "GIF", "ICO", "JPEG", "JPEG2000", "PCX", "PNG", "PPM", "QOI", "TGA",
           "TIFF", "WEBP")  # fmt: skip
# Formats whose further pictures are more to see: frames and pages. Those of other formats are previews or other sizes.
_OF_PAGES = ("AVIF", "GIF", "PNG", "TIFF", "WEBP")
_ORIENTATION = 0x0112
# EXIF's number -> how a picture is turned upright; 1, and whatever else may stand there, is upright already
_TURNS = {
    2: Image.Transpose.FLIP_LEFT_RIGHT, 3: Image.Transpose.ROTATE_180, 4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE, 6: Image.Transpose.ROTATE_270, 7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}  # fmt: skip
_SWAPS_SIDES = frozenset({5, 6, 7, 8})
Alpha = Literal["white", "drop"]
# a 16-bit picture whose brightest pixel has no more than 12 bits was written by a camera of fewer bits
_DOUBTFUL = 4096


def decode_image(data: bytes, *, alpha: Alpha = "white", where: str) -> Image.Image:
    """Decode one image to RGB, upright as its EXIF orientation says.

    16-bit grey is scaled to 8 bits, and of an animation the first frame counts.
    Of EXIF only the orientation is read, so no other entry can do harm.

    Args:
        data: the encoded file.
        alpha: `white`: transparent pixels are laid over white; `drop`: the colour that lies behind them is shown, as
            transformers' own processors do.
        where: what to call it in an error (key, shard, member).

    Raises:
        DataError: empty, truncated, damaged or absurdly large data, or grey values whose range nothing tells.
    """
    with _opened(data, where) as image:
        image.load()
        turn = _TURNS.get(_orientation(image))
        rgb = _to_rgb(image, alpha, where)
        return rgb if turn is None else rgb.transpose(turn)


def image_size(data: bytes, *, where: str = "image") -> tuple[int, int]:
    """Read (width, height) as displayed, EXIF orientation applied, from the header alone.

    Raises:
        DataError: the header cannot be read. Damage behind the header goes unnoticed here.
    """
    with _opened(data, where) as image:
        width, height = _stored_size(image)
        return (height, width) if _orientation(image) in _SWAPS_SIDES else (width, height)


def is_first_of_several(data: bytes, *, where: str = "image") -> bool:
    """Say whether a file holds more pictures to see than the one that is decoded: frames or pages.

    Raises:
        DataError: the file cannot be read.
    """
    with _opened(data, where) as image:
        return image.format in _OF_PAGES and bool(getattr(image, "is_animated", False))


@contextmanager
def _opened(data: bytes, where: str) -> Iterator[ImageFile.ImageFile]:
    """Open an encoded picture; whatever the decoder raises, here or in the block, is a DataError."""
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            warnings.simplefilter("error", Image.DecompressionBombWarning)
            with Image.open(io.BytesIO(data), formats=FORMATS) as image:
                yield image
    except DataError:
        raise
    except Exception as error:  # decoders report damage as anything: struct.error, TypeError, zlib.error, ...
        raise _unreadable(data, where, error) from error


def _stored_size(image: ImageFile.ImageFile) -> tuple[int, int]:
    """Sides before anything is turned; of a TIFF from its own entries, since Pillow turns `size` when it opens one."""
    if isinstance(image, TiffImageFile):
        return image.tag_v2[IMAGEWIDTH], image.tag_v2[IMAGELENGTH]
    return image.size


def _orientation(image: Image.Image) -> int:
    """EXIF's orientation, also where it is another sort of integer than the standard says; 1 where it is none."""
    try:
        value = image.getexif().get(_ORIENTATION)
        while isinstance(value, tuple | bytes) and value:
            value = value[0]
        return value if isinstance(value, int) else 1
    except Exception:  # as above; without its orientation a picture is as good as one that never had any
        return 1


def _to_rgb(image: Image.Image, alpha: Alpha, where: str) -> Image.Image:
    if image.mode == "F" or (image.mode == "I" and image.format not in ("PPM", "PNG")):
        raise _unknown_range(where, f"{'floating-point' if image.mode == 'F' else '32-bit'} grey values")
    if image.mode.startswith("I"):
        image = image.convert("I")
        brightest = int(image.getextrema()[1])  # type: ignore[arg-type]
        if 0 < brightest < _DOUBTFUL:
            raise _unknown_range(where, f"16-bit grey values, of which the brightest is {brightest}")
        # PIL's own conversion clips 16-bit grey at 255, which turns nearly every pixel white.
        image = image.point(lambda value: value / 257).convert("L")
    if alpha == "white" and image.has_transparency_data:
        image = image.convert("RGBA")
        canvas = Image.new("RGBA", image.size, "white")
        image = Image.alpha_composite(canvas, image)
    return image.convert("RGB")


def _unknown_range(where: str, given: str) -> DataError:
    return DataError(
        "the range of a picture's brightness is unknown",
        where=where,
        given=given,
        expected="8 bits, or 16 bits that are used",
        fix="scale the picture to 8 bits; nothing in the file says which value is white",
    )


def _unreadable(data: bytes, where: str, error: Exception) -> DataError:
    if isinstance(error, Image.DecompressionBombError | Image.DecompressionBombWarning):
        return DataError(
            "image has too many pixels",
            where=where, given=error, expected=f"at most {Image.MAX_IMAGE_PIXELS:,}", fix="shrink it, or drop it",
        )  # fmt: skip
    return DataError(
        "image cannot be decoded",
        where=where,
        given=f"{len(data)} bytes, {type(error).__name__}: {error}",
        expected=f"a complete picture file of one of the formats {', '.join(FORMATS)}",
        fix="replace the file, or drop the record; `pack` rejects such records and lists them",
    )


def is_upright_jpeg(data: bytes, *, where: str = "image") -> bool:
    """Say whether a file is a JPEG in grey or RGB that is shown as it is stored: any program decodes it as we do.

    Raises:
        DataError: the header cannot be read.
    """
    with _opened(data, where) as image:
        return image.format == "JPEG" and image.mode in ("RGB", "L") and _orientation(image) not in _TURNS
