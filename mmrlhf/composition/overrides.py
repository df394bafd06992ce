"""Mistakes on the command line, found when Hydra composes the config, as errors that say what is near."""

from __future__ import annotations

import difflib
import re
from collections.abc import Collection, Iterator, Sequence

from hydra.errors import HydraException, MissingConfigException, OverrideParseException
from omegaconf import DictConfig
from omegaconf.errors import OmegaConfBaseException

from mmrlhf.composition.compose import compose, config_folders
from mmrlhf.composition.config import CONF
from mmrlhf.composition.instantiate import mistake_behind
from mmrlhf.errors import ConfigError, UserError

INSTALL_SWEEPS = 'pip install -c constraints.txt -e ".[sweeps]"'
_LIST_ALL = "`python run.py --cfg job` lists all settings, `python run.py --help` all groups"
_MOST_NAMES = 24
# what Hydra reads as null, a truth value, a number or a mapping
_NO_NAME = re.compile(r"null|(?i:true|false|nan|[+-]?inf)|[+-]?[\d.][\d_.eE+-]*|\{.*\}")
_COMPOSING = ("hydra", "omegaconf", "yaml", "antlr4")
# what names of experiments said before `pairs=` and `data.critique=` did
_PARTS_OF_NAMES = {"": (), "_hardest": ("pairs=hardest",), "_no_critique": ("data.critique=none",)}


def explain(error: Exception, overrides: Sequence[str], name: str = "config") -> UserError:
    """Turn what Hydra raised while composing into an error of ours.

    Args:
        error: a HydraException or an OmegaConf error.
        overrides: the words of the command line.
        name: of the file in conf/ that was composed.
    """
    text = str(error).strip()
    mistake = mistake_behind(error)
    if mistake is not None:
        return mistake
    if isinstance(error, OverrideParseException):
        return _unreadable(error.override, text)
    if isinstance(error, MissingConfigException):
        return _unknown_option(error)
    unknown = re.search(r"(?:Could not override|Could not delete from config\.) '([^']+)'", text)
    if unknown is not None:
        return _unknown_setting(unknown[1], overrides, name)
    there = re.search(r"Could not append to config\. An item is already at '([^']+)'", text)
    if there is not None:
        given = next((word for word in overrides if key_of(word) == there[1]), there[1])
        return ConfigError("a setting is there already", given=given, fix=f"leave out the +: {given.lstrip('+')}")
    if "Config group override must be a string or a list" in text:
        return _no_option(overrides)
    several = re.search(r"(?:Ambiguous value for argument|Sweep parameters) '([^']+)'", text)
    if several is not None:
        return ConfigError(
            "a setting has several values, which takes a sweep",
            given=several[1],
            expected="one value, or one job for each value",
            fix="add -m for a sweep; a list is written KEY=[A,B]",
        )
    problem, *rest = text.splitlines() or [type(error).__name__]
    return ConfigError(problem, given=" ".join(rest) or None, fix=_LIST_ALL)


def raised_by_hydra(error: Exception) -> bool:
    """Whether composing the config has failed: for some mistakes Hydra has no error of its own."""
    place = error.__traceback__
    while place is not None and place.tb_next is not None:
        place = place.tb_next
    module = "" if place is None else str(place.tb_frame.f_globals.get("__name__", ""))
    return isinstance(error, HydraException | OmegaConfBaseException) or module.partition(".")[0] in _COMPOSING


def _unreadable(override: str, text: str) -> ConfigError:
    return ConfigError(
        "a word of the command cannot be read",
        given=override,
        expected="KEY=VALUE; quote values with spaces, commas or brackets: 'KEY=\"a, b\"'",
        fix=f"{override} lacks `=`" if "missing EQUAL" in text else None,
    )


def _no_option(overrides: Sequence[str]) -> ConfigError:
    """`rounds=3`, `callbacks=null`: a group's option is the name of a file."""
    of_groups = [word for word in overrides if "=" in word and _is_group(key_of(word), overrides)]
    given = next((word for word in of_groups if _NO_NAME.fullmatch(word.partition("=")[2])), "")
    group = key_of(given)
    options = {file.stem for folder in config_folders(overrides) for file in (folder / group).glob("*.yaml")}
    return ConfigError(
        f"{group} is a group, whose options have names", given=given,
        expected="one of " + ", ".join(f"{group}={name}" for name in sorted(options)),
        fix=f"{group}.NAME=VALUE for one of its settings",
    )  # fmt: skip


def _unknown_option(error: MissingConfigException) -> ConfigError:
    group, _, name = str(error.missing_cfg_file).rpartition("/")
    options = list(error.options or ())
    if group in ("hydra/launcher", "hydra/sweeper"):
        return ConfigError(
            f"the {group.removeprefix('hydra/')} `{name}` is not installed",
            expected="one of " + ", ".join(options),
            fix=INSTALL_SWEEPS,
        )
    near = _near(name, options)
    words = _as_words(name, options) if group == "experiment" else None
    return ConfigError(
        f"there is no {group} `{name}`" if group else f"there is no config `{name}`",
        where=f"conf/{group}" if group else "conf",
        given=f"{group}={name}" if group else name,
        expected="one of " + ", ".join(options) if options else None,
        fix=words or ("did you mean " + " or ".join(f"{group}={item}" for item in near) + "?" if near else None),
    )


def _as_words(name: str, experiments: Collection[str]) -> str | None:
    """Say what used to be an experiment of its own in words: `mmdpo_internvl_hardest`, `reward_gemma3_no_critique`."""
    models = {file.stem: file.stem for file in (CONF / "model").glob("*.yaml")} | {"llava": None}
    for base in ("mmdpo", "dpo", "reward"):
        for model, option in models.items():
            rest = name.removeprefix(f"{base}_{model}")
            if rest != name and rest in _PARTS_OF_NAMES and base in experiments:
                chosen = [f"experiment={base}_llava"] if option is None else [f"experiment={base}", f"model={option}"]
                return f"it is said in words: {' '.join((*chosen, *_PARTS_OF_NAMES[rest]))}"
    return None


def _unknown_setting(key: str, overrides: Sequence[str], name: str) -> ConfigError:
    given = next((word for word in overrides if key_of(word) == key), key)
    known = known_settings(overrides, name)
    folders = [item for folder in config_folders(overrides) for item in folder.iterdir() if item.is_dir()]
    groups = [item.name for item in folders if item.name not in ("hydra", "stages")] if name == "config" else []
    above, _, _ = key.rpartition(".")
    beside = [name for name in known if name.rpartition(".")[0] == above]
    beside = list(dict.fromkeys(beside if above else groups + beside))
    # a part that all names share makes everything look near, so names beside it are compared by their last part
    last = {name.rpartition(".")[2]: name for name in beside}
    near = [last[name] for name in _near(key.rpartition(".")[2], last)] if beside else _near(key, known)
    listed = f"one of {', '.join(beside)}" if 0 < len(beside) <= _MOST_NAMES else None
    return ConfigError(
        f"there is no setting `{key}`",
        given=given,
        expected=listed,
        fix=f"did you mean {' or '.join(near)}?" if near else _LIST_ALL,
    )


def _near(given: str, known: Collection[str]) -> list[str]:
    return difflib.get_close_matches(given, list(known), n=3, cutoff=0.6)


def key_of(word: str) -> str:
    """The dotted name that an override sets."""
    return word.lstrip("+~").partition("=")[0]


def known_settings(overrides: Sequence[str], name: str = "config") -> list[str]:
    """List the dotted names of all settings, as composed with those words of the command that choose an option."""
    places = [word for word in overrides if word.startswith("hydra.searchpath=")]
    choices = [word for word in overrides if _is_group(key_of(word), overrides) and "," not in word]
    for words in ([*choices, *places], places, []):
        try:
            return list(iterate_keys(compose(words, name)))
        except (HydraException, OmegaConfBaseException):
            continue  # one of the choices is a mistake, too
    return []


def _is_group(key: str, overrides: Sequence[str]) -> bool:
    return any((folder / key).is_dir() for folder in config_folders(overrides))


def iterate_keys(config: DictConfig, prefix: str = "") -> Iterator[str]:
    """Yield the dotted name of every setting of a config, without resolving any value."""
    for key in config:
        yield f"{prefix}{key}"
        child = config._get_node(key)
        if isinstance(child, DictConfig) and not child._is_none() and not child._is_interpolation():
            yield from iterate_keys(child, f"{prefix}{key}.")
