"""Where Hydra reads conf/: the files as they are, and before each of them the defaults of the objects it describes.

A file that says `_target_` is read with what it leaves out of the object's parameters. So a setting is said once, in
the signature, and every parameter can be set from the command line by its plain name and is listed by `--cfg job`.
Whatever a file says or inherits wins over a signature's default. A file of conf/ that inherits from its neighbours is
read with all of them as one, because Hydra's time grows with the number of its files. Elsewhere a file may inherit from
other folders, which only Hydra knows: there the signatures' defaults are an entry of their own, `signature-of-NAME`,
first in the defaults list.
"""

from __future__ import annotations

import io
import pickle
import re
from collections.abc import Mapping
from contextlib import suppress
from functools import cache, reduce
from pathlib import Path
from typing import Any

import yaml
from hydra.core.config_search_path import ConfigSearchPath
from hydra.core.object_type import ObjectType
from hydra.core.plugins import Plugins
from hydra.plugins.config_source import ConfigLoadError, ConfigResult, ConfigSource
from hydra.plugins.search_path_plugin import SearchPathPlugin
from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException

from mmrlhf.chain.provenance import SCHEME
from mmrlhf.composition.signatures import Unreadable, parameters
from mmrlhf.errors import ConfigError
from mmrlhf.text import first_line
from mmrlhf.trees import described_objects

_PREFIX = "signature-of-"


class SettingsSource(ConfigSource):
    """A folder of YAML files whose `_target_`s have all their parameters."""

    @staticmethod
    def scheme() -> str:
        """The word before `://` in a search path."""
        return SCHEME

    def load_config(self, config_path: str) -> ConfigResult:
        """Read a file, or what the signatures add to one."""
        group, name = _split(config_path)
        file = self._file(group + name.removeprefix(_PREFIX))
        if not file.is_file():
            raise ConfigLoadError(f"Config not found : {file}")
        if name.startswith(_PREFIX):
            node = pickle.loads(_missing(file))
        elif self._is_whole(file):
            node = pickle.loads(_whole(file))
        else:
            config, _ = _read(file)
            node = _node(file, {**config, "defaults": [_PREFIX + name.removesuffix(".yaml"), *config["defaults"]]})
        return ConfigResult(config=node, path=self.full_path(), provider=self.provider, header=_header(file))

    def available(self) -> bool:
        """Say whether the folder exists."""
        return self.is_group("")

    def is_group(self, config_path: str) -> bool:
        """Say whether there is such a folder."""
        return (Path(self.path) / config_path).is_dir()

    def is_config(self, config_path: str) -> bool:
        """Say whether there is such a file, or signatures that add to it."""
        group, name = _split(config_path)
        file = self._file(group + name.removeprefix(_PREFIX))
        return file.is_file() and not (name.startswith(_PREFIX) and self._is_whole(file))

    def list(self, config_path: str, results_filter: ObjectType | None) -> list[str]:
        """Name the files and folders of a folder."""
        found: list[str] = []
        for entry in (Path(self.path) / config_path).iterdir():
            self._list_add_result(found, str(Path(config_path, entry.name)), entry.name, results_filter)
        return sorted(set(found))

    def _is_whole(self, file: Path) -> bool:
        """Whether a file inherits nothing, or only from neighbours in conf/, which Hydra reads before all others."""
        return not _parents(file) or (self.provider == "main" and _only_neighbours(file))

    def _file(self, config_path: str) -> Path:
        return Path(self.path) / self._normalize_file_name(config_path)


class SettingsSearchPath(SearchPathPlugin):
    """Let folders of YAML files be read by `SettingsSource`."""

    def manipulate_search_path(self, search_path: ConfigSearchPath) -> None:
        """Change the scheme of every folder in place; packages keep theirs."""
        for element in search_path.get_path():
            if element.path is not None and "://" not in element.path:
                element.path = f"{SCHEME}://{Path(element.path).resolve()}"
            elif element.path is not None and element.path.startswith("file://"):
                element.path = f"{SCHEME}://{element.path.removeprefix('file://')}"


def register() -> None:
    """Tell Hydra of both; doing it again changes nothing."""
    for plugin in (SettingsSource, SettingsSearchPath):
        Plugins.instance().register(plugin)


# Hydra puts the nodes that it gets into the config itself, so each config needs its own. Reading a pickled one takes a
# sixth of the time of a deep copy, a tenth of making it.
@cache
def _whole(file: Path) -> bytes:
    """A file with all that it inherits, as Hydra loads it, pickled."""
    return pickle.dumps(_node(file, _with_neighbours(file)), pickle.HIGHEST_PROTOCOL)


@cache
def _missing(file: Path) -> bytes:
    """What the signatures add to a file, as Hydra loads it, pickled."""
    return pickle.dumps(_node(file, _read(file)[1]), pickle.HIGHEST_PROTOCOL)


def _node(file: Path, content: Mapping[str, Any]) -> DictConfig:
    node = OmegaConf.create(dict(content))
    for path in _open_mappings(file):
        mapping = OmegaConf.select(node, path, throw_on_resolution_failure=False)
        if isinstance(mapping, DictConfig):
            OmegaConf.set_struct(mapping, False)
    return node


@cache
def _open_mappings(file: Path) -> tuple[str, ...]:
    """Paths of a file's settings that are mappings of anything (weights, columns): keys are added without `+`.

    So are those that it leaves empty, and the mappings of names to folders among its inputs.
    """
    content = _with_neighbours(file) if _only_neighbours(file) else _read(file)[0]
    of_objects = [
        f"{path}.{name}".lstrip(".")
        for path, node in described_objects(content)
        for name, parameter in (parameters(str(node["_target_"])) or {}).items()
        if re.match(r"(Mapping|dict)\b", parameter.annotation)
    ]
    empty = [name for name, value in content.items() if value == {}]
    inputs = content.get("inputs")
    named = (
        [name for name, value in inputs.items() if isinstance(value, Mapping)] if isinstance(inputs, Mapping) else []
    )
    return (*of_objects, *empty, *(f"inputs.{name}" for name in named))


def _parents(file: Path) -> list[Any]:
    """The entries of a file's defaults list but itself."""
    return [entry for entry in _read(file)[0].get("defaults", []) if entry != "_self_"]


@cache
def _only_neighbours(file: Path) -> bool:
    """Whether all that a file inherits are files of its folder, each as it is or at a place of its own below."""
    parents = [_neighbour(file, entry) for entry in _parents(file)]
    return all(parent is not None and _only_neighbours(parent[0]) for parent in parents)


def _neighbour(file: Path, entry: Any) -> tuple[Path, list[str]] | None:
    """(file beside this one, keys of its place) that `NAME` or `NAME@PLACE` names; None if it is another thing."""
    form = re.fullmatch(r"([\w-]+)(?:@([\w.]+))?", entry) if isinstance(entry, str) else None
    found = file.with_name(f"{form[1]}.yaml") if form else None
    if form is None or found is None or not found.is_file() or _header(found)["package"] is not None:
        return None
    return found, form[2].split(".") if form[2] else []


@cache
def _with_neighbours(file: Path) -> Mapping[str, Any]:
    """What a file says over what it inherits, in the order of its defaults list, over what its signatures add."""
    config, missing = _read(file)
    parts: list[Mapping[str, Any]] = [missing]
    entries = config.get("defaults", [])
    for entry in entries if "_self_" in entries else [*entries, "_self_"]:
        if (neighbour := _neighbour(file, entry)) is not None:
            parent, keys = neighbour
            parts.append(reduce(lambda inner, key: {key: inner}, reversed(keys), _with_neighbours(parent)))
        else:
            parts.append({key: value for key, value in config.items() if key != "defaults"})
    merged = OmegaConf.to_container(OmegaConf.merge(*map(dict, parts)), resolve=False)
    assert isinstance(merged, dict)
    return {str(key): value for key, value in merged.items()}


def _header(file: Path) -> dict[str, str | None]:
    """What a file says of its place in the config in its first lines: `# @package PLACE`."""
    with file.open(encoding="utf-8") as text:
        return ConfigSource._get_header_dict(text.read(512))


def _split(config_path: str) -> tuple[str, str]:
    group, slash, name = config_path.rpartition("/")
    return group + slash, name


@cache
def _read(file: Path) -> tuple[Mapping[str, Any], Mapping[str, Any]]:
    """(content of a file, what the signatures of its `_target_`s add to that), which nobody may change."""
    loaded = OmegaConf.to_container(_load(file), resolve=False)
    assert isinstance(loaded, dict)
    content = {str(key): value for key, value in loaded.items()}
    return content, left_out({key: value for key, value in content.items() if key != "defaults"})


def _load(file: Path) -> DictConfig:
    """Load a file; raises ConfigError, with the place, where it is no YAML, no mapping, or has no list of defaults."""
    try:
        config = OmegaConf.load(io.StringIO(file.read_bytes().decode("utf-8")))
    except UnicodeDecodeError as error:
        raise ConfigError("a config file is not UTF-8", where=file, given=str(error), fix="save it as UTF-8") from error
    except yaml.YAMLError as error:
        mark = getattr(error, "problem_mark", None)
        raise ConfigError(
            "a config file is not YAML",
            where=file if mark is None else f"{file}, line {mark.line + 1}, column {mark.column + 1}",
            given=getattr(error, "problem", None) or first_line(error),
        ) from error
    except (OmegaConfBaseException, OSError, RecursionError) as error:
        raise ConfigError("a config file cannot be read", where=file, given=first_line(error)) from error
    if not isinstance(config, DictConfig):
        raise ConfigError("a config file is no mapping", where=file, expected="KEY: VALUE in each line")
    defaults = OmegaConf.to_container(config, resolve=False).get("defaults", [])  # type: ignore[union-attr]
    wrong = [item for item in defaults if not _is_default(item)] if isinstance(defaults, list) else [defaults]
    if wrong:
        raise ConfigError(
            "a config file's `defaults` cannot be read", where=file, given=wrong[0],
            expected="a list of `_self_`, NAME and GROUP: NAME",
        )  # fmt: skip
    return config


def _is_default(item: object) -> bool:
    """Whether Hydra can read an entry of a defaults list: NAME, GROUP: NAME, GROUP: null, GROUP: [NAME, NAME]."""
    if not isinstance(item, Mapping):
        return isinstance(item, str)
    options = [option for value in item.values() for option in (value if isinstance(value, list) else [value])]
    return len(item) == 1 and all(option is None or isinstance(option, str) for option in options)


def left_out(content: Mapping[str, Any]) -> dict[str, Any]:
    """What a part of the config leaves out of its objects' parameters, as a tree of the same form."""
    found = {
        str(key): inner for key, value in content.items() if isinstance(value, Mapping) and (inner := left_out(value))
    }
    target = content.get("_target_")
    known = parameters(target) if isinstance(target, str) else None
    for name, parameter in (known or {}).items():
        if name not in content and not parameter.is_required:
            # a default that only code knows is left to the code; tests see to it that there is none in this package
            with suppress(Unreadable):
                found[name] = parameter.default()
    return found
