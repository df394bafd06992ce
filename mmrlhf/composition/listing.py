"""`python run.py settings [WORD ...]`: every setting with its value and what it means.

A setting's explanation is that of the parameter which it becomes: its own, where it stands in an object, else that of
the first parameter that refers to it (`optim.epochs.sft` is read by `epochs` of a Schedule). What no parameter reads is
explained by the comment above it, or above its section, in conf/.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from omegaconf import OmegaConf

from mmrlhf.composition.comments import comment_of, comments
from mmrlhf.composition.compose import compose, config_folders, with_search_path
from mmrlhf.composition.signatures import parameters
from mmrlhf.composition.unread import OBJECTS
from mmrlhf.errors import ConfigError
from mmrlhf.trees import leaves

_REFERENCE = re.compile(r"\$\{([\w.]+)\}")
_SELECTED = re.compile(r"\$\{oc\.select:([\w.]+)")


@dataclass(frozen=True)
class Setting:
    """One setting: its dotted key, its value as the config says it, and what it means ("" where nobody reads it)."""

    key: str
    value: Any
    explanation: str


def list_settings(words: Sequence[str], name: str = "config") -> list[Setting]:
    """List the settings that some words ask for.

    Args:
        words: overrides (`method=dpo`) that say which options are chosen, and beginnings or parts of keys to show
            (`optim`, `lora`); without any of the latter, all settings are shown.
        name: of the file in conf/ that they are settings of.

    Raises: ConfigError for a part that no key has.
    """
    words = with_search_path(words)
    overrides = [word for word in words if "=" in word]
    parts = [word for word in words if "=" not in word]
    config = OmegaConf.to_container(compose(overrides, name), resolve=False)
    written = comments(config_folders(words))
    found = [replace(item, explanation=item.explanation or comment_of(item.key, written)) for item in _settings(config)]
    shown = [item for item in found if not parts or any(part in item.key for part in parts)]
    if not shown:
        raise ConfigError("no setting has this in its name", given=" ".join(parts), fix="python run.py settings")
    return shown


def as_text(settings: Sequence[Setting]) -> str:
    """Lay settings out, one line for the value and one for the explanation."""
    lines = []
    for item in settings:
        lines.append(f"{item.key}={_written(item.value)}")
        if item.explanation:
            lines.append(f"    {item.explanation}")
    return "\n".join(lines)


def _written(value: Any) -> str:
    if value is None:
        return "null"
    return str(value).lower() if isinstance(value, bool) else str(value)


def _settings(config: Any) -> Iterator[Setting]:
    own = dict(_explained(config, ""))
    borrowed: dict[str, str] = {}
    for key, (value, explanation) in own.items():
        for reference in references(value):
            if explanation:
                borrowed.setdefault(reference, explanation)
        del key
    # `inputs.raw: ${data.root}`: what is borrowed is handed on
    for _ in range(3):
        for key, (value, _explanation) in own.items():
            for reference in references(value):
                if key in borrowed:
                    borrowed.setdefault(reference, borrowed[key])
    for key, (value, explanation) in own.items():
        yield Setting(key, value, explanation or borrowed.get(key, ""))


def _explained(node: Any, prefix: str) -> Iterator[tuple[str, tuple[Any, str]]]:
    """(key, (value, own explanation)) of every leaf; an object's parameters have one."""
    target = OBJECTS.get(prefix.rstrip(".")) or node.get("_target_")
    known = (parameters(target) if isinstance(target, str) else None) or {}
    for name, value in node.items():
        if str(name).startswith("_"):
            continue
        key, explanation = f"{prefix}{name}", known[name].explanation if name in known else ""
        if isinstance(value, Mapping) and value and not _is_open(name, known, value):
            yield from _explained(value, f"{key}.")
        else:
            yield key, (value, explanation)


def _is_open(name: Any, known: Mapping[str, Any], value: Mapping[Any, Any]) -> bool:
    """Whether a mapping is one parameter's value, and no part of the config with settings of its own."""
    return name in known and "_target_" not in value


def references(value: Any) -> Iterator[str]:
    """Yield the dotted keys that a value refers to: `${data.root}`, `${oc.select:model.tower,null}`."""
    for leaf in leaves(value):
        if isinstance(leaf, str):
            yield from _REFERENCE.findall(leaf)
            yield from _SELECTED.findall(leaf)
