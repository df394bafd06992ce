"""What a job of a sweep leaves in its folder."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path


def make_job(folder: Path, overrides: Mapping[str, object], quality: float | None, *, reused: bool = False) -> None:
    """Write what a job leaves; no quality: it was killed."""
    (folder / ".hydra").mkdir(parents=True)
    lines = "".join(f"- {key}={value}\n" for key, value in overrides.items())
    (folder / ".hydra" / "overrides.yaml").write_text(lines)
    if quality is not None:
        numbers = {"mean": quality, "low": quality - 0.1, "high": quality + 0.2}
        (folder / "metrics.json").write_text(json.dumps({"evaluate": {"quality": numbers, "done": True, "text": "a"}}))
        (folder / "stages.json").write_text(json.dumps({"pack": {"reused": True}, "mmdpo": {"reused": reused}}))
