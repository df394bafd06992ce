"""A JSON file in a data folder that says what else lies there: read whole, or known by its name and form."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from mmrlhf.errors import DataError
from mmrlhf.files import read_regular


def read_description(path: Path, what: str, expected: str) -> dict[str, Any]:
    """Read the object in a JSON file.

    Args:
        what: what to call the file in an error.
        expected: what it says, or what a folder with it looks like, for errors.

    Raises:
        DataError: it cannot be read, is not JSON, or holds no object.
    """
    try:
        value = json.loads(read_regular(path, what=what))
    except (ValueError, RecursionError) as error:
        if isinstance(error, DataError):
            raise
        raise DataError(f"{what} is not JSON", where=path, given=str(error), expected=expected) from error
    if not isinstance(value, dict):
        raise DataError(f"{what} has another structure", where=path, given=type(value).__name__, expected=expected)
    return value


def is_described(path: Path, entries: Callable[[Path], Mapping[str, Any]]) -> bool:
    """Say whether there is such a file and `entries`, which reads its folder, finds any in it."""
    try:
        return path.is_file() and bool(entries(path.parent))
    except DataError:
        return False
