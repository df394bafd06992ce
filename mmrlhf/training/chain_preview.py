"""What the training stages of a chain are going to do: whatever makes their shards and first checkpoint runs for it."""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import replace
from itertools import islice
from pathlib import Path
from typing import Any

from mmrlhf.chain.order import Node, parse_reference
from mmrlhf.chain.runner import Runner
from mmrlhf.tokens.templates import AnswerTemplate, Template
from mmrlhf.training.ancestry import ancestry
from mmrlhf.training.preview import Preview, preview_stage
from mmrlhf.training.ranks import Ranks


def preview_chain(
    chain: Sequence[Node], runner: Runner, *, make: Callable[[Node], Mapping[str, Any]]
) -> dict[str, Preview | str]:
    """Predict every training stage of a chain; only what makes its shards and its first checkpoint runs for it.

    Args:
        make: makes the objects that a node's settings describe.
    """
    nodes = {node.name: node for node in chain}
    training = [node.name for node in chain if "training" in node.settings]
    wanted = {stage for name in training for stage in _sources(nodes, name, training)}
    ready: set[str] = set()
    for node in chain:
        if node.name in wanted and ready.issuperset(node.references):
            ready.add(node.name)
    artifacts = {built.stage: built.folder for built in runner.run([node for node in chain if node.name in ready])}
    ranks = Ranks.of(runner.runtime.get("trainer", {}))
    found: dict[str, Preview | str] = {}
    for name in training:
        shards, checkpoint = (_resolve(nodes, artifacts, name, key) for key in ("shards", "policy"))
        if shards is None or checkpoint is None:
            found[name] = "what it reads is made by stages that have not run yet"
            continue
        made = make(nodes[name])
        found[name] = preview_stage(
            shards=shards,
            checkpoint=checkpoint,
            training=made["training"],
            template=_template(made.get("critique")),
            reading=made.get("reading", "apart"),
            ranks=ranks,
            # mDPO reads every query a second time, with a damaged picture
            forwards=2 if getattr(made.get("objective"), "image_weight", 0) > 0 else 1,
            frozen_copy=made.get("reference_from") == "frozen_copy",
        )
    return found


def _template(critique: Any) -> Template:
    """What a stage's tokens say; `critique` is the reward stage's choice, and some responses may have none of it."""
    return AnswerTemplate() if critique is None else replace(critique.template, allow_missing=True)


def _sources(nodes: Mapping[str, Node], name: str, training: Collection[str]) -> set[str]:
    """Stages that make a training stage's shards or checkpoint, with theirs, up to the next training."""
    found: set[str] = set()
    waiting = [text for key in ("shards", "policy") if isinstance(text := nodes[name].settings.get(key), str)]
    while waiting:
        text = waiting.pop()
        stage = parse_reference(text)[0] if text.startswith("stage:") else None
        if stage is not None and stage not in found and stage not in training:
            found.add(stage)
            waiting += [f"stage:{reference}" for reference in nodes[stage].references]
    return found


def _resolve(nodes: Mapping[str, Node], artifacts: Mapping[str, Path], name: str, key: str) -> str | None:
    """An input's path. A checkpoint that is still to be trained has the architecture of the one it starts from."""
    known = ancestry(nodes, nodes[name].settings.get(key))
    for text, node in known if key == "policy" else islice(known, 1):
        if node is None:
            return text
        if node.name in artifacts:
            return str(artifacts[node.name] / parse_reference(text)[1])
    return None
