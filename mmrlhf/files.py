"""Paths and addresses, and files that a reader never sees half of."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any


def is_remote(place: object) -> bool:
    """Say whether a place is an address (`https://...`, `s3://...`) and no path."""
    return isinstance(place, str) and "://" in place


def write_json(path: Path, content: Any) -> None:
    """Write JSON so that a reader never sees half of it."""
    part = path.with_name(f"{path.name}.{os.getpid()}.part")
    part.write_text(json.dumps(content, indent=2) + "\n")
    os.replace(part, path)


def short_path(path: Path) -> str:
    """Write a path as a user would type it: relative where it lies below the working directory, absolute elsewhere."""
    path = Path(path).absolute()
    return str(path.relative_to(Path.cwd())) if path.is_relative_to(Path.cwd()) else str(path)
