"""Settings that nothing reads: a key that was added with `+`, or in a file, and is no setting of anything.

A key is read if it is a parameter of the object that it stands in, if the config refers to it (`${data.root}`), or if
the command itself reads it. So a key of your own is legal where something refers to it, and callbacks, stages, swept
numbers and whatever else has a name of its choice can be added.
"""

from __future__ import annotations

import difflib
import inspect
import re
from collections.abc import Collection, Iterator, Mapping
from functools import cache
from pkgutil import resolve_name
from typing import Any

import yaml
from omegaconf import DictConfig, OmegaConf

from mmrlhf.composition.config import CONF
from mmrlhf.composition.signatures import GIVEN_BY_RUNNER, parameters
from mmrlhf.errors import ConfigError
from mmrlhf.trees import described_objects

# what the command reads beside what conf/config.yaml says itself and what it makes objects of
_READ_BY_COMMAND = frozenset({"rounds.number", "rounds.first", "paths.artifacts", "hydra"})
# sections whose keys are names that anyone may choose
_OPEN = frozenset({"stages", "rounds.stages", "callbacks", "sweep_metrics", "inputs.mixture"})
# parts of conf/config.yaml that are checked like any other
_SECTIONS_WITH_READERS = frozenset({"defaults", "inputs", "runtime", "logger"})
# open sections of objects: what stands there without a `_target_` is a name misspelt
_OF_OBJECTS = frozenset({"stages", "rounds.stages", "callbacks"})
# a section that the command makes an object of
OBJECTS = {"runtime": "mmrlhf.chain.runtime.Runtime"}
# what `instantiate` itself reads
_SPECIAL = re.compile(r"_\w+_")
_REFERENCE = re.compile(r"\$\{(?:oc\.select:)?([A-Za-z_][\w.]*)[},]")


def check_read(config: DictConfig) -> None:
    """Raise ConfigError, with a suggestion, for the first key of a composed config that nothing reads."""
    content: Any = OmegaConf.to_container(config, resolve=False)
    known = references_in(str(content)) | _references_in_files()
    for key, near in _unread(content, "", known):
        raise ConfigError(
            "nothing reads this setting",
            where=key,
            given=f"+{key}=...",
            expected="a parameter of what it stands in, or a key that another setting refers to",
            fix=near or f"`python run.py settings {key.rpartition('.')[0]}".rstrip() + "` lists the settings there",
        )


def references_in(text: str) -> frozenset[str]:
    """Dotted keys that interpolations in a text refer to."""
    return frozenset(_REFERENCE.findall(text))


@cache
def _references_in_files() -> frozenset[str]:
    """Keys that files refer to, which mean something whatever a command sets, and what conf/config.yaml says itself."""
    texts = [file.read_text(encoding="utf-8") for file in CONF.rglob("*.yaml")]
    own = yaml.safe_load((CONF / "config.yaml").read_text(encoding="utf-8"))
    sections = {name: value for name, value in own.items() if name not in _SECTIONS_WITH_READERS}
    read = {f"{name}.{key}" for name, value in sections.items() if isinstance(value, Mapping) for key in value}
    read |= {name for name, value in sections.items() if not isinstance(value, Mapping)}
    return frozenset(read).union(*map(references_in, texts))


def _unread(node: Mapping[str, Any], path: str, known: Collection[str]) -> Iterator[tuple[str, str | None]]:
    """Yield (key, suggestion) of what nothing reads in a section or an object, outer ones first."""
    target = OBJECTS.get(path) or node.get("_target_")
    if isinstance(target, str):
        yield from _unread_of_object(node, path, target, known)
        return
    for name, value in node.items():
        key = f"{path}.{name}".lstrip(".")
        is_object = isinstance(value, Mapping) and "_target_" in value
        if path in _OF_OBJECTS and value is not None and not is_object:
            yield key, _suggest(key, [f"{path}.{other}" for other in node if other != name])
        elif path not in _OPEN and not _is_read(key, value, known):
            yield key, _suggest(key, [*known, *_READ_BY_COMMAND, *_OPEN, *OBJECTS])
        elif isinstance(value, Mapping) and (is_object or (path not in _OPEN and _has_parts(key, known))):
            yield from _unread(value, key, known)


def _is_read(key: str, value: Any, known: Collection[str]) -> bool:
    if key in known or key in _READ_BY_COMMAND or key in _OPEN or key in OBJECTS:
        return True
    inner = (*known, *_READ_BY_COMMAND, *_OPEN)
    return isinstance(value, Mapping) and any(other.startswith(f"{key}.") for other in inner)


def _has_parts(key: str, known: Collection[str]) -> bool:
    """Whether keys inside of a section mean something one by one; not where only the whole is referred to."""
    return key not in known or key in _OPEN or any(other.startswith(f"{key}.") for other in known)


def _unread_of_object(
    node: Mapping[str, Any], path: str, target: str, known: Collection[str]
) -> Iterator[tuple[str, str | None]]:
    # What the package's own files give a library's object is right, and asking its class would import it in every run.
    given = _keys_in_files().get(target, frozenset())
    accepted = None if node.keys() <= given else _accepted(target)
    for name, value in node.items():
        if accepted is not None and name not in (*accepted, *given) and not _SPECIAL.fullmatch(str(name)):
            near = difflib.get_close_matches(str(name), accepted, n=3, cutoff=0.6)
            yield f"{path}.{name}", f"did you mean {' or '.join(f'{path}.{item}' for item in near)}?" if near else None
        elif (
            accepted is not None
            and isinstance(value, Mapping)
            and "_target_" not in value
            and _wants_object(target, name)
        ):
            yield f"{path}.{name}", "it takes the place of an object: set the key that this setting refers to"
    for inner, item in described_objects({name: value for name, value in node.items()}):
        if inner:
            yield from _unread_of_object(item, f"{path}.{inner}", str(item["_target_"]), known)


@cache
def _keys_in_files() -> dict[str, frozenset[str]]:
    """What the package's files give the objects of libraries, whose signatures are not read but imported."""
    keys: dict[str, frozenset[str]] = {}
    for file in CONF.rglob("*.yaml"):
        for _, node in described_objects(yaml.safe_load(file.read_text(encoding="utf-8")) or {}):
            target = str(node["_target_"])
            if parameters(target) is None:
                keys[target] = keys.get(target, frozenset()) | node.keys()
    return keys


@cache
def _accepted(target: str) -> tuple[str, ...] | None:
    """Names of a target's parameters; None where it takes any, or is nothing that can be found (said elsewhere)."""
    known = parameters(target)
    if known is not None:
        return tuple(known)
    try:
        found = inspect.signature(resolve_name(target)).parameters
    except Exception:  # whatever importing code of the user's raises is raised again, and shown, when it is used
        return None
    if any(parameter.kind is parameter.VAR_KEYWORD for parameter in found.values()):
        return None
    return tuple(name for name in found if name not in GIVEN_BY_RUNNER)


def _wants_object(target: str, name: str) -> bool:
    """Whether a parameter is annotated with a settings class, which a bare mapping cannot be."""
    parameter = (parameters(target) or {}).get(name)
    return (
        parameter is not None
        and re.match(r"[A-Z]\w*(Settings|Schedule|Selection|Mixing|Scheme|Size)\b", parameter.annotation) is not None
    )


def _suggest(key: str, known: Collection[str]) -> str | None:
    whole = {other for full in known for other in _beginnings(full)}
    near = difflib.get_close_matches(key, sorted(whole), n=3, cutoff=0.75)
    return f"did you mean {' or '.join(near)}?" if near else None


def _beginnings(key: str) -> Iterator[str]:
    parts = key.split(".")
    return (".".join(parts[:number]) for number in range(1, len(parts) + 1))
