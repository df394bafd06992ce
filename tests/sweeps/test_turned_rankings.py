"""The world of turned rankings that studies add: what it is in the composed configuration."""

from __future__ import annotations

import pytest
from hydra.core.override_parser.overrides_parser import OverridesParser

from mmrlhf.sweeps.turned_rankings import turned_rankings


@pytest.mark.parametrize("flip", ["0.32", "0.1"])
def test_the_words_are_stages_as_hydra_reads_them(flip: str) -> None:
    world, pack = (each.value() for each in OverridesParser.create().parse_overrides([*turned_rankings(flip)]))
    assert world == {
        "_target_": "mmrlhf.stages.world.run", "num_groups": "${scale.num_groups}", "num_warmup": 0, "seed": "${seed}",
        "flip_rate": float(flip),
    }  # fmt: skip
    assert pack["_target_"] == "mmrlhf.stages.pack.run" and pack["root"] == "stage:turned/preference"
    assert set(pack) == {"_target_", "root", "limit", "num_frames", "sampling", "importer", "video"}
