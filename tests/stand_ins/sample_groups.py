"""Small groups with real pictures, and a helper that writes raw records."""

from __future__ import annotations

import io
import json
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from PIL import Image

from mmrlhf.types import Media, PreferenceGroup, Response


def picture(width: int = 8, height: int = 6, *, shade: int = 90) -> bytes:
    """Make a small JPEG."""
    stream = io.BytesIO()
    Image.new("RGB", (width, height), (shade, 40, 200)).save(stream, format="JPEG")
    return stream.getvalue()


def make_group(key: str, *, num_responses: int = 3, num_images: int = 1, **fields: Any) -> PreferenceGroup:
    """Make a group of ranked responses with pictures."""
    images = tuple(Media("image", (f"{n}.jpg",), (picture(8 + n, shade=10 + n),)) for n in range(num_images))
    responses = tuple(Response(f"answer {n} of {key}", rank=n + 1) for n in range(num_responses))
    return PreferenceGroup(key, f"question {key}", responses, **{"media": images, "category": "long", **fields})


def write_records(root: Path, name: str, rows: Iterable[Mapping[str, Any] | str]) -> Path:
    """Write rows (or raw lines) as JSON lines below root, and return root."""
    root.mkdir(parents=True, exist_ok=True)
    lines = [row if isinstance(row, str) else json.dumps(row) for row in rows]
    (root / name).write_text("".join(f"{line}\n" for line in lines))
    return root


def write_pictures(root: Path, *paths: str) -> None:
    """Write a picture under each path below root."""
    for number, path in enumerate(paths):
        (root / path).parent.mkdir(parents=True, exist_ok=True)
        (root / path).write_bytes(picture(shade=number))
