"""What made a result: library versions and the commit of the code."""

from __future__ import annotations

import json
import platform
import shlex
import subprocess
import sys
from collections.abc import Sequence
from importlib import metadata
from pathlib import Path
from typing import Any

from mmrlhf.files import hide_credentials

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


def typed_command() -> str:
    """The command that this process was started with, quoted for a shell; without passwords in addresses."""
    program, *words = sys.argv
    name = Path(program).name
    if name == "__main__.py":
        start = ["python", "-m", Path(program).parent.name]
    else:
        start = ["python", program] if name.endswith(".py") else [name]
    return hide_credentials(shlex.join([*start, *words]))


def job_command(overrides: Sequence[str]) -> str:
    """The command that runs one job of a sweep by itself."""
    return hide_credentials(shlex.join(["python", "run.py", *overrides]))


def reproduction(command: str) -> list[str]:
    """Lines for a shell that make a result again: the commit, whether it was edited since, and the command."""
    git = git_commit()
    lines = [f"git checkout {git['commit']}"] if git["commit"] else []
    if git["edited"]:
        lines.append("# the code had uncommitted edits")
    return [*lines, command]


def git_commit(file: Path = Path(__file__)) -> dict[str, Any]:
    """Say which commit the code is at and whether it was edited since.

    Of an installed package, the commit is known where pip installed it from a git address; else it is None, also where
    the folder that it was installed into lies in somebody's repository.

    Args:
        file: a file of the code.
    """
    root = file.resolve().parent
    if _git(root, "ls-files", "--error-unmatch", file.name) is None:
        return {"commit": _installed_commit(), "edited": None}
    status = _git(root, "status", "--porcelain", "--untracked-files=no")
    return {"commit": _git(root, "rev-parse", "HEAD"), "edited": bool(status)}


def _installed_commit() -> str | None:
    try:
        note = metadata.distribution("mmrlhf").read_text("direct_url.json")
    except metadata.PackageNotFoundError:
        return None
    return json.loads(note or "{}").get("vcs_info", {}).get("commit_id")


def _git(root: Path, *arguments: str) -> str | None:
    command = ["git", "-C", str(root), *arguments]
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=20, check=False)
    except (OSError, subprocess.TimeoutExpired):
        return None
    return done.stdout.strip() if done.returncode == 0 else None
