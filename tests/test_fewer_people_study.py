"""The study of fewer people: what its arms make of a drawn judge, and what it runs."""

from __future__ import annotations

import csv
import json
import math
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType, SimpleNamespace

import pytest
from stand_ins.scripts import loaded_script

from mmrlhf.chain.order import plan_chain
from mmrlhf.composition.compose import compose
from mmrlhf.composition.config import read_stage, stage_names


@pytest.fixture(scope="module")
def study() -> Iterator[ModuleType]:
    with loaded_script("labels", "experiments/06_fewer_people/labels.py") as module:
        yield module


@pytest.fixture(scope="module")
def trained(study: ModuleType) -> Iterator[ModuleType]:
    with loaded_script("policies", "experiments/06_fewer_people/policies.py") as module:
        yield module


def test_labels_go_from_the_judges_to_peoples(study: ModuleType, tmp_path: Path) -> None:
    asked = [
        "--judge",
        "drawn",
        "--pool",
        "150",
        "--redraws",
        "1",
        "--seeds",
        "3",
        "--results",
        str(tmp_path),
    ]
    study.main(asked)
    with (tmp_path / "labels.csv").open(encoding="utf-8") as file:
        rows = {(row["arm"], float(row["wanted"])): row for row in csv.DictReader(file)}
    pool = study.drawn_pool(3, 150, 0.9)
    alone = {0.0: pool.errors(study.judged(pool)), 1.0: pool.errors(pool.people(0, 1.2))}
    for share, (wrong, tied) in alone.items():
        for arm in study.ORDERS:
            assert float(rows[arm, share]["wrong"]) == pytest.approx(wrong, abs=1e-4)
            assert float(rows[arm, share]["tied"]) == pytest.approx(tied, abs=1e-4)
    assert alone[0.0][0] > alone[1.0][0] and alone[0.0][1] == 0
    assert float(rows["unsure", 0.5]["wrong"]) < float(rows["surest", 0.5]["wrong"])
    assert 0 < float(rows["certified", study.LIMIT]["share"]) <= 1
    assert (tmp_path / "labels.png").stat().st_size > 1000 and "limit exceeded" in (tmp_path / "labels.md").read_text()


def test_a_pair_is_wrong_where_its_order_is_turned(study: ModuleType) -> None:
    pool = study.Pool((), {}, {"a": [3.0, 1.0, 1.0], "b": [0.0, 2.0]})
    assert pool.errors({"a": (1, 2, 3), "b": (2, 1)}) == (0.0, 0.0), "answers of one quality cannot be wrong"
    assert pool.errors({"a": (2, 1, 2), "b": (1, 2)}) == (pytest.approx(2 / 3), pytest.approx(1 / 3))


def test_every_arm_of_the_policies_asks_as_many(study: ModuleType, trained: ModuleType) -> None:
    found = trained.policy_arms()
    assert set(found) == {
        "random 0", *(f"{order} {share}" for share in ("0.1", "0.25", "0.5", "0.75") for order in study.ORDERS),
        "random 1", "certified",
    }  # fmt: skip
    assert found["unsure 0.25"] == [
        "stages.triage.budget.queries=270", "stages.triage.limit=0", "stages.triage.order=unsure",
    ]  # fmt: skip


@pytest.mark.parametrize(("arm", "asked"), [("random 0", False), ("unsure 0.25", True)])
def test_where_nobody_is_asked_the_chain_has_no_such_round(arm: str, asked: bool, trained: ModuleType) -> None:
    config = compose(["experiment=fewer_people", "stage=labelled", *trained.policy_arms()[arm]])
    chain = plan_chain("labelled", lambda name: read_stage(config, name), stage_names(config))
    names = {node.name for node in chain}
    assert {"annotated_audit", "triage"} <= names and ("annotated" in names) == asked


def leave(folder: Path, quality: float, asked: int) -> None:
    """A policy's answers, two to each query, and what triage counted."""
    for stage in ("evaluate", "triage"):
        (folder / "artifacts" / stage).mkdir(parents=True)
    rows = [
        {"key": f"query-{i}", "quality": quality + 0.1 * (i % 3), "logprob": -3.0, "reference_logprob": -3.5}
        for i in range(12)
        for _ in range(2)
    ]
    text = "".join(json.dumps(row) + "\n" for row in rows)
    (folder / "artifacts" / "evaluate" / "samples.jsonl").write_text(text)
    (folder / "artifacts" / "triage" / "metrics.json").write_text(
        json.dumps({"asked": asked, "automatic": 100 - asked})
    )


def test_policies_are_compared_with_peoples_labels_query_by_query(
    study: ModuleType,
    trained: ModuleType,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    calls: list[list[str]] = []
    monkeypatch.setattr(
        study.subprocess, "run", lambda command, **_: calls.append(command) or SimpleNamespace(returncode=1)
    )
    for arm, asked, gap in (("random 0", 0, -0.05), ("random 1", 100, 0.0), ("unsure 0.5", 50, 0.01)):
        for seed in (0, 1):
            leave(trained.policy_folder(tmp_path, arm, seed), 0.3 + 0.2 * seed + gap, asked)
    trained.main(["--seeds", "0,1", "--out", str(tmp_path), "--results", str(tmp_path / "r"), "scale=tiny"])
    with (tmp_path / "r" / "policies.csv").open(encoding="utf-8") as file:
        rows = {row["arm"]: row for row in csv.DictReader(file)}
    assert {name: float(row["share"]) for name, row in rows.items()} == {
        "random 0": 0.0, "unsure 0.5": 0.5, "random 1": 1.0,
    }  # fmt: skip
    assert float(rows["unsure 0.5"]["over everybody"]) == pytest.approx(0.01)
    assert float(rows["random 0"]["over everybody"]) == pytest.approx(-0.05)
    assert float(rows["random 1"]["kl"]) == pytest.approx(math.exp(-0.5) - 1 + 0.5, abs=1e-4)
    assert rows["random 1"]["over everybody"] == "" and rows["random 1"]["quality by seed"] == "0.400 0.600"
    assert (tmp_path / "r" / "policies.png").stat().st_size > 1000
    # what is done is not done again; the most telling arms come first, seed by seed
    assert len(calls) == 2 * (len(trained.policy_arms()) - 3)
    folders = [Path(word.partition("=")[2]).name for call in calls for word in call if word.startswith("hydra.run.dir")]
    assert folders[:2] == ["policy-unsure_0.25-0", "policy-random_0.25-0"] and folders[-1] == "policy-surest_0.75-1"
    assert all(call[-1] == "scale=tiny" and "method=dpo" in call for call in calls)
    assert "left out, because it did not finish: policy-certified-1" in capsys.readouterr().out
