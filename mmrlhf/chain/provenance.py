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

import yaml

from mmrlhf.chain.code import PACKAGE
from mmrlhf.chain.launch import PROJECT
from mmrlhf.files import hide_credentials, short_path

# how Hydra is told of further folders of configs, and of those that are read as conf/ is
SEARCH_PATH, SCHEME = "hydra.searchpath", "settings"
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


def program() -> list[str]:
    """How this command was started: `mmrlhf`, `python -m mmrlhf`, or `python` with a path to run.py.

    A launcher's process, which runs a job of a sweep, was started otherwise; there it is what works in this checkout or
    installation.
    """
    started = Path(sys.argv[0])
    if started.name == "__main__.py" and started.parent.name == PACKAGE:
        return ["python", "-m", started.parent.name]
    if started.name == "run.py":
        return ["python", sys.argv[0]]
    return [PACKAGE] if started.name == PACKAGE or not (PROJECT / "run.py").is_file() else ["python", "run.py"]


def command_line(words: Sequence[str]) -> str:
    """The command with these words, quoted for a shell; without passwords in addresses."""
    return hide_credentials(shlex.join([*program(), *words]))


def typed_command() -> str:
    """The command that this process was started with."""
    return command_line(as_typed(sys.argv[1:]))


def as_started(text: str) -> str:
    """A text whose commands begin as this process was started, in place of `python run.py`."""
    return text.replace("python run.py", shlex.join(program()))


def as_typed(words: Sequence[str]) -> list[str]:
    """Words as a user types them: folders of configs of one's own with `--config-dir`, in front."""
    folders, kept = [], []
    for word in words:
        found = places_in(word)
        own = [place for place in found if place.startswith(f"{SCHEME}://")]
        for place in own:
            folders += ["--config-dir", short_path(Path(place.removeprefix(f"{SCHEME}://")))]
        others = [place for place in found if place not in own]
        kept += [f"{SEARCH_PATH}={json.dumps(others)}"] if others else [] if found else [word]
    return [*folders, *kept]


def places_in(word: str) -> list[str]:
    """The places of a word that says the search path; none of any other word, and where it is no list of texts."""
    key, _, value = word.partition("=")
    try:
        found = yaml.safe_load(value) if key == SEARCH_PATH else None
    except yaml.YAMLError:
        return []
    return found if isinstance(found, list) and all(isinstance(place, str) for place in found) else []


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
