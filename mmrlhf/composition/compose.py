"""The words of a command line and the config that they compose, for the command itself and whatever else asks for one.

A folder of the user's own, `--config-dir DIR`, is written as `hydra.searchpath=[settings:///DIR]` before Hydra sees it:
so its files are read as those of conf/ are, it reaches the jobs of a sweep, and commands that are proposed can name it.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from pathlib import Path

import hydra
from hydra.core.global_hydra import GlobalHydra
from omegaconf import DictConfig

from mmrlhf.chain.provenance import SCHEME, SEARCH_PATH, places_in
from mmrlhf.composition.config import CONF
from mmrlhf.errors import ConfigError
from mmrlhf.files import expanded

_OPTIONS = ("--config-dir", "-cd")


def compose(words: Sequence[str], name: str = "config") -> DictConfig:
    """Compose the config that the words of a command line ask for, without running anything.

    Args:
        name: the file of conf/ that it begins with.
    """
    GlobalHydra.instance().clear()
    with hydra.initialize_config_dir(str(CONF), version_base="1.3"):
        return hydra.compose(name, with_search_path(words))


def with_search_path(words: Sequence[str]) -> list[str]:
    """Write the folders of the user's own as a search path that `SettingsSource` reads; settings stand together then.

    Raises:
        ConfigError: a folder that is not there.
    """
    places: list[str] = []
    kept: list[str] = []
    waiting = iter(words)
    for word in waiting:
        option, equals, value = word.partition("=")
        if option in _OPTIONS:
            places.append(_settings_place(value if equals else next(waiting, "")))
        elif found := places_in(word):
            places += [_settings_place(place) if _is_folder(place) else place for place in found]
        else:
            kept.append(word)
    if places:
        kept.insert(next(_settings(kept), len(kept)), f"{SEARCH_PATH}={json.dumps(places)}")
    return _together(kept)


def _together(words: list[str]) -> list[str]:
    """Put settings in front where options stand between them (`seed=1 -m method.w=0,1`), which Hydra cannot read."""
    at = list(_settings(words))
    if not at or at[-1] - at[0] < len(at):
        return words
    return [words[number] for number in at] + [word for number, word in enumerate(words) if number not in at]


def _settings(words: Sequence[str]) -> Iterator[int]:
    return (number for number, word in enumerate(words) if word[:1] == "~" or ("=" in word and word[:1] != "-"))


def config_folders(words: Sequence[str]) -> Iterator[Path]:
    """Yield conf/ and the folders of the user's own that a command reads."""
    yield CONF
    for word in words:
        for place in places_in(word):
            if place.startswith(f"{SCHEME}://"):
                yield Path(place.removeprefix(f"{SCHEME}://"))


def _is_folder(place: str) -> bool:
    return "://" not in place or place.startswith("file://")


def _settings_place(given: str) -> str:
    folder = expanded(given.removeprefix("file://")).absolute()
    if not given or not folder.is_dir():
        raise ConfigError(
            "a folder of configs is not there", where="--config-dir", given=given or "nothing",
            expected="a folder with YAML files, in folders named as those of conf/ (experiment/mine.yaml)",
        )  # fmt: skip
    return f"{SCHEME}://{folder}"
