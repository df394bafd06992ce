"""From a checkpoint that a stage of the chain makes back to what it is made of; imports nothing that is slow."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

from mmrlhf.chain.order import Node, parse_reference

# settings that name the checkpoint a stage starts from, the first that has a value
_STARTS = ("policy", "base")


def ancestry(nodes: Mapping[str, Node], checkpoint: Any) -> Iterator[tuple[str, Node | None]]:
    """Yield a checkpoint, the one that it is trained from, and so on, each with the stage that makes it.

    What no stage makes comes last, with None: a folder or hub id. Where there is none, the last stage makes its model
    of nothing. All have the architecture of the first.
    """
    while checkpoint is not None:
        text = str(checkpoint)
        if not text.startswith("stage:"):
            yield text, None
            return
        node = nodes[parse_reference(text)[0]]
        yield text, node
        checkpoint = next((node.settings[name] for name in _STARTS if node.settings.get(name) is not None), None)


def start_of(nodes: Mapping[str, Node], checkpoint: Any) -> str | None:
    """The folder or hub id that a checkpoint is trained from; None where a stage makes it of nothing."""
    return next((text for text, node in ancestry(nodes, checkpoint) if node is None), None)
