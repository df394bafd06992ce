"""The objects that settings describe: compared with what their parameters declare, and made.

A user's mistake that a library wrapped in an error of its own comes out as itself, with the key that was set.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from functools import partial
from pkgutil import resolve_name
from typing import Any

from hydra.errors import HydraException
from hydra.utils import instantiate

from mmrlhf.composition.trainer import new_trainer
from mmrlhf.errors import ConfigError, UserError
from mmrlhf.ranges import check_arguments
from mmrlhf.trees import described_objects


def make(settings: Mapping[str, Any], where: str) -> dict[str, Any]:
    """Make the objects that settings describe; raises ConfigError, naming the place, for what cannot be made."""
    for path, node in described_objects(settings):
        try:
            target = resolve_name(str(node["_target_"]))
        except (ImportError, AttributeError, ValueError):
            continue  # what cannot be found is said when it is made
        check_declared(target, node, f"{where}.{path}")
    with causes(where):
        return instantiate(dict(settings), _convert_="all")


def make_runtime(settings: Mapping[str, Any]) -> dict[str, Any]:
    """Make what the settings of the Runtime describe; Lightning, seconds to import, waits for who makes the Trainer."""
    trainer = {name: value for name, value in settings["trainer"].items() if not str(name).startswith("_")}
    made = make({**settings, "trainer": trainer}, "runtime")
    return {**made, "trainer": partial(new_trainer, **made["trainer"])}


def check_declared(target: Callable[..., Any], settings: Mapping[str, Any], where: str) -> None:
    """Compare the settings of an object or stage with what its parameters declare; raises ConfigError with the key."""
    given = {name: value for name, value in settings.items() if not described_in(value)}
    try:
        check_arguments(target, given)
    except UserError as error:
        raise error.below(where.strip(".")) from error.__cause__


def described_in(value: Any) -> bool:
    """Whether a setting describes an object that is still to be made."""
    return next(described_objects(value), None) is not None


@contextmanager
def causes(where: str) -> Iterator[None]:
    """Let a user's mistake through as itself: Hydra wraps what a constructor raises."""
    try:
        yield
    except HydraException as error:
        mistake = mistake_behind(error)
        if mistake is not None:
            inside = re.search(r"full_key: (\S+)", str(error))
            raise mistake.below(f"{where}.{inside[1]}" if inside else where) from mistake.__cause__
        problem, _, rest = str(error).partition("\n")
        raise ConfigError(problem, where=where, given=rest.replace("\n", " ") or None) from error


def mistake_behind(error: BaseException | None) -> UserError | None:
    """Find the user's mistake that a library wrapped in an error of its own."""
    while error is not None and not isinstance(error, UserError):
        error = error.__cause__ or error.__context__
    return error
