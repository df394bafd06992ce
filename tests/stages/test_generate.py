"""The policy's own answers as unranked responses: distinct, resumable, and ready for the stages that follow."""

from __future__ import annotations

import shutil
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from stand_ins.chat_endpoint import chat_server, said, words_of
from stand_ins.small_data import wanted_word

from mmrlhf.chain.runtime import Runtime
from mmrlhf.errors import ConfigError, DataError
from mmrlhf.inference.policy import Policy
from mmrlhf.inference.settings import PassSettings
from mmrlhf.losses.mmdpo import MMDPO
from mmrlhf.methods.pairing import PairScheme
from mmrlhf.models.settings import ModelSettings
from mmrlhf.responders import checkpoint
from mmrlhf.responders.endpoint import EndpointAnswerer
from mmrlhf.shards.index import Index
from mmrlhf.stages import generate, mmdpo, reference, score
from mmrlhf.tokens.processing import MediaSettings
from mmrlhf.training.settings import Schedule, TrainSettings
from mmrlhf.types import PreferenceGroup, Response

ASKED: Mapping[str, Any] = {
    "holdout": 0.3,
    "num_samples": 3,
    "max_new_tokens": 6,
    "passes": PassSettings(groups_per_batch=1),
}


def answer(
    out: Path, shards: Path, policy: Path | EndpointAnswerer, runtime: Runtime, **changes: Any
) -> dict[str, Any]:
    return generate.run(out, shards=shards, policy=policy, runtime=runtime, judge=wanted_word, **{**ASKED, **changes})


def texts(out: Path) -> dict[str, list[str]]:
    index = Index.load(out / "shards")
    groups = [index.read(row) for row in range(len(index))]
    return {group.key: [response.text for response in group.responses] for group in groups}


def test_answers_are_distinct_and_unranked(
    tmp_path: Path, small_shards: Path, small_policy: Path, runtime: Runtime
) -> None:
    summary = answer(tmp_path, small_shards, small_policy, runtime)
    found = texts(tmp_path)
    assert len(found) == summary["queries"] - summary["queries_without_a_choice"] > 0
    assert all(2 <= len(set(each)) == len(each) <= 3 for each in found.values())
    source, own = Index.load(small_shards), Index.load(tmp_path / "shards")
    for row in range(len(own)):
        group = own.read(row)
        before = next(source.read(i) for i, entry in enumerate(source.entries) if entry.key == group.key)
        assert [media.data for media in group.media] == [media.data for media in before.media]
        assert group.ranked_pairs() == () and len(group.meta["quality"]) == len(group.responses)


def test_a_resumed_run_ends_as_an_uninterrupted_one(
    tmp_path: Path, small_shards: Path, small_policy: Path, runtime: Runtime, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(checkpoint, "BATCHES_PER_WINDOW", 4)
    answer(tmp_path / "whole", small_shards, small_policy, runtime)
    parts = sorted((tmp_path / "whole" / "answers").iterdir())
    assert len(parts) > 2
    (tmp_path / "cut" / "answers").mkdir(parents=True)
    shutil.copy(parts[1], tmp_path / "cut" / "answers")
    answer(tmp_path / "cut", small_shards, small_policy, runtime)
    assert texts(tmp_path / "cut") == texts(tmp_path / "whole")


OTHER_SETTINGS: Mapping[str, Mapping[str, Any]] = {
    "seed: before 0, now 1": {"seed": 1},
    "temperature: before 1.0, now 0.5": {"temperature": 0.5},
    "num_samples: before 3, now 4": {"num_samples": 4},
    "max_new_tokens: before 6, now 5": {"max_new_tokens": 5},
    "queries: before '4 ": {"limit": 3},
    "queries_per_part": {"passes": PassSettings(groups_per_batch=2)},
    "precision": {"passes": PassSettings(groups_per_batch=1, model=ModelSettings(precision="bf16"))},
    "media": {"passes": PassSettings(groups_per_batch=1, media=MediaSettings(num_frames=3))},
}


def test_answers_under_other_settings_are_not_mixed_in(
    tmp_path: Path, small_shards: Path, small_policy: Path, runtime: Runtime, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What an earlier run has left under other settings is refused before a model is loaded."""
    asked = {"limit": 2, "val_limit": 2}
    answer(tmp_path, small_shards, small_policy, runtime, **asked)
    monkeypatch.setattr(Policy, "from_pretrained", lambda *args, **kwargs: pytest.fail("a model was loaded"))
    answer(tmp_path, small_shards, small_policy, runtime, **asked)
    roomier = PassSettings(groups_per_batch=1, token_budget=9000)
    answer(tmp_path, small_shards, small_policy, runtime, **asked, passes=roomier)
    for named, change in OTHER_SETTINGS.items():
        with pytest.raises(DataError, match=rf"a round of answers was made by something else[\s\S]*{named}"):
            answer(tmp_path, small_shards, small_policy, runtime, **{**asked, **change})


def test_answers_of_another_policy_and_damaged_ones_are_refused(
    tmp_path: Path, small_shards: Path, small_policy: Path, other_policy: Path, runtime: Runtime
) -> None:
    answer(tmp_path, small_shards, small_policy, runtime, limit=2, val_limit=2)
    with pytest.raises(DataError, match="policy: before"):
        answer(tmp_path, small_shards, other_policy, runtime, limit=2, val_limit=2)
    before, part = texts(tmp_path), sorted((tmp_path / "answers").iterdir())[0]
    part.write_bytes(part.read_bytes()[:-40])
    with pytest.raises(DataError, match=rf"damaged[\s\S]*{part.name}"):
        answer(tmp_path, small_shards, small_policy, runtime, limit=2, val_limit=2)
    part.unlink()
    answer(tmp_path, small_shards, small_policy, runtime, limit=2, val_limit=2)
    assert texts(tmp_path) == before


def test_the_next_stages_take_them(
    tmp_path: Path, small_shards: Path, small_policy: Path, scalar_model: Path, runtime: Runtime
) -> None:
    """generate -> score -> reference -> mmdpo, ranked by reward alone."""
    answer(tmp_path / "answers", small_shards, small_policy, runtime)
    shards = tmp_path / "answers" / "shards"
    asked: dict[str, Any] = {"shards": shards, "holdout": 0.3, "runtime": runtime}
    scored = score.run(tmp_path / "score", reward_model=scalar_model, **asked)
    assert "annotators" not in scored["heldout"]["accuracy"], "nobody has ranked them"
    reference.run(tmp_path / "reference", policy=small_policy, **asked)
    training = TrainSettings(schedule=Schedule(max_steps=2, groups_per_step=4, token_budget=600, holdout=0.3))
    summary = mmdpo.run(
        tmp_path / "policy",
        shards=shards,
        policy=small_policy,
        objective=MMDPO(),
        pairs=PairScheme(rank_by="reward"),
        rewards=tmp_path / "score" / "rewards",
        reference=tmp_path / "reference" / "logprobs",
        training=training,
        runtime=runtime,
    )
    assert summary["steps"] == 2 and summary["train"]["margin_min"] > 0


@pytest.mark.parametrize(
    ("wrong", "said"), [({"num_samples": 1}, "have to differ"), ({"temperature": 0.0}, "all be the same")]
)
def test_answers_that_cannot_differ_are_refused(wrong: dict, said: str) -> None:
    with pytest.raises(ConfigError, match=said) as caught:
        generate.check_settings({**{"num_samples": 4, "temperature": 1.0}, **wrong})
    assert [caught.value.argument] == list(wrong)


def test_an_endpoint_answers_where_a_policy_does(tmp_path: Path, small_shards: Path, runtime: Runtime) -> None:
    """As many answers as are wanted, each paid once; those of no use are counted, and best_of_n takes the rest."""
    paying = replace(runtime, answers=tmp_path / "paid")
    with chat_server() as server:
        server.says = lambda asked: f"{words_of(asked)} red {asked['seed'] % 2}"
        words = [group.prompt.question for group in Index.load(small_shards)]
        server.always = {words[0]: ("body", said(None, "content_filter"))}
        endpoint = EndpointAnswerer(server.url, "big", pause=0.0)
        summary = answer(tmp_path / "out", small_shards, endpoint, paying)
        assert len(server.seen) == 3 * len(words) and {c["max_tokens"] for _, _, c in server.seen} == {6}
        server.seen = []
        assert answer(tmp_path / "again", small_shards, endpoint, paying) == summary and not server.seen
    assert summary["problems"] == {"filtered": 3} and summary["queries_without_a_choice"] == 1
    groups = list(Index.load(tmp_path / "out" / "shards"))
    assert all([r.text[-5:] for r in group.responses] == ["red 0", "red 1"] for group in groups)
    assert {tuple(group.meta["drawn"]) for group in groups} == {(2, 1)} and len(groups) == len(words) - 1


def test_what_was_said_of_the_responses_before_is_not_said_of_the_answers() -> None:
    meta = {"scene": 1, "quality": [3], "answered_by": [[{"responder": "a"}]], "unanswered": [], "drawn": [1],
            "labels": {"by": "model"}, "annotations": {}, "model_annotations": {}, "annotators": []}  # fmt: skip
    before = PreferenceGroup("k", "?", (Response("old", rank=1),), meta=meta)
    group = generate._with_answers(before, ["new", "other"], [3, 1], None)
    assert group.meta == {"scene": 1, "drawn": [3, 1]} and not group.labelled_by_model
