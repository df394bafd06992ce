"""What is proposed when a run is done: its own words again, with what comes next behind them."""

from __future__ import annotations

import shlex
from collections.abc import Mapping, Sequence

from omegaconf import DictConfig, OmegaConf

from mmrlhf.composition.overrides import key_of

# where a run went and what it was called belong to that run
_OF_ONE_RUN = ("stage", "plan", "name", "next", "hydra")


def propose(
    config: DictConfig,
    words: Sequence[str],
    *,
    program: Sequence[str] = ("python", "run.py"),
    folders: Sequence[str] = (),
) -> list[str]:
    """Commands for a run that was made with these words, by the stage that it ended with (`next` of the config).

    A setting that is proposed takes the place of the same one among the words; a command with a setting that this run
    does not have (another method has no `w`) is left out.

    Args:
        program: what a command begins with.
        folders: words that say where configs of the user's own are.
    """
    proposed: Mapping[str, Sequence[str]] = OmegaConf.to_container(config.next)  # type: ignore[assignment]
    commands = []
    for line in proposed.get(str(config.stage)) or ():
        options = [word for word in shlex.split(line) if word.startswith("-")]
        added = [word for word in shlex.split(line) if not word.startswith("-")]
        keys = [key_of(word) for word in added]
        if all(OmegaConf.select(config, key) is not None for key in keys if "." in key):
            kept = [
                w for w in words if "=" in w and key_of(w).split(".")[0] not in _OF_ONE_RUN and key_of(w) not in keys
            ]
            commands.append(shlex.join([*program, *folders, *options, *kept, *added]))
    return commands
