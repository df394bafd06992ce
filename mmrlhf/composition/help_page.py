"""`python run.py --help`: what can be typed, the groups of conf/ with their options, and the most used settings.

Hydra would make this page too, but composes the config and asks its repository about every folder twice for that, which
takes seconds.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path

import yaml

from mmrlhf.composition.config import CONF

# folders whose files are parts of others
_NO_GROUPS = frozenset({"hydra", "stages", "model/base"})


def asks_for_help(words: Sequence[str]) -> bool:
    """Say whether a command line asks for this page."""
    return "--help" in words or "-h" in words


def help_page() -> str:
    """Write the page from conf/hydra/help_page.yaml and the names of the files in conf/."""
    parts = yaml.safe_load((CONF / "hydra" / "help_page.yaml").read_text(encoding="utf-8"))
    groups = "\n".join(f"  {name}: {', '.join(options)}" for name, options in groups_of(CONF))
    return "\n".join([parts["header"], parts["groups"], groups, "", parts["footer"]])


def groups_of(root: Path, prefix: str = "") -> Iterator[tuple[str, list[str]]]:
    """Yield (group, its options) of a folder of config files, by name."""
    for folder in sorted(item for item in (root / prefix).iterdir() if item.is_dir()):
        name = f"{prefix}{folder.name}"
        if name in _NO_GROUPS:
            continue
        options = sorted(file.stem for file in folder.glob("*.yaml"))
        if options:
            yield name, options
        yield from groups_of(root, f"{name}/")
