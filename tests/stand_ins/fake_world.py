"""A stage module with a `check` beside its `run`, as real stages may have."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from stand_ins.fake_stages import count

from mmrlhf.errors import DataError


def check(*, root: Path | None = None, size: int = 1) -> None:
    """Refuse what cannot work before anything runs."""
    if size < 0:
        raise DataError("negative size", where="fake.size", given=size)


def run(out: Path, *, root: Path | None = None, size: int = 1, runtime: Any) -> dict[str, Any]:
    """Write `size` letters; counts how often it ran."""
    count(out)
    (out / "data.txt").write_text("x" * size)
    return {"size": size}
