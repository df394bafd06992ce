"""Ids for rows of benchmarks that have none."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from typing import Any


def row_id(row: Mapping[str, Any], *names: str) -> str:
    """The row's own id; where it has none, 16 hex digits of what these fields say, media by what they hold."""
    if row.get("id") is not None:
        return str(row["id"])
    said = [row.get(name) for name in names]
    return hashlib.sha256(json.dumps(said, default=str).encode()).hexdigest()[:16]
