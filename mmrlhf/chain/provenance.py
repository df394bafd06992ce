"""What made a result: library versions and the commit of the code."""

from __future__ import annotations

import platform
import subprocess
from importlib import metadata
from pathlib import Path
from typing import Any

PACKAGES = (
    "mmrlhf",
    "torch",
    "torchvision",
    "lightning",
    "transformers",
    "peft",
    "hydra-core",
    "omegaconf",
    "torchmetrics",
    "webdataset",
    "decord",
    "av",
    "wandb",
    "numpy",
    "pillow",
    "pyarrow",
)


def versions() -> dict[str, str | None]:
    """List the versions of Python and of the packages that results depend on (None: not installed)."""
    found: dict[str, str | None] = {"python": platform.python_version()}
    for package in PACKAGES:
        try:
            found[package] = metadata.version(package)
        except metadata.PackageNotFoundError:
            found[package] = None
    return found


def git_commit() -> dict[str, Any]:
    """Say which commit the code is at and whether it was edited since; commit None outside a git checkout."""
    root = Path(__file__).resolve().parents[2]
    commit = _git(root, "rev-parse", "HEAD")
    status = _git(root, "status", "--porcelain", "--untracked-files=no") if commit else None
    return {"commit": commit, "edited": bool(status) if commit else None}


def _git(root: Path, *arguments: str) -> str | None:
    command = ["git", "-C", str(root), *arguments]
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=20, check=False)
    except (OSError, subprocess.TimeoutExpired):
        return None
    return done.stdout.strip() if done.returncode == 0 else None
