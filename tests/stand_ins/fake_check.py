"""A stage that runs anew each time, for tests of the runner."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

REUSABLE = False


def run(out: Path, *, data: Path, runtime: Any) -> Mapping[str, Any]:
    """Say what is there."""
    return {"letters": len((data / "data.txt").read_text())}
