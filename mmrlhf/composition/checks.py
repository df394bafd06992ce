"""What can be known to be wrong before the first stage starts: settings, objects, inputs and checkpoints."""

from __future__ import annotations

import math
import re
import typing
from collections.abc import Callable, Mapping, Sequence
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
from mmrlhf.composition.config import check_declared, is_open, make, make_runtime, plain_settings
from mmrlhf.errors import ConfigError, UserError
from mmrlhf.files import expanded, is_remote
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
    for node in chain:
        arguments = make(node.settings, f"stages.{node.name}")
        _check_machine(arguments, runtime)
        module = stage_module(node.target)
        check_settings = getattr(module, "check_settings", None)
        if check_settings is not None:
            _place(check_settings, arguments, f"stages.{node.name}")
        check = getattr(module, "check", None)
        if check is not None and not node.references and node.target.endswith(".run"):
            check(**with_paths(stage_function(node.target), arguments))


def _place(check_settings: Callable[[Mapping[str, Any]], None], arguments: Mapping[str, Any], place: str) -> None:
    """Check a stage's settings; an error that names one of them says its key."""
    try:
        check_settings(arguments)
    except UserError as error:
        raise error.below(place) from error


def check_room(chain: Sequence[Node], runtime: Mapping[str, Any]) -> None:
    """Refuse training whose model, gradients and optimizer are more than this machine has, before it loads anything.

    A checkpoint that a stage of the chain makes or trains is as large as the one that it starts from, if that is known.

    Raises:
        ConfigError: names the stage, what it takes and what takes less.
    """
    nodes = {node.name: node for node in chain}
    for node in chain:
        checkpoint = _start(nodes, node.settings.get("policy")) if "training" in node.settings else None
        if checkpoint is None:
            continue
        from mmrlhf.training.room import Ranks, require_room

        training = make(node.settings, f"stages.{node.name}")["training"]
        require_room(checkpoint, training, Ranks.of(runtime.get("trainer") or {}), stage=node.name)


def _start(nodes: Mapping[str, Node], checkpoint: Any) -> str | None:
    """The folder or hub id that a checkpoint is trained from; None where a stage makes it of nothing."""
    if not isinstance(checkpoint, str) or not checkpoint.startswith("stage:"):
        return checkpoint
    settings = nodes[parse_reference(checkpoint)[0]].settings
    return _start(nodes, next((settings[name] for name in ("policy", "base") if settings.get(name) is not None), None))


def _check_machine(arguments: Mapping[str, Any], runtime: Mapping[str, Any]) -> None:
    """Refuse training that cannot be done on the run's devices, or not with a model split over them."""
    training = arguments.get("training")
    if training is None:
        return
    from mmrlhf.training.room import Ranks
    from mmrlhf.training.settings import require_back_end, require_splittable

    ranks = Ranks.of(runtime.get("trainer") or {})
    require_back_end(training, device="cpu" if ranks.on_host else "cuda")
    if ranks.split:
        require_splittable(training)


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

        family = _family(nodes, judge)
        if family not in (None, FAMILY):
            with_protocol(None, protocol, family)


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


def _family(nodes: Mapping[str, Node], checkpoint: Any) -> str | None:
    """The family of a checkpoint, also of one that a stage of the chain is still to make; None where none says it."""
    text = str(checkpoint)
    if not text.startswith("stage:"):
        from mmrlhf.models.load import load_config

        return load_config(text).model_type
    settings = nodes[parse_reference(text)[0]].settings
    if "family" in settings:
        return str(settings["family"])
    start = next((settings[name] for name in ("policy", "base") if settings.get(name) is not None), None)
    return None if start is None else _family(nodes, start)


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
