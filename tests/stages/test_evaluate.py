"""Stage `evaluate`: what is measured about a policy's answers, and that two policies' answers pair up."""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import replace
from math import exp
from pathlib import Path

import pytest
import torch
from stand_ins.chat_endpoint import ChatServer, chat_server, said, words_of
from stand_ins.small_data import wanted_word

from mmrlhf.errors import ConfigError, DataError, HubError
from mmrlhf.inference.policy import Policy
from mmrlhf.inference.settings import CritiqueSettings, PassSettings
from mmrlhf.models.settings import ModelSettings
from mmrlhf.responders.endpoint import EndpointAnswerer
from mmrlhf.shards.index import Index
from mmrlhf.stages import evaluate
from mmrlhf.summaries.evaluations import EvaluateSummary

PASSES, CRITIQUES = PassSettings(groups_per_batch=4), CritiqueSettings(max_tokens=4)
REFUSING = PassSettings(groups_per_batch=4, model=ModelSettings(too_long="refuse"))
ASKING = {"holdout": 0.5, "limit": 6, "max_new_tokens": 6, "passes": PASSES, "critiques": CRITIQUES}


def read_samples(folder: Path) -> list[dict]:
    return [json.loads(line) for line in (folder / "samples.jsonl").read_text().splitlines()]


@pytest.fixture(scope="module")
def folders(tmp_path_factory) -> dict[str, Path]:
    return {name: tmp_path_factory.mktemp(name) for name in ("before", "after")}


@pytest.fixture
def summaries(folders, small_shards, small_policy, other_policy, critic, runtime) -> dict[str, dict]:
    """The policy and another one, both against the policy; finished passes are read back, so this is cheap."""
    return {
        name: evaluate.run(
            folders[name],
            shards=small_shards,
            policy=policy,
            reference=small_policy,
            reward_model=critic,
            judge=wanted_word,
            temperature=1.0,
            num_samples=2,
            **ASKING,
            runtime=runtime,
        )
        for name, policy in (("before", small_policy), ("after", other_policy))
    }


def test_two_policies_answer_the_same_queries(folders, summaries, small_shards):
    before, after = read_samples(folders["before"]), read_samples(folders["after"])
    names = [(row["key"], row["sample"]) for row in before]
    assert names == [(row["key"], row["sample"]) for row in after]
    index = Index.load(small_shards)
    heldout = [index.entries[int(row)].key for row in index.split("heldout", 0.5, 6)]
    assert names == [(key, sample) for key in heldout for sample in (0, 1)]
    assert [row["generation"] for row in before] != [row["generation"] for row in after]


def test_samples_say_everything_about_an_answer(folders, summaries):
    for row in read_samples(folders["after"]):
        assert row["quality"] in (0.0, 1.0)
        assert isinstance(row["reward"], float) and isinstance(row["critique"], str)
        assert row["logprob"] < 0 and row["reference_logprob"] < 0
        assert 0 <= row["num_tokens"] <= 6


def test_the_reference_is_at_distance_zero_from_itself(summaries):
    assert summaries["before"]["kl"]["mean"] == 0.0
    assert "implicit reward" not in summaries["before"]["preference"]["annotators"]
    assert "implicit reward" in summaries["after"]["preference"]["annotators"]
    assert "log-probability" in summaries["before"]["preference"]["truth"]


def test_the_kl_estimate_is_the_mean_log_ratio_of_the_samples(folders, summaries):
    rows = read_samples(folders["after"])
    ratios = [row["logprob"] - row["reference_logprob"] for row in rows]
    kl = summaries["after"]["kl"]
    assert kl["mean"] == pytest.approx(sum(ratios) / len(ratios))
    assert kl["low"] <= kl["mean"] <= kl["high"] and kl["queries"] == 6
    assert summaries["after"]["kl_k3"]["mean"] == pytest.approx(sum(exp(-r) - 1 + r for r in ratios) / len(ratios))
    assert summaries["before"]["kl_k3"]["mean"] == 0.0


def test_means_are_those_of_the_samples(folders, summaries):
    rows = read_samples(folders["after"])
    summary = summaries["after"]
    for name, column in (("quality", "quality"), ("reward", "reward"), ("length", "num_tokens")):
        assert summary[name]["mean"] == pytest.approx(sum(row[column] for row in rows) / len(rows))
    assert set(summary["quality"]["categories"]) == {row["category"] for row in rows}
    assert json.loads((folders["after"] / "metrics.json").read_text()) == json.loads(json.dumps(summary))


def test_log_probabilities_are_those_of_the_sampled_tokens_and_of_no_other(
    folders, summaries, small_shards, other_policy
):
    """Of the stock model on prompt and sampled ids; an end token counts where one was sampled, and only there."""
    policy = Policy.from_pretrained(other_policy, device=torch.device("cpu"))
    index = Index.load(small_shards)
    groups = {group.key: group for group in (index.read(row) for row in range(len(index)))}
    said = json.loads((folders["after"] / "answers.json").read_text())["said"]
    cut = 0
    for key, own in said.items():
        group = groups[key]
        inputs, _ = policy.encoder.stock_inputs(group, group.responses[0], with_answer=False)
        for ids, end, logprob in zip(own["ids"], own["ends"], own["logprob"], strict=True):
            cut += end is None
            answer = torch.tensor([[*ids, *([] if end is None else [end])]])
            whole = {**inputs, "input_ids": torch.cat([inputs["input_ids"], answer], dim=1)}
            whole["attention_mask"] = torch.ones_like(whole["input_ids"])
            with torch.inference_mode():
                scores = policy.model.backbone(**whole).logits.log_softmax(-1)[0, -answer.shape[1] - 1 : -1]
            assert scores.gather(1, answer[0][:, None]).sum().item() == pytest.approx(logprob, abs=1e-3)
    assert summaries["after"]["num_cut_off"] == cut > 0


def test_finished_passes_are_not_run_again(
    folders, summaries, small_shards, small_policy, other_policy, runtime, monkeypatch
):
    def fails(*args, **kwargs):
        raise AssertionError("a model was loaded again")

    monkeypatch.setattr(Policy, "from_pretrained", fails)
    asking = {**ASKING, "temperature": 1.0, "num_samples": 2, "judge": wanted_word, "runtime": runtime}
    again = evaluate.run(folders["after"], shards=small_shards, policy=other_policy, **asking)
    assert again["quality"] == summaries["after"]["quality"]
    assert again["kl"] is None and again["reward"] is None
    with pytest.raises(DataError, match=r"evaluation was made by something else[\s\S]*policy: before"):
        evaluate.run(folders["after"], shards=small_shards, policy=small_policy, **asking)
    for name, changed in (("seed", {"seed": 1}), ("queries", {"limit": 5}), ("too_long", {"passes": REFUSING})):
        with pytest.raises(DataError, match=rf"evaluation was made by something else[\s\S]*{name}: before"):
            evaluate.run(folders["after"], shards=small_shards, policy=other_policy, **{**asking, **changed})


def test_without_judge_reward_model_and_reference_it_still_answers(tmp_path, small_shards, small_policy, runtime):
    summary = evaluate.run(tmp_path, shards=small_shards, policy=small_policy, **ASKING, runtime=runtime)
    assert summary["quality"] is summary["reward"] is summary["kl"] is None
    assert summary["length"]["mean"] > 0 and len(read_samples(tmp_path)) == 6


@pytest.fixture
def endpoint(tmp_path) -> Iterator[tuple[ChatServer, EndpointAnswerer]]:
    with chat_server() as server:
        server.says = lambda asked: f"{words_of(asked).split()[0]} {asked['seed']}"
        yield server, EndpointAnswerer(server.url, "big", pause=0.0, retries=0)


def test_an_endpoint_is_evaluated_as_a_policy_is(tmp_path, small_shards, critic, runtime, endpoint):
    """Quality, reward and length as of any other; what only log-probabilities tell is not there."""
    server, policy = endpoint
    paying = replace(runtime, answers=tmp_path / "paid")
    words = [group.prompt.question for group in Index.load(small_shards)]
    server.always = {word: ("body", said("cut in the", "length")) for word in words[::2]}
    asked = {"shards": small_shards, "policy": policy, "reward_model": critic, "judge": wanted_word, **ASKING}
    summary = evaluate.run(tmp_path / "out", num_samples=2, temperature=0.5, runtime=paying, **asked)
    rows = read_samples(tmp_path / "out")
    assert len(rows) == 12 and len(server.seen) == 12
    assert {row["generation"].rpartition(" ")[2] for row in rows} == {"0", "1", "the"}
    assert summary["quality"]["mean"] == pytest.approx(sum(row["quality"] for row in rows) / 12)
    assert all(isinstance(row["reward"], float) and row["critique"] for row in rows)
    assert summary["kl"] is None and summary["kl_k3"] is None and summary["preference"] == {}
    cut = [row for row in rows if row["generation"] == "cut in the"]
    assert summary["num_cut_off"] == len(cut) == summary["problems"]["cut off"] > 0
    assert {row["num_tokens"] for row in cut} == {6} and all(row["logprob"] is None for row in rows)
    content = json.loads((tmp_path / "out" / "metrics.json").read_text())
    assert EvaluateSummary.from_json(content, where="here").to_json() == content
    server.seen = []
    evaluate.run(tmp_path / "again", num_samples=2, temperature=0.5, runtime=paying, **asked)
    assert not server.seen, "answers are kept by request"
    for changed in ({"options": {"top_p": 0.5}}, {"longest_side": 32}):
        other = {**asked, "policy": replace(policy, **changed)}
        with pytest.raises(DataError, match=next(iter(changed))):  # and not the answers to other requests
            evaluate.run(tmp_path / "out", num_samples=2, temperature=0.5, runtime=paying, **other)


def test_queries_that_an_endpoint_fails_are_left_out_and_many_end_the_stage(tmp_path, small_shards, runtime, endpoint):
    server, policy = endpoint
    paying = replace(runtime, answers=tmp_path / "paid")
    index = Index.load(small_shards)
    heldout = [index.read(int(row)).prompt.question for row in index.split("heldout", 0.5, 6)]
    asked = {"shards": small_shards, "policy": policy, "runtime": paying, **ASKING}
    server.always = {word: ("status", 503) for word in heldout[:2]}
    with pytest.raises(HubError, match=r"2 of 6(?s:.)*HTTP 503"):
        evaluate.run(tmp_path / "many", **asked)
    server.always.popitem()
    summary = evaluate.run(tmp_path / "one", **asked)
    assert summary["queries"] == 5 and summary["quarantined"]["queries"] == 1


def test_an_endpoint_has_no_distance_from_a_reference(tmp_path, small_shards, small_policy, runtime, endpoint):
    with pytest.raises(ConfigError, match="no log-probabilities"):
        evaluate.run(
            tmp_path, shards=small_shards, policy=endpoint[1], reference=small_policy, runtime=runtime, **ASKING
        )


def test_several_answers_that_would_be_the_same_are_refused(tmp_path, small_shards, small_policy, runtime):
    """At temperature 0 two answers were one, twice decoded and twice in the table; said before anything is trained."""
    wrong = {"policy": small_policy, "holdout": 0.5, "num_samples": 2, "temperature": 0.0}
    with pytest.raises(ConfigError, match="all be the same") as caught:
        evaluate.check_settings(wrong)
    assert caught.value.argument == "temperature" and "num_samples=2" in str(caught.value.given)
    with pytest.raises(ConfigError, match="all be the same"):
        evaluate.run(tmp_path / "out", shards=small_shards, runtime=runtime, **wrong)
    assert not (tmp_path / "out").exists()
    evaluate.check_settings({**wrong, "num_samples": 1})
    evaluate.check_settings({**wrong, "temperature": 0.5})
