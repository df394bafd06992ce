"""What annotators say reaches the losses: the command from queries to a reward model and a policy, offline."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import hydra
import pytest
from hydra.core.global_hydra import GlobalHydra

from mmrlhf.app import CONF, run_chain
from mmrlhf.chain.artifact import Artifact
from mmrlhf.models.promises import read_card

DIMENSIONS = "[helpfulness,faithfulness,ethics]"


def command(tmp_path: Path, *overrides: str) -> dict[str, Artifact]:
    """Run a command in this process; stage -> what it made."""
    usual = ["scale=tiny", "logger=none", "trainer=cpu", "runtime.progress=false", "annotator=simulated"]
    usual += ["inputs.shards=stage:annotated/shards", "data.critique=short", "stages.annotate.doubly=0.4"]
    GlobalHydra.instance().clear()
    with hydra.initialize_config_dir(str(CONF), version_base="1.3"):
        config: Any = hydra.compose("config", [*usual, f"paths.artifacts={tmp_path / 'artifacts'}", *overrides])
        return {each.stage: each for each in run_chain(config, tmp_path / "run", shows=False)}


@pytest.mark.slow
def test_from_queries_to_a_reward_model_and_a_policy(tmp_path: Path) -> None:
    words = [f"stages.reward.head.dimensions={DIMENSIONS}", "stages.reward.weights.dimensions=1"]
    made = command(tmp_path, "stage=reward", *words)
    asked, labels = made["annotate"].summary, made["annotated"].summary
    assert asked["queries"] == labels["groups"] == 48 and labels["several"] == asked["twice"] > 5
    assert labels["with_reasons"] > 100 and not labels["refused"] and set(labels["agreement"]) > {"helpfulness"}
    card = read_card(made["reward"].folder / "model")
    assert card["dimensions"] == ["helpfulness", "faithfulness", "ethics"]
    curves = (made["reward"].folder / "curves.csv").read_text()
    losses = [float(line.rpartition(",")[2]) for line in curves.splitlines() if "dimensions" in line]
    assert losses and all(loss > 0 for loss in losses)
    trained = command(tmp_path, "stage=mmdpo", "margin=dimensions")
    assert trained["annotated"].reused and trained["mmdpo"].summary["steps"] == 2
    margins = trained["annotations"].summary["train"]["accuracy"]["annotators"]["annotated scores"]
    assert margins["num_pairs"] > 30 and margins["acc"]["mean"] > 0.6, "scores and rankings are of the same people"
