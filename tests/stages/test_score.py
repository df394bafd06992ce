"""Stage `score` and the Python call: the same numbers by every way of asking, resumable, keyed by query and text."""

from __future__ import annotations

import io
import json
from dataclasses import replace

import numpy as np
import pytest
import torch
from PIL import Image

from mmrlhf.errors import ConfigError, DataError, ModelError
from mmrlhf.inference import tables
from mmrlhf.inference.passes import batches_by_length, forward_groups
from mmrlhf.inference.reward_model import RewardModel
from mmrlhf.inference.scoring import Scoring
from mmrlhf.inference.settings import CritiqueSettings, PassSettings
from mmrlhf.inference.sharing import Ranks
from mmrlhf.shards.index import Index
from mmrlhf.shards.sidecar import SideCar
from mmrlhf.shards.writer import write_shards
from mmrlhf.stages import score
from mmrlhf.tokens.packing import pack_groups
from mmrlhf.types import Response

PASSES, CRITIQUES = PassSettings(groups_per_batch=4), CritiqueSettings(max_tokens=8)
ASKING = {"passes": PASSES, "critiques": CRITIQUES, "holdout": 0.4}


def rewards(table: SideCar, group) -> torch.Tensor:
    return table.lookup(group.key, [response.hash for response in group.responses])["reward"]


@pytest.fixture(scope="module")
def asked(critic) -> RewardModel:
    return RewardModel.from_pretrained(critic, critiques=CRITIQUES, device="cpu")


def test_every_response_gets_a_reward_and_a_critique(tmp_path, small_shards, small_groups, critic, runtime):
    summary = score.run(tmp_path, shards=small_shards, reward_model=critic, **ASKING, runtime=runtime)
    table = SideCar.load(tmp_path / "rewards")
    assert len(table) == sum(len(group.responses) for group in small_groups) == summary["responses_scored"]
    for group in small_groups:
        hashes = [response.hash for response in group.responses]
        assert len(table.texts(group.key, hashes, "critique")) == len(group.responses)
        assert (table.lookup(group.key, hashes)["critique_tokens"] >= 1).all()  # the turn's end counts
    assert summary["writes_critiques"] and json.loads((tmp_path / "metrics.json").read_text()) == summary
    assert table.fingerprint["shards"] == Index.load(small_shards).digest
    for side in ("heldout", "train"):
        for judge in ("annotators", "truth"):
            assert {"reward model", "longer wins", "random"} <= set(summary[side]["accuracy"][judge])
        assert summary[side]["margin"]["reward model"]["std"] > 0


def test_giving_back_the_written_critiques_reproduces_the_rewards(small_groups, asked):
    written = asked.score_groups(small_groups)
    given = [
        replace(
            group,
            responses=tuple(
                replace(response, critiques={"full": verdict.critique})
                for response, verdict in zip(group.responses, verdicts, strict=True)
            ),
        )
        for group, verdicts in zip(small_groups, written, strict=True)
    ]
    again = asked.score_groups(given, critique_source="given")
    for one, other in zip(written, again, strict=True):
        assert [v.critique for v in one] == [v.critique for v in other]
        assert [v.critique_tokens for v in one] == [v.critique_tokens for v in other]
        assert [v.reward for v in one] == pytest.approx([v.reward for v in other], abs=1e-5)


def test_what_was_encoded_ahead_is_not_encoded_again(small_groups, scalar_model, monkeypatch):
    judge = RewardModel.from_pretrained(scalar_model, device="cpu")
    want = [[verdict.reward for verdict in verdicts] for verdicts in judge.score_groups(small_groups)]
    ahead = [judge.encoder(group) for group in small_groups]
    monkeypatch.setattr(judge, "encoder", None)
    found = judge.score_groups(small_groups, ahead)
    assert [[verdict.reward for verdict in verdicts] for verdicts in found] == want


def test_the_batch_a_query_is_in_changes_nothing(small_groups, asked):
    together = asked.score_groups(small_groups)
    for group, verdicts in zip(small_groups, together, strict=True):
        alone = asked.score_groups([group])[0]
        assert [v.critique for v in alone] == [v.critique for v in verdicts]
        assert [v.reward for v in alone] == pytest.approx([v.reward for v in verdicts], abs=1e-4)


def test_rewards_are_those_of_the_training_forward(small_groups, asked):
    """Annotated critiques, one query at a time, through `encode`, `pack_groups` and the model's own call."""
    for group in small_groups[:4]:
        with torch.inference_mode():
            outputs = asked.model(pack_groups([asked.encoder(group)]))
            expected = asked.model.score(outputs)
        found = asked.score_groups([group], critique_source="given")[0]
        assert [v.reward for v in found] == pytest.approx(expected.tolist(), abs=1e-5)
        assert [v.critique_tokens for v in found] == outputs.num_tokens.int().tolist()


def test_the_token_budget_changes_nothing(small_groups, asked):
    encoded = [asked.encoder(group) for group in small_groups]
    one_by_one = forward_groups(asked.model, encoded, token_budget=1)
    together = forward_groups(asked.model, encoded, token_budget=100_000)
    for one, other in zip(one_by_one, together, strict=True):
        assert one.reward is not None and other.reward is not None
        assert torch.allclose(one.reward, other.reward, atol=1e-4)
        assert torch.allclose(one.logprob, other.logprob, atol=1e-3)


def test_the_python_call_gives_what_the_stage_gives(small_groups, asked):
    group = small_groups[1]
    (medium,) = group.media
    texts = [response.text for response in group.responses]
    expected = [(v.reward, v.critique) for v in asked.score_groups([group])[0]]
    by_bytes = asked.score(medium.data[0], group.prompt, texts)
    by_picture = asked.score(Image.open(io.BytesIO(medium.data[0])), group.prompt, texts)
    for found in (by_bytes, by_picture):
        assert [critique for _, critique in found] == [critique for _, critique in expected]
        assert [reward for reward, _ in found] == pytest.approx([reward for reward, _ in expected], abs=1e-4)


def test_the_python_call_takes_paths_videos_and_no_media(tmp_path, asked, shared_data):
    path = tmp_path / "picture.png"
    Image.new("RGB", (60, 60), "red").save(path)
    assert len(asked.score(path, "what colour ?", ["red", "blue"])) == 2
    assert len(asked.score([path, str(path)], "compare", ["same"])) == 1
    assert len(asked.score(None, "say yes", ["yes", "no", "no"])) == 3
    assert len(asked.score(shared_data / "video" / "video_0.mov", "what happens ?", ["left"])) == 1
    with pytest.raises(DataError, match=r"cannot be read\n  where: .*absent\.png"):
        asked.score(tmp_path / "absent.png", "what ?", ["x"])
    with pytest.raises(DataError, match="no list of responses"):
        asked.score(None, "what ?", [])


def test_equal_responses_get_equal_rewards(asked):
    twice = asked.score(None, "say yes", ["yes", "yes"])
    assert twice[0][1] == twice[1][1] and twice[0][0] == pytest.approx(twice[1][0], abs=1e-5)
    mixed = asked.score(None, "say yes", ["yes", "no", "yes"])
    assert mixed[0][1] == mixed[2][1] and mixed[0][0] == pytest.approx(mixed[2][0], abs=1e-5)


def test_a_model_without_critiques_scores_at_once(tmp_path, small_shards, small_groups, scalar_model, runtime):
    summary = score.run(tmp_path, shards=small_shards, reward_model=scalar_model, **ASKING, runtime=runtime)
    table = SideCar.load(tmp_path / "rewards")
    assert summary["critique_source"] == "none"
    direct = RewardModel.from_pretrained(scalar_model, device="cpu")
    for group in small_groups[:3]:
        hashes = [response.hash for response in group.responses]
        assert set(table.texts(group.key, hashes, "critique")) == {""}
        expected = [
            reward for reward, _ in direct.score(_first_image(group), group.prompt, [r.text for r in group.responses])
        ]
        assert rewards(table, group).tolist() == pytest.approx(expected, abs=1e-4)


def _first_image(group):
    return group.media[0].data[0] if group.media else None


def test_a_stopped_run_scores_only_what_is_missing(tmp_path, small_shards, critic, runtime, monkeypatch):
    monkeypatch.setattr(tables, "SECONDS_BETWEEN_WRITES", -1.0)
    ask, seen = RewardModel.score_groups, []

    def stops_after_two_batches(self, groups, *args, **kwargs):
        if len(seen) == 2:
            raise KeyboardInterrupt
        seen.append([group.key for group in groups])
        return ask(self, groups, *args, **kwargs)

    monkeypatch.setattr(RewardModel, "score_groups", stops_after_two_batches)
    with pytest.raises(KeyboardInterrupt):
        score.run(tmp_path, shards=small_shards, reward_model=critic, **ASKING, runtime=runtime)
    again = []

    def asks(self, groups, *args, **kwargs):
        again.extend(group.key for group in groups)
        return ask(self, groups, *args, **kwargs)

    monkeypatch.setattr(RewardModel, "score_groups", asks)
    summary = score.run(tmp_path, shards=small_shards, reward_model=critic, **ASKING, runtime=runtime)
    assert len(again) == 14 - 8 and not set(again) & {key for keys in seen for key in keys}
    assert summary["queries_scored"] == 14, "counts are of the whole pass"
    assert len(SideCar.load(tmp_path / "rewards").keys()) == 14


def test_rewards_of_another_model_are_not_mixed_in(tmp_path, small_shards, critic, scalar_model, runtime):
    score.run(tmp_path, shards=small_shards, reward_model=critic, **ASKING, runtime=runtime)
    with pytest.raises(DataError, match="made by something else"):
        score.run(tmp_path, shards=small_shards, reward_model=scalar_model, **ASKING, runtime=runtime)


def test_annotated_critiques_can_be_compared(tmp_path, small_shards, critic, runtime):
    summary = score.run(
        tmp_path, shards=small_shards, reward_model=critic, compare_given=True, **ASKING, runtime=runtime
    )
    assert {"reward model", "reward model, critique given"} <= set(summary["heldout"]["accuracy"]["annotators"])
    assert "reward model, critique given" not in summary["train"]["accuracy"]["annotators"]


def test_limit_keeps_all_held_out_queries(tmp_path, small_shards, critic, runtime):
    index = Index.load(small_shards)
    score.run(tmp_path, shards=small_shards, reward_model=critic, limit=2, **ASKING, runtime=runtime)
    wanted = [*index.split("heldout", 0.4), *index.split("train", 0.4, 2)]
    assert SideCar.load(tmp_path / "rewards").keys() == {index.entries[int(row)].key for row in wanted}


def test_worker_processes_change_nothing(tmp_path, small_shards, small_groups, critic, runtime):
    for name, workers in (("here", 0), ("workers", 1)):
        score.run(
            tmp_path / name, shards=small_shards, reward_model=critic, **ASKING,
            runtime=replace(runtime, num_workers=workers),
        )  # fmt: skip
    here, there = (SideCar.load(tmp_path / name / "rewards") for name in ("here", "workers"))
    for group in small_groups:
        assert torch.allclose(rewards(here, group), rewards(there, group), atol=1e-5)


def test_what_cannot_be_asked_is_refused(asked, small_policy, small_groups):
    with pytest.raises(ModelError, match="no trained score head"):
        RewardModel.from_pretrained(small_policy)
    with pytest.raises(ConfigError, match="source of critiques"):
        asked.score_groups(small_groups[:1], critique_source="oracle")
    bare = replace(small_groups[0], responses=(Response("a"), Response("b")))
    with pytest.raises(DataError, match="no 'full' critique"):
        asked.score_groups([bare], critique_source="given")


def test_batches_hold_every_row_once_and_similar_lengths():
    rows = list(range(100, 137))
    lengths = [(7 * i) % 37 for i in range(37)]
    batches = batches_by_length(rows, lengths, groups_per_batch=4, batches_per_window=3)
    assert sorted(row for batch in batches for row in batch) == rows
    assert all(len(batch) <= 4 for batch in batches)
    by_row = dict(zip(rows, lengths, strict=True))
    window = [row for batch in batches[:3] for row in batch]
    assert sorted(window) == rows[:12]
    assert [by_row[row] for row in window] == sorted((by_row[row] for row in window), reverse=True)


def test_several_critiques_of_each_response_become_one_reward(small_groups, critic):
    """Sampled critiques differ, so the mean over three is none of a single greedy critique's rewards."""
    settings = CritiqueSettings(max_tokens=6, temperature=1.0, num_samples=3, combine="mean")
    judge = RewardModel.from_pretrained(critic, critiques=settings, device="cpu")
    group = small_groups[1]
    verdicts = judge.score_groups([group])[0]
    assert len(verdicts) == len(group.responses)
    for combine in ("best", "vote"):
        other = RewardModel.from_pretrained(critic, critiques=replace(settings, combine=combine), device="cpu")
        found = other.score_groups([group])[0]
        assert [v.critique for v in found] == [v.critique for v in verdicts], "the same draws"
        given = replace(
            group,
            responses=tuple(
                replace(response, critiques={"full": verdict.critique})
                for response, verdict in zip(group.responses, found, strict=True)
            ),
        )
        behind_kept = [v.reward for v in other.score_groups([given], critique_source="given")[0]]
        if combine == "best":
            assert [v.reward for v in found] == pytest.approx(behind_kept, abs=1e-4)
        else:
            assert sum(v.reward for v in found) == pytest.approx(len(found) / 2)
    equal = judge.score(None, "say yes", ["yes", "yes"])
    assert len(equal) == 2
    with pytest.raises(ConfigError, match="num_samples=3"):
        CritiqueSettings(num_samples=3)


def test_the_table_holds_the_critiques_log_probabilities(tmp_path, small_shards, small_groups, critic, runtime):
    """As the training forward gives them for the written critique."""
    score.run(tmp_path, shards=small_shards, reward_model=critic, **ASKING, runtime=runtime)
    table = SideCar.load(tmp_path / "rewards")
    judge = RewardModel.from_pretrained(critic, device="cpu")
    group = small_groups[2]
    hashes = [response.hash for response in group.responses]
    texts = table.texts(group.key, hashes, "critique")
    given = tuple(replace(r, critiques={"full": text}) for r, text in zip(group.responses, texts, strict=True))
    with torch.inference_mode():
        expected = judge.model(pack_groups([judge.encoder(replace(group, responses=given))])).logprob
    assert torch.allclose(table.lookup(group.key, hashes)["critique_logprob"], expected, atol=1e-3)


def test_ranks_share_every_row_once():
    rows = np.arange(11)
    shares = [Ranks(rank, 3).share(rows).tolist() for rank in range(3)]
    assert sorted(row for share in shares for row in share) == rows.tolist()
    assert Ranks().share(rows).tolist() == rows.tolist() and Ranks().total({"n": 2.0}) == {"n": 2.0}


def test_a_blind_pass_names_responses_by_their_own_pictures(tmp_path, small_groups, scalar_model, runtime, monkeypatch):
    """Two answers of one text to two pictures: without these they score alike, and each is found by its own name.

    Each query is read once to look ahead and once to be scored, and its pictures not at all.
    """
    (medium,) = small_groups[1].media
    own = [Response("yes", rank=n, media=(replace(medium, names=(f"{n}{n}.0.png",)),)) for n in (1, 2)]
    group = replace(small_groups[1], responses=tuple(own), media=())
    write_shards([group, small_groups[2]], tmp_path / "shards")
    index, judge = Index.load(tmp_path / "shards"), RewardModel.from_pretrained(scalar_model, device="cpu")
    scoring = Scoring(index, judge, scalar_model, 4, runtime, blind=True)
    read, reads = Index.read, list[tuple[int, bool]]()

    def counted(self, i, *, media=True):
        reads.append((int(i), media))
        return read(self, i, media=media)

    with monkeypatch.context() as patch:
        patch.setattr(Index, "read", counted)
        scoring.write(tmp_path / "blind", np.arange(2))
    assert sorted(reads) == [(0, False)] * 2 + [(1, False)] * 2
    found = rewards(SideCar.load(tmp_path / "blind"), index.read(0)).tolist()
    alone = judge.score(None, group.prompt.without_media(), ["yes"])[0][0]
    assert found == pytest.approx([alone, alone], abs=1e-4)
