"""Reading the composed Hydra config: plain settings of stages and of the runtime, and the objects made of them."""

from __future__ import annotations

import re
import secrets
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from pkgutil import resolve_name
from typing import Any

from hydra.core.hydra_config import HydraConfig
from hydra.errors import HydraException
from hydra.types import RunMode
from hydra.utils import instantiate
from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException

from mmrlhf.chain.store import CodePolicy
from mmrlhf.composition import source
from mmrlhf.composition.rounds import in_round, round_names, split_name
from mmrlhf.errors import ConfigError, UserError
from mmrlhf.ranges import check_arguments
from mmrlhf.text import first_line
from mmrlhf.trees import described_objects

_PACKAGE = Path(__file__).resolve().parents[1]
# inside the package where that was installed, beside it in a checkout
CONF = next(folder for folder in (_PACKAGE / "conf", _PACKAGE.parent / "conf") if folder.is_dir())
source.register()
OmegaConf.register_new_resolver("if_needed", lambda *given, _root_: if_needed(*given, _root_=_root_), replace=True)
# `${each_round:evaluate}`: the artefacts of a stage in every round, first round first
OmegaConf.register_new_resolver(
    "each_round",
    lambda stage, _root_: [f"stage:{name}" for name in round_names([stage], _root_.rounds.number)],
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


def read_stage(config: DictConfig, name: str) -> dict[str, Any]:
    """Resolve the settings of one stage; raises ConfigError for a value that the user still has to give."""
    stages = config.rounds.stages
    found = split_name(name, stages)
    if found is None:
        return plain_settings(config.stages[name], f"stages.{name}")
    stage, turn = found
    settings = plain_settings(stages[stage], f"rounds.stages.{stage}")
    return in_round(settings, turn, first=str(config.rounds.first), stages=list(stages))


def stage_names(config: DictConfig) -> list[str]:
    """Name all stages, those of rounds included."""
    return [*config.stages, *round_names(list(config.rounds.stages), config.rounds.number)]


def distributed_names(config: DictConfig) -> list[str]:
    """Name the stages that run on all devices, those of rounds included."""
    shared = [stage for stage in config.rounds.stages if stage in config.distributed]
    return [*config.distributed, *round_names(shared, config.rounds.number)]


def read_runtime(config: DictConfig) -> dict[str, Any]:
    """Resolve the settings of the Runtime; callbacks are named in the config and a list afterwards."""
    runtime = plain_settings(config.runtime, "runtime")
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
    for key in config.inputs:
        # an input that this chain does not need may still be open
        value = None if is_open(config, key) else config.inputs[key]
        values = value.values() if isinstance(value, Mapping) else [value]
        found.update(text for text in values if isinstance(text, str) and not text.startswith("stage:"))
    return frozenset(found)


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
        mistake = _mistake_behind(error)
        if mistake is not None:
            raise mistake from None
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


def check_declared(target: Callable[..., Any], settings: Mapping[str, Any], where: str) -> None:
    """Compare the settings of an object or stage with what its parameters declare; raises ConfigError with the key."""
    given = {name: value for name, value in settings.items() if not described_in(value)}
    try:
        check_arguments(target, given)
    except UserError as error:
        raise error.below(where.strip(".")) from None


def described_in(value: Any) -> bool:
    """Whether a setting describes an object that is still to be made."""
    return next(described_objects(value), None) is not None


@contextmanager
def causes(where: str) -> Iterator[None]:
    """Let a user's mistake through as itself: Hydra wraps what a constructor raises."""
    try:
        yield
    except HydraException as error:
        mistake = _mistake_behind(error)
        if mistake is not None:
            inside = re.search(r"full_key: (\S+)", str(error))
            raise mistake.below(f"{where}.{inside[1]}" if inside else where) from None
        problem, _, rest = str(error).partition("\n")
        raise ConfigError(problem, where=where, given=rest.replace("\n", " ") or None) from error


def _mistake_behind(error: BaseException | None) -> UserError | None:
    """Find the user's mistake that a library wrapped in an error of its own."""
    while error is not None and not isinstance(error, UserError):
        error = error.__cause__ or error.__context__
    return error
