"""What the name of a file or member says of it: a picture, a clip, or neither; and the order of numbered ones."""

from __future__ import annotations

import re

# What the decoders of this project are allowed to read (`media/images.FORMATS`, `media/headers.CONTAINERS`); `img` and
# `image` are what programs call pictures whose format they do not say.
IMAGE_SUFFIXES = frozenset(
    (
        "jpg",
        "jpeg",
        "jpe",
        "jfif",
        "png",
        "apng",
        "webp",
        "bmp",
        "dib",
        "gif",
        "tif",
        "tiff",
        "avif",
        "jp2",
        "j2k",
        "ppm",
    )
    + ("pgm", "pbm", "pnm", "pfm", "tga", "dds", "ico", "pcx", "qoi", "img", "image")
)
VIDEO_SUFFIXES = ("mp4", "mov", "mkv", "webm", "avi", "m4v", "mpg", "mpeg", "ts", "flv", "wmv", "3gp", "ogv", "asf")
# What other programs put beside a record that is no medium of it: texts, labels, arrays, sound.
OTHER_SUFFIXES = frozenset(
    ("json", "txt", "text", "caption", "cls", "cls2", "id", "index", "key", "url", "md", "csv", "tsv", "xml", "html")
    + ("yaml", "yml", "npy", "npz", "pth", "pt", "ten", "tb", "msgpack", "mp", "cbor", "pickle", "pyd", "pkl", "bin")
    + ("wav", "flac", "mp3", "ogg", "srt", "vtt", "db", "log")
)


def suffix_of(name: str) -> str:
    """What follows the last dot, or the whole name, in lower case."""
    return name.rpartition(".")[2].lower()


def natural_order(name: str) -> tuple[list[str | tuple[int, str]], str]:
    """Sort key under which `2.jpg` comes before `10.jpg`; equal numbers (`1.jpg`, `01.jpg`) go by the whole name."""
    parts = re.split(r"(\d+)", name)
    # by length and digits: a number of any length can be compared, but not always be made an integer
    digits = [part.lstrip("0") if position % 2 else part for position, part in enumerate(parts)]
    return [(len(part), part) if position % 2 else part for position, part in enumerate(digits)], name
