"""Rounds of stages: the same few stages again and again, each round starting from what the one before has left.

A round's stages are settings like any others, with two more kinds of reference: `this:NAME/part` is an artefact of the
same round, `last:NAME/part` one of the round before, and in the first round what `rounds.first` says. Stage NAME of
round 2 is called NAME_2, so that it can be asked for by name, is kept in the store, and is found there by later runs.
"""

from __future__ import annotations

import re
from collections.abc import Collection
from typing import Any

from mmrlhf.errors import ConfigError
from mmrlhf.trees import map_leaves

_NAME = re.compile(r"(?P<stage>.+)_(?P<round>[1-9]\d*)")


def round_names(stages: Collection[str], number: int) -> list[str]:
    """Names of the stages of `number` rounds, round by round."""
    return [f"{stage}_{turn}" for turn in range(1, number + 1) for stage in stages]


def split_name(name: str, stages: Collection[str]) -> tuple[str, int] | None:
    """(stage, round) of a round's stage; None for the name of any other stage."""
    match = _NAME.fullmatch(name)
    return (match["stage"], int(match["round"])) if match is not None and match["stage"] in stages else None


def in_round(settings: Any, turn: int, *, first: str, stages: Collection[str]) -> Any:
    """Copy a stage's settings with the references of round `turn`.

    Args:
        first: what stands in for the round before the first.

    Raises: ConfigError for a reference to a stage that rounds do not have.
    """
    return map_leaves(settings, lambda leaf: _leaf_in_round(leaf, turn, first, stages))


def _leaf_in_round(leaf: Any, turn: int, first: str, stages: Collection[str]) -> Any:
    if not isinstance(leaf, str) or not leaf.startswith(("this:", "last:")):
        return leaf
    when, _, rest = leaf.partition(":")
    stage, slash, part = rest.partition("/")
    if stage not in stages:
        raise ConfigError(
            "a round has no such stage", where="rounds.stages", given=leaf, expected="one of " + ", ".join(stages)
        )
    if when == "last" and turn == 1:
        return first
    return f"stage:{stage}_{turn if when == 'this' else turn - 1}{slash}{part}"
