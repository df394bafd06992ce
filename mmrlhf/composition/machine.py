"""What training cannot do on this machine: asked of the stages that will be built, before the first of them starts."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from typing import Any

from mmrlhf.chain.order import Node
from mmrlhf.composition.config import make
from mmrlhf.training.ancestry import start_of


def check_machine(chain: Sequence[Node], runtime: Mapping[str, Any], built: Collection[str]) -> None:
    """Refuse training for which this machine has no device, no back end or not the memory, before it loads anything.

    A checkpoint that a stage of the chain makes or trains is as large as the one that it starts from, if that is known.

    Args:
        built: names of the stages that will be built; others are reused, wherever they were trained.

    Raises:
        ConfigError: names the stage, what it takes and what takes less.
    """
    nodes = {node.name: node for node in chain}
    for node in chain:
        if node.name not in built or "training" not in node.settings:
            continue
        from mmrlhf.training.ranks import Ranks
        from mmrlhf.training.room import require_room
        from mmrlhf.training.settings import require_back_end

        ranks = Ranks.of(runtime.get("trainer") or {})
        ranks.require_device()
        training = make({"training": node.settings["training"]}, f"stages.{node.name}")["training"]
        require_back_end(training, device="cpu" if ranks.on_host else "cuda")
        start = start_of(nodes, node.settings.get("policy"))
        if start is not None:
            require_room(start, training, ranks, stage=node.name)
