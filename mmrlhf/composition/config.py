"""Reading the composed Hydra config: plain settings of stages and of the runtime, and what its `${...}` stand for."""

from __future__ import annotations

import re
import secrets
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from hydra.core.hydra_config import HydraConfig
from hydra.types import RunMode
from hydra.utils import instantiate
from omegaconf import DictConfig, ListConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException

from mmrlhf.chain.order import suggestion
from mmrlhf.chain.store import CodePolicy
from mmrlhf.composition import source
from mmrlhf.composition.instantiate import causes, mistake_behind
from mmrlhf.composition.rounds import in_round, round_names, split_name
from mmrlhf.errors import ConfigError
from mmrlhf.files import expanded, is_remote
from mmrlhf.text import first_line

_PACKAGE = Path(__file__).resolve().parents[1]
# inside the package where that was installed, beside it in a checkout
CONF = next(folder for folder in (_PACKAGE / "conf", _PACKAGE.parent / "conf") if folder.is_dir())
source.register()
OmegaConf.register_new_resolver("if_needed", lambda *given, _root_: if_needed(*given, _root_=_root_), replace=True)
# `${each_round:evaluate}`: the artefacts of a stage in every round, first round first
OmegaConf.register_new_resolver(
    "each_round",
    lambda stage, _root_: [f"stage:{name}" for name in round_names([stage], num_rounds(_root_))],
    replace=True,
)
# a stage's artefact fits what is made from it by construction; only a path of the user's can be another one
OmegaConf.register_new_resolver(
    "if_own", lambda value: None if str(value).startswith("stage:") else value, replace=True
)
# SLURM tasks of a machine: torchrun starts the processes of one machine, srun those of several
OmegaConf.register_new_resolver(
    "slurm_tasks", lambda num_nodes, devices: 1 if int(num_nodes) == 1 else int(devices), replace=True
)
# where a run's folder is made, before anything of ours is asked
OmegaConf.register_new_resolver("local_folder", lambda value: str(local_folder(value, "paths.outputs")), replace=True)
# of this command, so that two that start in one second have folders of their own; cached: one for the whole command
OmegaConf.register_new_resolver("unique", lambda: secrets.token_hex(3), use_cache=True, replace=True)
OmegaConf.register_new_resolver("run_name", lambda name: run_name(name), replace=True)
OmegaConf.register_new_resolver("run_group", lambda name: run_group(name), replace=True)
OmegaConf.register_new_resolver("run_choices", lambda: run_choices(), replace=True)


def run_name(name: str) -> str:
    """Resolve `${run_name:NAME}`: NAME, with the number of a sweep's job."""
    return f"{name} #{HydraConfig.get().job.num}" if _in_sweep() else name


def run_group(name: str) -> str:
    """Resolve `${run_group:NAME}`: NAME, with the date and time of the sweep that the job belongs to."""
    return " ".join((name, *Path(HydraConfig.get().sweep.dir).parts[-2:])) if _in_sweep() else name


def run_choices() -> dict[str, str]:
    """Resolve `${run_choices:}`: the option that each config group was set to; empty outside a run of the app."""
    if not HydraConfig.initialized():
        return {}
    choices = HydraConfig.get().runtime.choices
    return {group: str(option) for group, option in choices.items() if "/" not in group and "@" not in group}


def _in_sweep() -> bool:
    return HydraConfig.initialized() and HydraConfig.get().mode == RunMode.MULTIRUN


def section(config: DictConfig, key: str) -> DictConfig:
    """A part of the config that holds settings of its own; raises ConfigError where something else was put there."""
    found = OmegaConf.select(config, key)
    if not isinstance(found, DictConfig):
        raise ConfigError(
            "settings cannot be replaced as a whole",
            where=key, given="null" if found is None else found, expected=f"{key}.NAME=VALUE for one of them",
        )  # fmt: skip
    return found


def read_switch(config: DictConfig, key: str) -> bool:
    """Read a truth value; raises ConfigError for anything else, which Python would take for one."""
    value = OmegaConf.select(config, key)
    if not isinstance(value, bool):
        raise ConfigError(f"{key} cannot be this", where=key, given=value, expected="true or false")
    return value


def local_folder(value: Any, key: str) -> Path:
    """A folder of this machine that files are written to.

    Args:
        key: the setting that says it.

    Raises:
        ConfigError: it is no path, an address, or a file stands there or above.
    """
    expected = "a folder of this machine, which is made where there is none"
    if not isinstance(value, str | int) or isinstance(value, bool) or not str(value).strip() or "\0" in str(value):
        raise ConfigError("not a folder", where=key, given="null" if value is None else value, expected=expected)
    if is_remote(value):
        raise ConfigError(
            "a run cannot write to an address", where=key, given=value, expected=expected,
            fix="mount it, or copy the results there afterwards; shards can be read from addresses",
        )  # fmt: skip
    folder = expanded(str(value))
    above = next((place for place in (folder, *folder.parents) if place.exists() or place.is_symlink()), None)
    if above is not None and not above.is_dir():
        raise ConfigError("a file stands where a folder is wanted", where=key, given=above, expected=expected)
    return folder


def read_folder(config: DictConfig, key: str) -> Path:
    """Read a setting that says where files are written; raises ConfigError where none could be."""
    return local_folder(OmegaConf.select(config, key), key)


def read_stage(config: DictConfig, name: str) -> dict[str, Any]:
    """Resolve the settings of one stage; raises ConfigError for a value that the user still has to give."""
    stages = config.rounds.stages
    found = split_name(name, stages)
    if found is None:
        return plain_settings(section(config, f"stages.{name}"), f"stages.{name}")
    stage, turn = found
    settings = plain_settings(section(config, f"rounds.stages.{stage}"), f"rounds.stages.{stage}")
    return in_round(settings, turn, first=str(config.rounds.first), stages=list(stages))


def stage_names(config: DictConfig) -> list[str]:
    """Name all stages, those of rounds included."""
    of_rounds = round_names([str(name) for name in section(config, "rounds.stages")], num_rounds(config))
    return [*map(str, section(config, "stages")), *of_rounds]


def num_rounds(config: DictConfig) -> int:
    """Read how many rounds there are; raises ConfigError for what is no number of them."""
    number = section(config, "rounds").number
    if not isinstance(number, int) or isinstance(number, bool) or number < 0:
        raise ConfigError("not a number of rounds", where="rounds.number", given=number, expected="0, 1, 2, ...")
    return number


def distributed_names(config: DictConfig) -> list[str]:
    """Name the stages that run on all devices, those of rounds included; raises ConfigError for what is no stage."""
    given = list(config.distributed) if isinstance(config.distributed, ListConfig) else config.distributed
    known = [*stage_names(config), *config.rounds.stages]
    unknown = [name for name in given if name not in known] if isinstance(given, list) else given
    if not isinstance(given, list) or unknown:
        raise ConfigError(
            "not a list of stages", where="distributed", given="null" if unknown is None else unknown,
            expected="[NAME, ...]; [] for none",
            fix=suggestion(str(unknown[0]), known) if isinstance(unknown, list) else None,
        )  # fmt: skip
    shared = [stage for stage in config.rounds.stages if stage in given]
    return [*given, *round_names(shared, num_rounds(config))]


def read_runtime(config: DictConfig) -> dict[str, Any]:
    """Resolve the settings of the Runtime; callbacks are named in the config and a list afterwards."""
    runtime = plain_settings(section(config, "runtime"), "runtime")
    for name in ("trainer", "callbacks"):
        if not isinstance(runtime.get(name) or {}, Mapping):
            section(config, f"runtime.{name}")
    runtime["callbacks"] = [item for item in (runtime.get("callbacks") or {}).values() if item is not None]
    return runtime


def read_code_policy(config: DictConfig) -> CodePolicy:
    """Read what happens where only our code is another than an artefact's; raises ConfigError for another word."""
    if config.code not in ("rebuild", "warn", "ignore"):
        raise ConfigError("not a way to treat changed code", where="code", given=config.code,
                          expected="rebuild, warn or ignore")  # fmt: skip
    return config.code


def user_inputs(config: DictConfig) -> frozenset[str]:
    """Collect the inputs that are the user's own: paths and hub ids, not names of stages."""
    found = set()
    for key in section(config, "inputs"):
        # an input that this chain does not need may still be open
        value = None if is_open(config, key) else config.inputs[key]
        values = value.values() if isinstance(value, Mapping) else [value]
        found.update(text for text in values if isinstance(text, str) and not text.startswith("stage:"))
    return frozenset(found) | _places_of_responders(config)


def _places_of_responders(config: DictConfig) -> frozenset[str]:
    """Checkpoints and folders of batches that are there: what they hold counts as an input's content does."""
    responders = OmegaConf.select(config, "responders", default={})
    of_kinds = {"local": "model", "batch": "folder"}
    named = [each for each in responders.values() if isinstance(each, Mapping)]
    found = [each.get(of_kinds.get(str(each.get("kind")), "")) for each in named]
    return frozenset(text for text in found if isinstance(text, str) and expanded(text).exists())


def is_open(config: DictConfig, key: Any) -> bool:
    """Say whether an input has no value that could be used."""
    try:
        return OmegaConf.is_missing(config.inputs, key) or config.inputs[key] is None
    except OmegaConfBaseException:
        return True


def if_needed(need: str, value: Any, otherwise: Any = None, *, _root_: DictConfig) -> Any:
    """Resolve `${if_needed:needs_margin,VALUE,OTHERWISE}`: VALUE if the objective, or the choice of pairs, needs it.

    So `method=dpo` neither trains a reward model for margins nor scores anything with it.
    """
    with causes("method, pairs"):
        needed = [getattr(instantiate(node), need, False) for node in (_root_.method, _root_.pairs)]
        return value if any(needed) else otherwise


def plain_settings(node: DictConfig, where: str) -> dict[str, Any]:
    """Resolve a part of the config to plain values; raises ConfigError, naming the setting, where that cannot be."""
    try:
        content = OmegaConf.to_container(node, resolve=True, throw_on_missing=True)
    except OmegaConfBaseException as error:
        mistake = mistake_behind(error)
        if mistake is not None:
            raise mistake from mistake.__cause__
        raise _open_value(error, where) from error
    assert isinstance(content, dict)
    return {str(key): value for key, value in content.items()}


def _open_value(error: OmegaConfBaseException, where: str) -> ConfigError:
    message = first_line(error)
    missing = re.search(r"[Mm]issing mandatory value:? ?'?([\w.]+)", message)
    if missing is None:
        return ConfigError("a setting refers to something that is not there", where=where, given=message)
    key = missing[1] if "." in missing[1] or "interpolation" in message else error.full_key or missing[1]
    return ConfigError(
        "a setting has no value yet", where=key, expected="a value from you", fix=f"add {key}=... to the command"
    )
