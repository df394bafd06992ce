"""The chain from queries to a reward model that learns what people said, as the command runs it."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from stand_ins.commands import start

from mmrlhf.shards.index import Index
from mmrlhf.summaries.people import AnnotatedSummary
from mmrlhf.summaries.trainings import TrainingSummary


@pytest.mark.slow
def test_what_simulated_people_wrote_reaches_the_loss(tmp_path: Path, own_store: Path) -> None:
    words = ["experiment=collect", "scale=tiny", "stages.curate.size=24", "stage=reward", "logger=none", "trainer=cpu"]
    start(tmp_path, *words, f"hydra.run.dir={tmp_path / 'run'}", expected=0, limit=600, HF_HUB_OFFLINE="1")
    made = tmp_path / "run" / "artifacts"
    groups = list(Index.load(made / "annotated" / "shards"))
    assert len(groups) == 24 and {group.meta["curation"]["arm"] for group in groups} == {"spread"}
    whose = {one["responder"] for g in groups for each in g.meta["answered_by"] for one in each}
    assert whose == {"untrained", "trained", "service"}
    assert {group.meta["labels"]["by"] for group in groups} == {"simulated"}
    assert all(set(r.scores) == {"helpfulness", "faithfulness", "ethics"} for g in groups for r in g.responses)
    annotated = AnnotatedSummary.from_json(_metrics(made / "annotated"), where="annotated")
    assert annotated.groups == 24 and annotated.pairs > 0 and not annotated.refused
    reward = TrainingSummary.from_json(_metrics(made / "reward"), where="reward")
    assert "loss_dimensions" in json.dumps(reward.to_json())
    head = json.loads((made / "reward" / "model" / "reward_model.json").read_text())
    assert head["dimensions"] == ["helpfulness", "faithfulness", "ethics"]


@pytest.mark.slow
def test_people_and_a_model_share_the_work_and_the_audit_trains_nobody(tmp_path: Path, own_store: Path) -> None:
    words = ["experiment=fewer_people", "scale=tiny", "stages.audit.size=30", "stages.triage.budget.queries=6"]
    more = ["stages.triage.limit=0.01", "stages.triage.beyond=model", "logger=none", "trainer=cpu"]
    start(tmp_path, *words, *more, f"hydra.run.dir={tmp_path / 'run'}", expected=0, limit=900, HF_HUB_OFFLINE="1")
    made = tmp_path / "run" / "artifacts"
    drawn = set((made / "audit" / "audit.txt").read_text().split())
    asked = (made / "triage" / "ask.txt").read_text().split()
    trained = {group.key: group for group in Index.load(made / "labelled" / "shards")}
    assert len(drawn) == 30 and {group.key for group in Index.load(made / "labelled" / "audit")} == drawn
    assert not drawn & set(trained) and len(asked) == 6
    for key, group in trained.items():
        assert group.meta["labels"]["by"] == ("simulated" if key in asked else "model")
    assert {group.category for group in trained.values() if group.labelled_by_model}.isdisjoint({"safety"})
    judged = json.loads((made / "reward_again" / "artifact.json").read_text())["settings"]
    assert judged["shards"] == "stage:labelled/shards" and (made / "reward_again" / "model").is_dir()


def _metrics(folder: Path) -> dict[str, object]:
    return json.loads((folder / "metrics.json").read_text())
