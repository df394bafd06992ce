"""A query that cannot be used costs every pass and training that query: counted, within one budget, and no other."""

from __future__ import annotations

import json
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from stand_ins.small_data import draw_group, picture

from mmrlhf.errors import DataError, MissingRowError
from mmrlhf.inference import tables
from mmrlhf.inference.reward_model import RewardModel
from mmrlhf.inference.settings import CritiqueSettings, PassSettings
from mmrlhf.losses.mmdpo import MMDPO
from mmrlhf.models.settings import ModelSettings
from mmrlhf.shards.index import Index
from mmrlhf.shards.sidecar import SideCar
from mmrlhf.shards.writer import write_shards
from mmrlhf.stages import evaluate, generate, mmdpo, reference, rewardbench, score, score_file, sft
from mmrlhf.training.settings import Schedule, TrainSettings
from mmrlhf.types import Media, Response

LONG = "query-long"
MODEL = ModelSettings(max_tokens=200)
PASSES = PassSettings(model=MODEL, groups_per_batch=4)
ASKING: dict[str, Any] = {"passes": PASSES, "critiques": CritiqueSettings(max_tokens=4)}


def write(folder: Path, *, long: int = 1) -> Path:
    """Fourteen queries, and some whose prompt alone is longer than the model's context."""
    groups = [draw_group(number) for number in range(14)]
    groups += [replace(groups[number], key=f"{LONG}-{number}", prompt="red " * 400) for number in range(long)]
    write_shards(groups, folder, max_groups_per_shard=5)
    return folder


@pytest.fixture(scope="module")
def shards(tmp_path_factory) -> Path:
    return write(tmp_path_factory.mktemp("with-a-long-one"))


def keys_left_out(summary: dict[str, Any]) -> list[str]:
    return [key for row in summary["quarantined"]["reasons"] for key in row["keys"]]


def test_tables_lack_it_and_training_on_them_goes_without_it(tmp_path, shards, small_policy, critic, runtime) -> None:
    """What the passes left out, training counts and does not look for; any other missing row is an error."""
    scored = score.run(tmp_path / "score", shards=shards, reward_model=critic, holdout=0.3, runtime=runtime, **ASKING)
    asked = reference.run(
        tmp_path / "reference", shards=shards, policy=small_policy, passes=PASSES, holdout=0.3, runtime=runtime
    )
    for summary in (scored, asked):
        assert keys_left_out(summary) == [f"{LONG}-0"]
        assert "longer than the model's context" in summary["quarantined"]["reasons"][0]["reason"]
    tables = {"rewards": tmp_path / "score" / "rewards", "reference": tmp_path / "reference" / "logprobs"}
    for folder in tables.values():
        table = SideCar.load(folder)
        assert len(table.keys()) == 14 and list(table.left_out) == [f"{LONG}-0"]
    training = TrainSettings(model=MODEL, schedule=Schedule(epochs=1, groups_per_step=4, holdout=0.3))
    options = {"shards": shards, "policy": small_policy, "objective": MMDPO(), "training": training}
    trained = mmdpo.run(tmp_path / "mmdpo", **options, **tables, runtime=runtime)
    assert keys_left_out(trained) == [f"{LONG}-0"]
    assert trained["data"]["excluded"]["left out by earlier passes"] == 1
    (tables["rewards"] / next(tables["rewards"].glob("left-out-*.json")).name).unlink()
    with pytest.raises(MissingRowError, match=f"{LONG}-0"):
        # a long context, so that the missing row is what stops it
        wide = replace(training, model=replace(MODEL, max_tokens=4000))
        mmdpo.run(tmp_path / "other", **options | {"training": wide}, rewards=tables["rewards"],
                  reference_from="frozen_copy", runtime=runtime)  # fmt: skip


@pytest.mark.slow
def test_answers_benchmarks_and_rounds_go_without_it(tmp_path, shards, small_policy, critic, runtime) -> None:
    asked = {"shards": shards, "runtime": runtime, "passes": PASSES}
    answers = evaluate.run(
        tmp_path / "evaluate", policy=small_policy, reference=small_policy, reward_model=critic, holdout=1.0,
        max_new_tokens=4, critiques=ASKING["critiques"], **asked,
    )  # fmt: skip
    said = {json.loads(line)["key"] for line in (tmp_path / "evaluate" / "samples.jsonl").read_text().splitlines()}
    assert len(said) == 14 and keys_left_out(answers) == [f"{LONG}-0"]
    written = generate.run(tmp_path / "generate", policy=small_policy, max_new_tokens=4, num_samples=2, **asked)
    assert keys_left_out(written) == [f"{LONG}-0"] and len(Index.load(tmp_path / "generate" / "shards")) <= 14
    ranked = rewardbench.run(
        tmp_path / "bench", reward_model=critic, compare=["given", "no_picture"], critiques=ASKING["critiques"], **asked
    )
    assert keys_left_out(ranked) == [f"{LONG}-0"] and ranked["queries"] == 14


def test_training_knows_it_before_it_starts(tmp_path, shards, small_policy, runtime) -> None:
    """What does not fit is no part of the plan, so no step meets it; `preflight=error` is the end, with its key."""
    training = TrainSettings(model=MODEL, schedule=Schedule(epochs=1, groups_per_step=4, holdout=0.3))
    asked = {"shards": shards, "policy": small_policy, "training": training}
    trained = sft.run(tmp_path / "sft", **asked, runtime=runtime)
    assert keys_left_out(trained) == [f"{LONG}-0"]
    assert trained["data"]["excluded"]["do not fit or are refused"] == 1
    strict = replace(runtime, preflight="error")
    with pytest.raises(DataError, match=f"1 of 15 queries will not fit: {LONG}-0"):
        sft.run(tmp_path / "strict", **asked, runtime=strict)
    with pytest.raises(DataError, match=f"1 of 15 queries will not fit: {LONG}-0"):
        reference.run(tmp_path / "asked", shards=shards, policy=small_policy, passes=PASSES, runtime=strict)
    assert not (tmp_path / "asked" / "logprobs").exists() or not SideCar.load(tmp_path / "asked" / "logprobs").keys()


@pytest.mark.parametrize(("max_damaged", "ends"), [(0.001, True), (0.2, False)])
def test_more_than_the_budget_ends_the_run(tmp_path, small_policy, runtime, max_damaged, ends) -> None:
    shards = write(tmp_path / "shards", long=3)
    runtime = replace(runtime, max_damaged=max_damaged)
    asked = {"shards": shards, "policy": small_policy, "passes": PASSES, "holdout": 0.3, "runtime": runtime}
    if ends:
        with pytest.raises(DataError, match=r"too many queries(?s:.)*at most 1 .runtime.max_damaged"):
            reference.run(tmp_path / "out", **asked)
    else:
        assert reference.run(tmp_path / "out", **asked)["quarantined"]["queries"] == 3


def test_what_a_processor_raises_is_a_reason_with_the_key(tmp_path, tiny_folders, runtime) -> None:
    """A picture of 3 x 900 pixels: Qwen's processor raises ValueError."""
    strip = Media("image", ("0.png",), (picture(np.random.default_rng(0), 900, 3),))
    groups = [draw_group(number) for number in range(6)]
    groups[2] = replace(groups[2], media=(strip,))
    write_shards(groups, tmp_path / "shards", max_groups_per_shard=5)
    summary = reference.run(
        tmp_path / "out",
        shards=tmp_path / "shards",
        policy=tiny_folders["qwen2_5_vl"],
        passes=PASSES,
        holdout=0.3,
        runtime=runtime,
    )
    assert keys_left_out(summary) == ["query-2"]
    assert "processor refuses" in summary["quarantined"]["reasons"][0]["reason"]
    assert len(SideCar.load(tmp_path / "out" / "logprobs").keys()) == 5


def test_a_line_of_a_file_that_does_not_fit_says_so_in_the_results(tmp_path, critic, runtime) -> None:
    rows = [{"prompt": "red ?", "responses": ["yes", "no"]}, {"prompt": "red " * 400, "responses": ["yes"]}]
    (tmp_path / "mine.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    summary = score_file.run(
        tmp_path / "out", responses=tmp_path / "mine.jsonl", reward_model=critic, runtime=runtime, **ASKING
    )
    first, second = (json.loads(line) for line in (tmp_path / "out" / "results.jsonl").read_text().splitlines())
    assert len(first["responses"]) == 2 and "longer than the model's context" in second["left_out"]
    assert summary["quarantined"]["queries"] == 1
    assert summary["responses_shortened"] == 0 and summary["critiques_cut"] in (0, 1, 2)


def test_every_pass_counts_the_responses_that_it_shortened(tmp_path, critic, small_policy, runtime) -> None:
    groups = [draw_group(number) for number in range(6)]
    groups[2] = replace(groups[2], responses=(Response("blue " * 400, 1), *groups[2].responses[1:]))
    write_shards(groups, tmp_path / "shards", max_groups_per_shard=5)
    asked = {"shards": tmp_path / "shards", "runtime": runtime}
    found = [
        reference.run(tmp_path / "reference", policy=small_policy, passes=PASSES, **asked),
        score.run(tmp_path / "score", reward_model=critic, **asked, **ASKING),
        rewardbench.run(tmp_path / "bench", reward_model=critic, **asked, **ASKING),
    ]
    assert [summary["responses_shortened"] for summary in found] == [1, 1, 1]


def test_a_pass_that_goes_on_counts_what_was_cut_before_it_was_stopped(
    tmp_path, critic, small_policy, runtime, monkeypatch
) -> None:
    """The long responses' queries come first, by length; the run that makes the rest finds none of them."""
    monkeypatch.setattr(tables, "SECONDS_BETWEEN_WRITES", -1.0)
    groups = [draw_group(number) for number in range(6)]
    for number in (2, 4):
        groups[number] = replace(groups[number], responses=(Response("blue " * 400, 1), *groups[number].responses[1:]))
    write_shards(groups, tmp_path / "shards", max_groups_per_shard=5)
    asked: dict[str, Any] = {"shards": tmp_path / "shards", "runtime": runtime}
    ways = {
        "reference": (reference, "_ask", partial(reference.run, policy=small_policy, passes=PASSES, **asked)),
        "score": (RewardModel, "score_groups", partial(score.run, reward_model=critic, **asked, **ASKING)),
    }
    for name, (owner, method, run) in ways.items():
        whole = run(tmp_path / f"{name} in one go")
        ask, calls = getattr(owner, method), []

        def stops(*args, ask=ask, calls=calls, **named):
            calls.append(args)
            if len(calls) > 1:
                raise KeyboardInterrupt
            return ask(*args, **named)

        with monkeypatch.context() as patched, pytest.raises(KeyboardInterrupt):
            patched.setattr(owner, method, stops)
            run(tmp_path / name)
        rest = run(tmp_path / name)
        counted = ("queries", "responses", "queries_scored", "responses_scored", "responses_shortened", "critiques_cut")
        assert {each: rest[each] for each in counted if each in rest} == {
            each: whole[each] for each in counted if each in whole
        }
        assert rest["responses_shortened"] == 2
