"""What can be known to be wrong before the first stage starts: settings, objects, inputs and checkpoints."""

from __future__ import annotations

import math
import re
import typing
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from omegaconf import DictConfig

from mmrlhf.chain.order import (
    Node,
    check_signature,
    parse_reference,
    stage_function,
    stage_module,
    wants_path,
    with_paths,
)
from mmrlhf.composition.config import is_open, plain_settings
from mmrlhf.composition.instantiate import check_declared, make, make_runtime
from mmrlhf.composition.typed_key import placed_arguments
from mmrlhf.errors import ConfigError
from mmrlhf.files import expanded, is_remote
from mmrlhf.training.ancestry import ancestry
from mmrlhf.trees import leaves, named_leaves

# the inputs that may be hub ids
CHECKPOINT_INPUTS = ("base", "policy", "trained")


def check_checkpoints(config: DictConfig, chain: Sequence[Node]) -> None:
    """Make sure that hub ids can be had and that folders hold whole models, before data are prepared for them.

    Comes first, because a hub that cannot be reached is soon known and everything else takes seconds to import.
    """
    used = {text for node in chain for text in leaves(node.settings)}
    for key in CHECKPOINT_INPUTS:
        name = None if is_open(config, key) else str(config.inputs[key])
        if name is None or name not in used or name.startswith("stage:"):
            continue
        if expanded(name).is_dir():
            from mmrlhf.models.load import check_folder

            check_folder(name, make(plain_settings(config.model, "model"), "model")["settings"])
        elif may_be_hub_id(name):
            from mmrlhf.models.hub import check_checkpoint

            check_checkpoint(name)


def check_chain(chain: Sequence[Node], runtime: Mapping[str, Any], inputs: frozenset[str]) -> None:
    """Raise ConfigError for whatever can be known to be wrong with a chain before it runs.

    Binds every stage to its function, looks for the user's inputs and makes every object once. A stage may have two
    functions beside its `run`: `check_settings` is called with the mapping of its arguments, and `check`, where it
    reads from no other stage, with the arguments themselves.
    """
    for node in chain:
        check_signature(node)
        check_declared(stage_function(node.target), node.settings, f"stages.{node.name}")
        _check_numbers(node)
    for node in chain:
        _check_inputs(node, inputs)
    check_protocols(chain)
    check_adapters(chain)
    make_runtime(runtime)
    nodes = {node.name: node for node in chain}
    for node in chain:
        arguments = make(node.settings, f"stages.{node.name}")
        _check_training(node, arguments, nodes)
        module = stage_module(node.target)
        check_settings, check = (getattr(module, name, None) for name in ("check_settings", "check"))
        with placed_arguments(node.settings, f"stages.{node.name}"):
            if check_settings is not None:
                check_settings(arguments)
            if check is not None and not node.references and node.target.endswith(".run"):
                check(**with_paths(stage_function(node.target), arguments))


def _check_training(node: Node, arguments: Mapping[str, Any], nodes: Mapping[str, Node]) -> None:
    """Refuse training without settings, or of layers that its attention is not for."""
    if "training" not in arguments:
        return
    if arguments["training"] is None:
        raise ConfigError(
            "a training stage has no settings of its training",
            argument=f"stages.{node.name}.training",
            given="null: what model, optim and data say would be left out",
            expected="the settings of conf/stages/training.yaml",
            fix=f"leave stages.{node.name}.training out of the command",
        )
    model = arguments["training"].model
    if model.needs_plain_layers:
        from mmrlhf.models import attention, masks  # takes a second, and few ask for these

        config = _config(nodes, node.settings.get("policy"))
        if config is not None:
            attention.require_plain(model.attention, masks.attention_pattern(config))


def _check_numbers(node: Node) -> None:
    """Refuse infinity and what is no number, wherever they stand: a fingerprint has no place for them."""
    for name, value in named_leaves(node.settings):
        if isinstance(value, float) and not math.isfinite(value):
            raise ConfigError(
                "a setting is no finite number", argument=f"stages.{node.name}.{name}", given=value,
                expected="a number; null where there is no limit",
            )  # fmt: skip


def check_protocols(chain: Sequence[Node]) -> None:
    """Refuse a protocol that a reward model's family has not, before that model is trained (ConfigError)."""
    nodes = {node.name: node for node in chain}
    for node in chain:
        protocol, judge = node.settings.get("protocol", "trained"), node.settings.get("reward_model")
        if protocol == "trained" or judge is None:
            continue
        from mmrlhf.tokens.protocol import FAMILY, with_protocol

        config = _config(nodes, judge)
        if config is not None and config.model_type != FAMILY:
            with_protocol(None, protocol, config.model_type)


def check_adapters(chain: Sequence[Node]) -> None:
    """Refuse adapters whose base an earlier stage writes as adapters, before that stage trains (ConfigError).

    A base that is there already is looked at by `mmrlhf.training.settings.require_plain_base`.
    """
    saves = {node.name: (node.settings.get("training") or {}).get("save") for node in chain}
    for node in chain:
        policy = str(node.settings.get("policy"))
        before = parse_reference(policy)[0] if policy.startswith("stage:") else ""
        if saves[node.name] in ("adapter", "both") and saves.get(before) == "adapter":
            raise ConfigError(
                "adapters are written for a whole model, and this training goes on from a stage that writes adapters",
                where=f"model.save, policy of stages.{node.name}",
                given=f"save={saves[node.name]}, {policy}",
                expected=f"stage {before} with save=both or merged, whose folder model/ is whole",
                fix="model.save=both, or one training stage alone: inputs.policy=FOLDER or HUB_ID",
            )


def _config(nodes: Mapping[str, Node], checkpoint: Any) -> Any:
    """The configuration of a checkpoint, also of one that a stage of the chain is still to make; None if none says it.

    Where a stage makes a model of nothing, it is that of its family as transformers has it.
    """
    from transformers import CONFIG_MAPPING

    from mmrlhf.models.load import load_config

    for text, node in ancestry(nodes, checkpoint):
        if node is None:
            return load_config(text)
        if node.settings.get("family") in CONFIG_MAPPING:
            return CONFIG_MAPPING[node.settings["family"]]()
    return None


def _check_inputs(node: Node, inputs: frozenset[str]) -> None:
    hints = typing.get_type_hints(stage_function(node.target))
    for key, value in node.settings.items():
        for text in leaves(value):
            if not isinstance(text, str) or text not in inputs or is_remote(text) or expanded(text).exists():
                continue
            if value is text and may_be_hub_id(text) and not wants_path(hints.get(key)):
                continue
            raise ConfigError(
                "an input does not exist",
                where=f"{key} of stages.{node.name}",
                given=text,
                expected="a path that exists, or stage:NAME",
                fix=None if text.startswith(("/", "~")) else f"looked for it in {Path.cwd()}",
            )


def may_be_hub_id(text: str) -> bool:
    """Whether a text has the form of a hub id: NAME or OWNER/NAME."""
    return re.fullmatch(r"[\w-][\w.-]*(/[\w-][\w.-]*)?", text) is not None
