"""The config tree: every file composes, every key means something, every `_target_` fits what it names."""

from __future__ import annotations

import inspect
import re
import shlex
from collections.abc import Iterator
from copy import deepcopy
from functools import cache
from pathlib import Path
from typing import Any

import hydra
import pytest
import yaml
from hydra.core.global_hydra import GlobalHydra
from hydra.utils import get_object
from omegaconf import DictConfig, OmegaConf

from mmrlhf.chain.order import check_signature, plan_chain
from mmrlhf.composition.config import CONF, read_runtime, read_stage, stage_names, user_inputs
from mmrlhf.composition.overrides import iterate_keys
from mmrlhf.composition.trainer import SHARDING, TRAINERS
from mmrlhf.models.random_checkpoints import FAMILIES

FILES = sorted(CONF.rglob("*.yaml"))
EXPERIMENTS = sorted(file.stem for file in (CONF / "experiment").glob("*.yaml"))
SWEEPS = sorted(file.stem for file in (CONF / "sweep").glob("*.yaml"))
NEEDED = {"score_llava": ["responses=answers.jsonl"]}  # what the user has to give beside the experiment
SPECIAL = {"_target_", "_partial_", "_recursive_", "_convert_", "_args_"}
GIVEN_LATER = {"out", "runtime"}


@cache
def _compose(*overrides: str, name: str = "config") -> DictConfig:
    GlobalHydra.instance().clear()
    with hydra.initialize_config_dir(str(CONF), version_base="1.3"):
        return hydra.compose(name, list(overrides))


def _name(file: Path) -> str:
    return str(file.relative_to(CONF))


def test_there_are_files() -> None:
    assert len(FILES) > 50 and len(EXPERIMENTS) >= 8 and len(SWEEPS) >= 3


# ---- what is inside the files


@pytest.mark.parametrize("file", FILES, ids=_name)
def test_every_key_has_a_comment(file: Path) -> None:
    """A comment stands above a key, behind it, first inside its section, or above one of the three keys before it."""
    bare, run = [], {}
    before, lines = "", file.read_text().splitlines()
    for number, line in enumerate(lines, start=1):
        match = re.match(r"^(\s*)([\w.]+):(\s|$)", line)
        if match and not _is_text(file, number):
            indent, key = len(match[1]), match[2]
            inside = lines[number].lstrip().startswith(("#", "_target_")) if _opens(lines, number) else False
            covered = "#" in line or before.lstrip().startswith("#") or inside
            run[indent] = 0 if covered else run.get(indent, 9) + 1
            if run[indent] > 3 and key not in SPECIAL and key != "defaults":
                bare.append(f"{_name(file)}:{number} {key}")
            elif key in SPECIAL:
                run[indent] = 0
        elif not line.strip():
            run = {}
        before = line
    assert not bare


def _opens(lines: list[str], number: int) -> bool:
    """Whether a line opens a section; its own comment, or those of its keys, may be inside."""
    return lines[number - 1].rstrip().endswith(":") and number < len(lines) and bool(lines[number].strip())


def _is_text(file: Path, number: int) -> bool:
    """Whether a line belongs to a block of text (`key: |`), as in the help page."""
    for line in reversed(file.read_text().splitlines()[: number - 1]):
        if re.match(r"^\S", line):
            return line.rstrip().endswith("|")
    return False


def _targets(value: Any, where: str = "") -> Iterator[tuple[str, dict[str, Any]]]:
    if isinstance(value, dict):
        if "_target_" in value:
            yield where, value
        for key, item in value.items():
            yield from _targets(item, f"{where}.{key}".lstrip("."))
    elif isinstance(value, list):
        for number, item in enumerate(value):
            yield from _targets(item, f"{where}[{number}]")


def _bind(where: str, node: dict[str, Any]) -> None:
    target = get_object(node["_target_"])
    parameters = inspect.signature(target).parameters
    keys = {key for key in node if key not in SPECIAL}
    if node["_target_"] in TRAINERS:
        keys -= set(SHARDING)  # which the strategy reads
    if not any(parameter.kind is parameter.VAR_KEYWORD for parameter in parameters.values()):
        assert keys <= set(parameters), f"{where}: {node['_target_']} has no {sorted(keys - set(parameters))}"
    if not node.get("_partial_"):
        positional = (inspect.Parameter.VAR_POSITIONAL, inspect.Parameter.VAR_KEYWORD)
        needed = {
            name
            for name, parameter in parameters.items()
            if parameter.default is parameter.empty and parameter.kind not in positional
        }
        missing = needed - keys - (GIVEN_LATER if node["_target_"].startswith("mmrlhf.stages.") else set())
        assert not missing, f"{where}: {node['_target_']} needs {sorted(missing)}"


@pytest.mark.parametrize("file", [file for file in FILES if "_target_" in file.read_text()], ids=_name)
def test_every_target_takes_its_keys(file: Path) -> None:
    content = yaml.safe_load(file.read_text())
    content.pop("defaults", None)
    found = list(_targets(content, _name(file)))
    assert found
    for where, node in found:
        _bind(where, node)


def test_a_misspelt_key_would_be_seen() -> None:
    with pytest.raises(AssertionError, match="lrr"):
        _bind("here", {"_target_": "mmrlhf.methods.optim.OptimSettings", "lrr": 1.0})
    with pytest.raises(AssertionError, match="needs"):
        _bind("here", {"_target_": "mmrlhf.chain.order.suggestion", "given": 1.0})


# ---- what the files compose to


def _check_composed(config: DictConfig) -> None:
    for where, node in _targets(OmegaConf.to_container(config, resolve=False)):
        _bind(where, node)
    chain = plan_chain(config.stage, lambda name: read_stage(config, name), stage_names(config))
    for node in chain:
        check_signature(node)
    read_runtime(config)
    user_inputs(config)


CHOICES = {
    folder.name: sorted(file.stem for file in folder.glob("*.yaml"))
    for folder in sorted(CONF.iterdir())
    if folder.is_dir() and folder.name not in ("experiment", "sweep", "launcher", "hydra", "stages")
}
LAUNCHERS = {"joblib": "joblib_launcher", "slurm": "submitit_launcher", "slurm_local": "submitit_launcher"}


@pytest.mark.parametrize("turn", range(max(map(len, CHOICES.values()))))
def test_every_choice_of_every_group_composes(turn: int) -> None:
    """Turn i takes the i-th choice of every group, so that the largest group decides how many turns there are."""
    words = [f"{group}={names[turn % len(names)]}" for group, names in CHOICES.items()]
    config = deepcopy(_compose(*words))
    given = {
        "data.root": "somewhere",
        "data.warmup_root": "somewhere",
        "data.importer.convert": "my_module.my_function",
    }
    given |= {"policy.endpoint.url": "http://localhost:1/v1", "policy.endpoint.model": "NAME"}
    for key, value in given.items():  # what only the user can give
        place, _, name = key.rpartition(".")
        if (node := OmegaConf.select(config, place)) is not None and OmegaConf.is_missing(node, name):
            node[name] = value
    _check_composed(config)


@pytest.mark.parametrize("experiment", EXPERIMENTS)
@pytest.mark.parametrize("scale", ["default", "tiny"])
def test_every_experiment_composes(experiment: str, scale: str) -> None:
    config = _compose(f"experiment={experiment}", f"scale={scale}", *NEEDED.get(experiment, []))
    _check_composed(config)
    chain = [node.name for node in plan_chain(config.stage, lambda name: read_stage(config, name), stage_names(config))]
    drawn = config.data.root.startswith("stage:world")
    assert ("world" in chain and "tiny" in chain) == drawn
    assert ("fetch" in chain) == (not drawn)
    if experiment.startswith("dpo_"):
        assert not {"reward", "score"} & set(chain), "plain DPO needs no rewards"


def test_collecting_goes_from_queries_to_what_people_said() -> None:
    """The order of the chain, and the ways on which annotators' scores reach the losses."""
    config = _compose("experiment=collect", "scale=tiny")
    chain = {node.name: node for node in plan_chain("report", lambda n: read_stage(config, n), stage_names(config))}
    wanted = ["query_features", "curate", "respond", "annotate", "annotated", "reward", "mmdpo"]
    assert [name for name in chain if name in wanted] == wanted and "annotations" in chain
    models = [each.get("model") for each in config.responders.values()]
    assert len(models) == 3 and len(set(models)) == 3, "two policies and an endpoint"
    for name in ("reward", "mmdpo", "annotations", "score"):
        assert config.stages[name].shards == "stage:annotated/shards", name
    assert config.stages.reward.head.dimensions == ["helpfulness", "faithfulness", "ethics"]
    assert config.stages.reward.weights.dimensions > 0 and config.stages.reward.critique.kind == "short"
    assert config.stages.mmdpo.rewards == "stage:annotations/rewards"
    weights = config.stages.annotations.weights
    assert {name for name, weight in weights.items() if weight} == set(config.stages.reward.head.dimensions)


@pytest.mark.parametrize("experiment", EXPERIMENTS)
def test_own_data_fetches_nothing(experiment: str) -> None:
    config = deepcopy(_compose(f"experiment={experiment}", "scale=default", *NEEDED.get(experiment, [])))
    config.data.root = "my_data"
    chain = plan_chain(config.stage, lambda name: read_stage(config, name), stage_names(config))
    assert "fetch" not in [node.name for node in chain] and "my_data" in user_inputs(config)


def _leaves(content: Any, prefix: str = "") -> Iterator[tuple[str, Any]]:
    if isinstance(content, dict) and content:
        for key, value in content.items():
            yield from _leaves(value, f"{prefix}.{key}".lstrip("."))
    else:
        yield prefix, content


@pytest.mark.parametrize("experiment", EXPERIMENTS)
def test_an_experiment_only_sets_what_exists(experiment: str) -> None:
    content = yaml.safe_load((CONF / "experiment" / f"{experiment}.yaml").read_text())
    choices = [item for entry in content.pop("defaults", []) for item in _choice(entry)]
    config = _compose(*choices)
    known = set(iterate_keys(config))

    def is_open(key: str) -> bool:
        """Whether a mapping whose keys are the user's own holds it: nothing, where nothing is chosen."""
        return not OmegaConf.select(config, key.rpartition(".")[0], default="no such mapping")

    assert not [key for key, _ in _leaves(content) if key not in known and not is_open(key)]


def _choice(entry: Any) -> Iterator[str]:
    for group, option in entry.items() if isinstance(entry, dict) else []:
        yield f"{group.removeprefix('override ').removeprefix('/')}={option}"


@pytest.mark.parametrize("experiment", EXPERIMENTS)
def test_an_experiment_leaves_what_the_tiny_scale_sets(experiment: str) -> None:
    composed = OmegaConf.to_container(_compose(f"experiment={experiment}", "scale=tiny"), resolve=False)
    for key, value in _leaves(yaml.safe_load((CONF / "scale" / "tiny.yaml").read_text())):
        found: Any = composed
        for part in key.split("."):
            found = found[part]
        assert found == value, key


@pytest.mark.parametrize("experiment", EXPERIMENTS)
def test_an_experiment_starts_with_its_command(experiment: str) -> None:
    lines = (CONF / "experiment" / f"{experiment}.yaml").read_text().splitlines()
    first = next(line for line in lines if not line.startswith("# @"))
    assert first.startswith(f"# python run.py experiment={experiment}")
    name = _compose(f"experiment={experiment}", "scale=default").name
    assert name == experiment or name.startswith(f"{experiment}_")


@pytest.mark.parametrize("model", CHOICES["model"])
def test_every_model_takes_every_general_experiment(model: str) -> None:
    """`experiment=mmdpo model=gemma3`: the model that is named wins over the experiment's own."""
    family = _compose(f"model={model}").model.family
    for experiment in ("mmdpo", "dpo", "reward"):
        config = _compose(f"experiment={experiment}", f"model={model}", "scale=tiny")
        _check_composed(config)
        assert config.model.family == family and config.name == f"{experiment}_{family}"


@pytest.mark.parametrize("model", sorted(set(CHOICES["model"]) - {"shapes"}))
def test_every_model_has_a_tiny_recipe(model: str) -> None:
    config = _compose(f"model={model}")
    assert config.model.family in FAMILIES and config.model.settings.family == config.model.family


def test_several_loggers_take_one_override() -> None:
    logger = _compose("logger=[wandb,tensorboard]").logger
    assert logger.wandb == "auto" and logger.tensorboard and not logger.get("csv")


@pytest.mark.parametrize("launcher", sorted(file.stem for file in (CONF / "launcher").glob("*.yaml")))
def test_every_launcher_composes(launcher: str) -> None:
    pytest.importorskip(f"hydra_plugins.hydra_{LAUNCHERS[launcher]}", reason="needs the extra `sweeps`")
    _check_composed(_compose(f"launcher={launcher}"))


@pytest.mark.parametrize(("machines", "tasks"), [(1, 1), (2, 8)])
def test_slurm_gets_a_task_for_each_process_that_srun_starts(machines: int, tasks: int) -> None:
    pytest.importorskip(f"hydra_plugins.hydra_{LAUNCHERS['slurm']}", reason="needs the extra `sweeps`")
    words = ["launcher=slurm", "trainer=fsdp", "trainer.devices=8", f"trainer.num_nodes={machines}"]
    GlobalHydra.instance().clear()
    with hydra.initialize_config_dir(str(CONF), version_base="1.3"):
        launcher = hydra.compose("config", words, return_hydra_config=True).hydra.launcher
    assert (launcher.nodes, launcher.tasks_per_node, launcher.gpus_per_node) == (machines, tasks, 8)


@pytest.mark.parametrize("experiment", ["mmdpo_llava", "mmdpo"])
def test_an_ablation_changes_what_it_says(experiment: str) -> None:
    def chosen(*ablation: str) -> tuple[str, str, str]:
        config = _compose(f"experiment={experiment}", *(f"ablation={name}" for name in ablation))
        pairs = OmegaConf.to_container(config.pairs)
        return config.method._target_.rpartition(".")[2], config.data.critique, str(pairs)

    full = chosen("full")
    assert full == chosen() and full[0] == "MMDPO" and full[1] != "none"
    base_reward = _compose(f"experiment={experiment}", "ablation=base_reward")
    assert base_reward.model.head == "silu2" and base_reward.data.critique == "none", "a recipe: several things at once"
    multi_response = _compose(f"experiment={experiment}", "ablation=multi_response")
    assert multi_response.stages.reward.reading == "in_turn" and multi_response.data.critique == "none"
    weights = multi_response.stages.reward.weights
    assert (weights.score_over, weights.centring, multi_response.model.head) == ("best", 0.0, "silu2")
    recipes = ("full", "base_reward", "multi_response")
    changed = {name: chosen(name) for name in CHOICES["ablation"] if name not in recipes}
    assert {
        name: [a != b for a, b in zip(full, found, strict=True)].count(True) for name, found in changed.items()
    } == {name: 0 if name == f"{full[1]}_critique" else 1 for name in changed}, "one thing, or what the data has anyway"
    assert changed["no_critique"][1] == "none" and changed["dpo"][0] == "DPO"
    assert len(set(changed.values())) == len(changed)


@pytest.mark.parametrize("sweep", SWEEPS)
def test_a_sweep_varies_what_exists(sweep: str) -> None:
    file = CONF / "sweep" / f"{sweep}.yaml"
    assert f"# python run.py sweep={sweep}" in file.read_text()
    params = yaml.safe_load(file.read_text())["hydra"]["sweeper"]["params"]
    known = set(iterate_keys(_compose()))
    for key, values in params.items():
        for value in str(values).split(","):
            assert value in CHOICES[key] if key in CHOICES else key in known, f"{key}={value}"


def _commands() -> Iterator[str]:
    for lines in yaml.safe_load((CONF / "config.yaml").read_text())["next"].values():
        yield from (f"python run.py {line}" for line in lines)
    for line in (CONF / "hydra" / "help_page.yaml").read_text().splitlines():
        if line.strip().startswith("python run.py"):
            yield re.split(r"\s{3,}", line.strip())[0]


@pytest.mark.parametrize("command", sorted(set(_commands())))
def test_proposed_commands_compose(command: str) -> None:
    typed = shlex.split(command)[2:]
    words = [word for word in typed if not word.startswith("-") and "=" in word]
    name = "serve" if typed[:1] == ["serve"] else "config"
    _compose(*[word.split(",")[0] if "," in word else word for word in words], name=name)


def test_no_file_names_a_place_on_some_machine() -> None:
    assert not [_name(file) for file in FILES if re.search(r"(?<![\w.])/(home|work|tmp|root|data)/", file.read_text())]
