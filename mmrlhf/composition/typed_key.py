"""From where a value arrives to the key that the user set: `stages.mmdpo.training.optim.lr` is `optim.mmdpo.lr`."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any

from omegaconf import DictConfig, OmegaConf

from mmrlhf.composition.rounds import split_name
from mmrlhf.errors import UserError
from mmrlhf.trees import flat

_REFERENCE = re.compile(r"\$\{(?:oc\.select:)?([A-Za-z_][\w.]*)[},]")
_MOST_HOPS = 20


@contextmanager
def named_keys(config: DictConfig) -> Iterator[None]:
    """Let errors about arguments name the keys that the user sets."""
    try:
        yield
    except UserError as error:
        raise name_key(error, config) from error.__cause__


def name_key(error: UserError, config: DictConfig) -> UserError:
    """Put the key that the user sets into an error that names an argument; other errors stay as they are."""
    if error.argument is not None:
        error.where = typed_key(config, error.argument)
    return error


@contextmanager
def placed_arguments(settings: Mapping[str, Any], place: str) -> Iterator[None]:
    """Let errors about arguments of a stage, or of an object in its settings, name their keys (`place_argument`)."""
    try:
        yield
    except UserError as error:
        raise place_argument(error, settings, place) from error.__cause__


def place_argument(error: UserError, settings: Mapping[str, Any], place: str) -> UserError:
    """Say which key an argument is that a stage has refused.

    It is the stage's own, or of the one object in its settings that has a parameter of this name; where several have,
    the name stays alone.

    Args:
        settings: of the stage; place: their key, `stages.NAME`.
    """
    name = error.argument
    if name is None or name.startswith(f"{place}."):
        return error
    found = [key for key in flat(settings) if f".{key}".endswith(f".{name}")]
    if name.partition(".")[0] in settings:
        return error.below(place)
    return error.below(f"{place}.{found[0]}".removesuffix(f".{name}")) if len(found) == 1 else error


def typed_key(config: DictConfig, path: str) -> str:
    """Follow interpolations from a dotted path of the composed config back to the key that holds the value.

    A path that leads nowhere is returned as it is.
    """
    parts = path.split(".")
    if len(parts) > 1 and parts[0] == "stages" and parts[1] not in config.stages:
        found = split_name(parts[1], config.rounds.stages)
        parts = ["rounds", "stages", found[0], *parts[2:]] if found is not None else parts
    for _ in range(_MOST_HOPS):
        forward = _forward(config, parts)
        if forward is None:
            return ".".join(parts)
        parts = forward
    return ".".join(parts)


def _forward(config: DictConfig, parts: list[str]) -> list[str] | None:
    """The path that the first interpolation on the way refers to; None where there is none."""
    for depth in range(1, len(parts) + 1):
        above = OmegaConf.select(config, ".".join(parts[: depth - 1])) if depth > 1 else config
        if not isinstance(above, DictConfig) or parts[depth - 1] not in above:
            return None
        if OmegaConf.is_interpolation(above, parts[depth - 1]):
            raw = OmegaConf.to_container(above, resolve=False)
            assert isinstance(raw, dict)
            found = _REFERENCE.findall(str(raw[parts[depth - 1]]))
            return [*found[-1].split("."), *parts[depth:]] if found else None
    return None
