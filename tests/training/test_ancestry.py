"""From a checkpoint back to what it is trained from."""

from __future__ import annotations

from typing import Any

import pytest

from mmrlhf.chain.order import Node
from mmrlhf.training.ancestry import ancestry, start_of

NODES = {
    name: Node(name, "m.run", settings, ())
    for name, settings in {
        "tiny": {"family": "f"},
        "imported": {"base": "org/reward", "policy": None},
        "sft": {"policy": "stage:tiny/model"},
        "mmdpo": {"policy": "stage:sft/model", "base": "not/this"},
        "again": {"policy": "stage:imported/model"},
    }.items()
}


@pytest.mark.parametrize(
    ("checkpoint", "line", "start"),
    [
        ("stage:mmdpo/model", ["stage:mmdpo/model", "stage:sft/model", "stage:tiny/model"], None),
        ("stage:again/x", ["stage:again/x", "stage:imported/model", "org/reward"], "org/reward"),
        ("a/folder", ["a/folder"], "a/folder"),
        (None, [], None),
    ],
)
def test_a_checkpoint_has_one_line_of_ancestors(checkpoint: Any, line: list[str], start: str | None) -> None:
    found = list(ancestry(NODES, checkpoint))
    assert [text for text, _ in found] == line and start_of(NODES, checkpoint) == start
    for text, node in found:
        assert node is None if not text.startswith("stage:") else text.startswith(f"stage:{getattr(node, 'name', '')}/")
