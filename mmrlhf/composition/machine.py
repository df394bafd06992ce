"""What training cannot do on the run's devices: asked of the stages to be built, before the first of them starts.

Stages that the store holds are not asked: they may have been trained on others.
"""

from __future__ import annotations

from collections.abc import Collection, Iterator, Mapping, Sequence
from typing import Any

from mmrlhf.chain.order import Node
from mmrlhf.composition.instantiate import make
from mmrlhf.training.ancestry import start_of


def check_split(chain: Sequence[Node], runtime: Mapping[str, Any], built: Collection[str]) -> None:
    """Refuse training that cannot be done with a model split over devices, whatever these are (ConfigError).

    Args:
        built: names of the stages that will be built.
    """
    for _, training in _trained(chain, built):
        from mmrlhf.training.ranks import Ranks
        from mmrlhf.training.settings import require_splittable

        if Ranks.of(runtime.get("trainer") or {}).split:
            require_splittable(training)


def check_machine(chain: Sequence[Node], runtime: Mapping[str, Any], built: Collection[str]) -> None:
    """Refuse training for which this machine has no device, no back end or not the memory, before it loads anything.

    A checkpoint that a stage of the chain makes or trains is as large as the one that it starts from, if that is known.

    Args:
        built: names of the stages that will be built.

    Raises:
        ConfigError: names the stage, what it takes and what takes less.
    """
    nodes = {node.name: node for node in chain}
    for node, training in _trained(chain, built):
        from mmrlhf.training.ranks import Ranks
        from mmrlhf.training.room import require_room
        from mmrlhf.training.settings import require_back_end

        ranks = Ranks.of(runtime.get("trainer") or {})
        ranks.require_device()
        require_back_end(training, device="cpu" if ranks.on_host else "cuda")
        start = start_of(nodes, node.settings.get("policy"))
        if start is not None:
            require_room(start, training, ranks, stage=node.name)


def _trained(chain: Sequence[Node], built: Collection[str]) -> Iterator[tuple[Node, Any]]:
    """Training stages that will be built, with their settings of training."""
    for node in chain:
        if node.name in built and "training" in node.settings:
            yield node, make({"training": node.settings["training"]}, f"stages.{node.name}")["training"]
