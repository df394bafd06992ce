"""The judge's choice among a policy's answers: the curve over n, and the chosen answers as a data set."""

from __future__ import annotations

import csv
import io
import json
from collections import Counter
from functools import partial
from pathlib import Path
from typing import Any

import lightning as L
import numpy as np
import pytest
from stand_ins.small_data import wanted_word

from mmrlhf.chain.runtime import Runtime
from mmrlhf.endpoints.completions import Answer
from mmrlhf.errors import DataError
from mmrlhf.inference.settings import PassSettings
from mmrlhf.reporting.best_answers import Judged, best_of_rows, over_optimised
from mmrlhf.responders.answered import Said, with_answers
from mmrlhf.shards.index import Index
from mmrlhf.shards.sidecar import SideCar, SideCarWriter
from mmrlhf.shards.writer import write_shards
from mmrlhf.stages import best_of_n, generate, score, sft
from mmrlhf.summaries.evaluations import BestOfNSummary
from mmrlhf.training.settings import Schedule, TrainSettings
from mmrlhf.types import PreferenceGroup

SAMPLES = 6


@pytest.fixture(scope="module")
def answered(tmp_path_factory: pytest.TempPathFactory, small_shards: Path, small_policy: Path, scalar_model: Path):
    """Six answers to each query, and the judge's rewards; (answers, rewards, what every query was answered)."""
    folder = tmp_path_factory.mktemp("best")
    runtime = Runtime(trainer=partial(L.Trainer, accelerator="cpu"), progress=False)
    asked: dict[str, Any] = {"passes": PassSettings(groups_per_batch=8), "holdout": 0.4, "runtime": runtime}
    generate.run(
        folder / "answers", shards=small_shards, policy=small_policy, judge=wanted_word, num_samples=SAMPLES,
        least_distinct=1, max_new_tokens=2, temperature=0.4, **asked,
    )  # fmt: skip
    shards = folder / "answers" / "shards"
    score.run(folder / "score", shards=shards, reward_model=scalar_model, **asked)
    return shards, folder / "score" / "rewards"


def chosen(out: Path) -> dict[str, list[str]]:
    index = Index.load(out / "shards")
    groups = [index.read(row) for row in range(len(index))]
    return {group.key: [response.text for response in group.responses] for group in groups}


def test_every_query_keeps_its_best_answer(tmp_path: Path, answered, runtime: Runtime) -> None:
    shards, rewards = answered
    summary = best_of_n.run(tmp_path, shards=shards, rewards=rewards, holdout=0.4, runtime=runtime)
    index, table = Index.load(shards), SideCar.load(rewards)
    groups = [index.read(row) for row in range(len(index))]
    found = {group.key: table.lookup(group.key, [r.hash for r in group.responses])["reward"] for group in groups}
    best = {group.key: [group.responses[int(found[group.key].argmax())].text] for group in groups}
    assert chosen(tmp_path) == best and len(best) == summary["queries"] > 5
    assert any(len(group.responses) < sum(group.meta["drawn"]) for group in groups), "some answers came twice"
    content = json.loads((tmp_path / "metrics.json").read_text())
    assert BestOfNSummary.from_json(content, where="here").to_json() == summary == content


def test_the_curve_begins_at_the_mean_answer_and_ends_at_the_best(tmp_path: Path, answered, runtime: Runtime) -> None:
    shards, rewards = answered
    summary = best_of_n.run(tmp_path, shards=shards, rewards=rewards, holdout=0.4, runtime=runtime)
    index, table = Index.load(shards), SideCar.load(rewards)
    mean, most, truth = [], [], []
    for row in index.split("heldout", 0.4):
        group = index.read(int(row))
        values = table.lookup(group.key, [response.hash for response in group.responses])["reward"].numpy()
        mean.append(np.average(values, weights=group.meta["drawn"]))
        truth.append(np.average(group.meta["quality"], weights=group.meta["drawn"]))
        if sum(group.meta["drawn"]) == SAMPLES:
            most.append(values.max())
    curve = summary["heldout"]
    assert [row["n"] for row in curve] == [1, 2, 4, 6]
    assert curve[0]["reward"]["mean"] == pytest.approx(np.mean(mean), abs=1e-5)
    assert curve[0]["quality"]["mean"] == pytest.approx(np.mean(truth))
    assert curve[-1]["reward"]["mean"] == pytest.approx(np.mean(most), abs=1e-5) and curve[-1]["queries"] == len(most)
    gains = [row["reward_gain"]["mean"] for row in curve]
    assert gains[0] == 0 and gains == sorted(gains) and gains[-1] > 0
    rows = list(csv.DictReader(io.StringIO((tmp_path / "best_of_n.csv").read_text())))
    assert Counter(row["split"] for row in rows) == {"held out": 4, "train": 4}
    page = (tmp_path / "report.html").read_text()
    assert page.count("<svg") == 2 and "true quality" in page


def test_training_takes_the_chosen_answers(tmp_path: Path, answered, small_policy: Path, runtime: Runtime) -> None:
    shards, rewards = answered
    best_of_n.run(tmp_path / "best", shards=shards, rewards=rewards, holdout=0.4, runtime=runtime)
    schedule = Schedule(max_steps=1, groups_per_step=2, holdout=0.4)
    found = sft.run(
        tmp_path / "sft", shards=tmp_path / "best" / "shards", policy=small_policy,
        training=TrainSettings(schedule=schedule), runtime=runtime,
    )  # fmt: skip
    assert found["steps"] == 1


def test_a_least_reward_leaves_poor_answers_out(tmp_path: Path, answered, runtime: Runtime) -> None:
    shards, rewards = answered
    table, index = SideCar.load(rewards), Index.load(shards)
    best = []
    for row in range(len(index)):
        group = index.read(row)
        best.append(float(table.lookup(group.key, [r.hash for r in group.responses])["reward"].max()))
    limit = float(np.median(best))
    best_of_n.run(tmp_path, shards=shards, rewards=rewards, least_reward=limit, runtime=runtime)
    assert len(chosen(tmp_path)) == sum(reward >= limit for reward in best) < len(best)


def test_queries_that_nobody_answered_are_refused(
    tmp_path: Path, answered, small_shards: Path, runtime: Runtime
) -> None:
    with pytest.raises(DataError, match="no answers of a policy"):
        best_of_n.run(tmp_path, shards=small_shards, rewards=answered[1], runtime=runtime)


def test_what_is_known_of_other_answers_does_not_come_with_the_chosen_one(tmp_path: Path, runtime: Runtime) -> None:
    """Whose it is comes with it; what was said about those that it was chosen from, or before them, does not."""
    said = [
        Said("a", 0, Answer("poor")),
        Said("b", 0, Answer("good")),
        Said("b", 1, Answer("")),
        Said("c", 0, Answer("fair")),
    ]
    before = PreferenceGroup(
        "k", "?", (), meta={"scene": 1, "labels": {"by": "model"}, "annotations": {"ranks": [[1]]}}
    )
    group = with_answers(before, said, keep_cut=False, seed=0)
    assert set(group.meta) == {"scene", "answered_by", "drawn", "unanswered"}
    write_shards([group], tmp_path / "answers")
    with SideCarWriter(tmp_path / "rewards", columns=["reward"], fingerprint={}) as table:
        for response in group.responses:
            table.add("k", response.hash, {"reward": {"poor": 0.0, "fair": 1.0, "good": 2.0}[response.text]})
    best_of_n.run(tmp_path / "out", shards=tmp_path / "answers", rewards=tmp_path / "rewards", runtime=runtime)
    best = Index.load(tmp_path / "out" / "shards").read(0)
    assert [response.text for response in best.responses] == ["good"] and set(best.meta) == {"scene", "answered_by"}
    assert [[one["responder"] for one in each] for each in best.meta["answered_by"]] == [["b"]]


def test_a_judge_that_likes_what_is_wrong_is_found_out() -> None:
    """It likes longer answers; the truth is best at middle length. By hand: truth 0, 1, 0 at rewards 0, 1, 2."""
    queries = [Judged(str(n), [0.0, 1.0, 2.0 + n / 100], [6, 1, 1], [0.0, 1.0, 0.1 + n / 1000]) for n in range(20)]
    rows = best_of_rows(queries)
    peak, lost = over_optimised(queries, rows)
    assert [row.n for row in rows] == [1, 2, 4, 8] and rows[-1].reward.mean == pytest.approx(2.095)
    truth = [row.quality.mean for row in rows if row.quality is not None]
    assert truth[0] == pytest.approx((1 + 0.1095) / 8) and peak == rows[int(np.argmax(truth))].n == 4
    assert lost is not None and lost.low is not None and lost.low > 0
    assert lost.mean == pytest.approx(max(truth) - truth[-1])


def test_without_a_known_truth_there_is_none() -> None:
    rows = best_of_rows([Judged("a", [0.0, 1.0], [1, 1], None)])
    assert rows[0].quality is None and over_optimised([], rows) == (None, None) and best_of_rows([]) == []
