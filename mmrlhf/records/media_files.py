"""Media of a draft: found below the data folder or inside its record, and read in full."""

from __future__ import annotations

import io
from pathlib import Path

from PIL import Image

from mmrlhf.errors import DataError
from mmrlhf.files import read_regular
from mmrlhf.media.images import FORMATS, decode_image
from mmrlhf.records.embedded import Embedded
from mmrlhf.records.fields import MediaRef
from mmrlhf.records.media_paths import locate, locate_video, missing
from mmrlhf.records.member_names import IMAGE_SUFFIXES, OTHER_SUFFIXES, VIDEO_SUFFIXES, natural_order, suffix_of
from mmrlhf.types import Media

_SHORT = {"jpeg": "jpg", "mpo": "jpg", "tiff": "tif"}


def read_image(root: Path, ref: MediaRef, number: int, where: str) -> Media:
    """Read one image, decode it once, and make it member `number` of its sample.

    Raises:
        DataError: a path that leaves the root, a missing, empty or unreadable file.
    """
    if isinstance(ref, Embedded):
        data = _not_empty(ref.read(), f"{where}:{ref}")
        decode_image(data, where=f"{where}:image {number}")
        return Media("image", (f"{number}.{_embedded_suffix(data)}",), (data,))
    path = locate(root, ref)
    if not path.is_file():
        raise missing(root, path, ref)
    data = read_file(path)
    decode_image(data, where=str(path))
    return Media("image", (f"{number}.{_image_suffix(path)}",), (data,))


def read_video(root: Path, ref: MediaRef, where: str) -> tuple[str, bytes, str] | Path:
    """Read a video file as (suffix, bytes, place), or return the folder that holds its frames.

    Raises:
        DataError: as `read_image`.
    """
    if isinstance(ref, Embedded):
        data = _not_empty(ref.read(), f"{where}:{ref}")
        return _video_suffix(ref.name), data, f"{where}:video"
    path = locate_video(root, ref)
    if path.is_dir():
        return path
    return _video_suffix(path.name), read_file(path), str(path)


def read_file(path: Path) -> bytes:
    """Read a media file; raises DataError if it cannot be read or is empty."""
    return _not_empty(read_regular(path, what="media file"), path)


def _not_empty(data: bytes, where: object) -> bytes:
    if not data:
        raise DataError("media file is empty", where=where, given="0 bytes")
    return data


def frame_folder(folder: Path) -> Media:
    """Read a video that is given as a folder of frames, all of them; which are used is decided when they are read."""
    files = [path for path in folder.iterdir() if not path.name.startswith(".")]
    paths = sorted(
        (path for path in files if suffix_of(path.name) in IMAGE_SUFFIXES), key=lambda path: natural_order(path.name)
    )
    unknown = [path for path in files if suffix_of(path.name) not in IMAGE_SUFFIXES | OTHER_SUFFIXES]
    if unknown:
        raise DataError(
            "video folder has a file that is no frame", where=min(unknown), expected="numbered image files, and texts"
        )
    if not paths:
        raise DataError("video folder has no frames", where=folder, expected="numbered image files")
    data = [read_file(path) for path in paths]
    sizes = {decode_image(frame, where=str(path)).size for path, frame in zip(paths, data, strict=True)}
    if len(sizes) > 1:
        raise DataError("frames of one video differ in size", where=folder, given=sorted(sizes), expected="one size")
    return Media("frames", frame_names([_image_suffix(path) for path in paths]), tuple(data))


def frame_names(suffixes: list[str]) -> tuple[str, ...]:
    """Member names of frames, in order: f000.jpg, f001.jpg, ..."""
    width = max(3, len(str(len(suffixes) - 1)))
    return tuple(f"f{number:0{width}d}.{suffix}" for number, suffix in enumerate(suffixes))


def _video_suffix(name: str) -> str:
    """A member's suffix: the file's own where it is that of a clip; the decoder goes by the content."""
    return suffix_of(name) if "." in name and suffix_of(name) in VIDEO_SUFFIXES else "mp4"


def _image_suffix(path: Path) -> str:
    suffix = path.suffix[1:].lower()
    return _SHORT.get(suffix, suffix) if suffix in IMAGE_SUFFIXES else "img"


def _embedded_suffix(data: bytes) -> str:
    with Image.open(io.BytesIO(data), formats=FORMATS) as image:
        suffix = str(image.format).lower()
    return _SHORT.get(suffix, suffix)
