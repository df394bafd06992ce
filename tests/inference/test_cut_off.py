"""Nothing is cut in silence: the critique has its room, a long response loses its end and is counted, or is refused."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from stand_ins.small_data import draw_group

from mmrlhf.errors import DataError
from mmrlhf.inference import passes, reward_model
from mmrlhf.inference.reward_model import RewardModel
from mmrlhf.inference.settings import CritiqueSettings, PassSettings
from mmrlhf.models.settings import ModelSettings
from mmrlhf.types import PreferenceGroup, Response

CRITIQUE = 24
LONG = "red circle above blue " * 60


def judge_of(folder, *, max_tokens: int, too_long: str = "shorten") -> RewardModel:
    settings = ModelSettings(max_tokens=max_tokens, too_long=too_long)
    asked = PassSettings(model=settings)
    return RewardModel.from_pretrained(folder, asked, CritiqueSettings(max_tokens=CRITIQUE), device="cpu")


@pytest.fixture(scope="module")
def query() -> PreferenceGroup:
    responses = (Response("red", critiques={"full": "no"}), Response(LONG, critiques={"full": "yes"}))
    return replace(draw_group(1).without_media(), responses=responses)


def test_the_request_and_the_critique_s_room_stay(critic, query) -> None:
    judge = judge_of(critic, max_tokens=150)
    context, whole = judge.encoder.context(query), judge.encoder(query)
    for branch in context.branches:
        text = judge.encoder.tokenizer.decode(torch.cat([context.prefix_ids, branch.ids]))
        assert "[Evaluation]:" in text, "what asks for the critique is there"
        assert len(context.prefix_ids) + len(branch.ids) + CRITIQUE <= 150
    short, long = whole.branches
    assert short.truncated == 0 and long.truncated > 0
    assert long.response_hash == query.responses[1].hash, "the table's row is the whole response's"
    assert judge.encoder.tokenizer.decode(long.ids[long.labels]).startswith("yes"), "the critique is whole"


def test_what_is_cut_is_in_the_verdict(critic, query) -> None:
    (short, long) = judge_of(critic, max_tokens=150).score_groups([query])[0]
    assert short.response_cut == 0 < long.response_cut
    with pytest.raises(DataError, match="longer than the model's context"):
        judge_of(critic, max_tokens=150, too_long="refuse").score_groups([query])


def test_the_score_of_a_shortened_response_is_that_of_the_shorter_text(critic, query) -> None:
    """Critique and score are about the same text, and equal those of a caller who shortens it before."""
    judge = judge_of(critic, max_tokens=150)
    cut = judge.encoder.context(query).branches[1].truncated
    offsets = judge.encoder.tokenizer(LONG, add_special_tokens=False, return_offsets_mapping=True)["offset_mapping"]
    text = LONG[: offsets[len(offsets) - cut - 1][1]]
    (_, long) = judge.score_groups([query])[0]
    (_, same) = judge.score_groups([replace(query, responses=(query.responses[0], Response(text)))])[0]
    assert (long.critique, long.reward) == (same.critique, pytest.approx(same.reward, abs=1e-5))
    assert long.response_cut == cut + same.response_cut


def test_a_prompt_that_leaves_no_room_is_refused(critic, query) -> None:
    judge = judge_of(critic, max_tokens=150)
    with pytest.raises(DataError, match=r"150 tokens .model.settings.max_tokens.*kept free"):
        judge.encoder.context(replace(query, prompt="blue " * 200))


def test_critiques_are_stripped_in_training_and_when_written(critic, query) -> None:
    """White space around a critique changes neither tokens nor score (MM-RLHF's release strips it)."""
    judge = judge_of(critic, max_tokens=800)
    padded = tuple(
        replace(response, critiques={"full": f"\n {response.critiques['full']} \n"}) for response in query.responses
    )
    plain, spaced = judge.encoder(query), judge.encoder(replace(query, responses=padded))
    for one, other in zip(plain.branches, spaced.branches, strict=True):
        assert torch.equal(one.ids, other.ids)
    for verdict in judge.score_groups([query])[0]:
        assert verdict.critique == verdict.critique.strip()


@pytest.mark.parametrize("seed", range(6))
def test_a_critique_that_grows_when_it_is_read_again_takes_nothing_from_the_response(
    critic, query, seed, monkeypatch
) -> None:
    """A random model writes parts of characters, each of which is read again as a whole replacement character."""
    judge = judge_of(critic, max_tokens=150)
    judge.critiques = CritiqueSettings(max_tokens=CRITIQUE, temperature=3.0, seed=seed, num_samples=2)
    read = []
    monkeypatch.setattr(
        reward_model,
        "forward_groups",
        lambda model, groups, **rest: read.extend(groups) or forward(model, groups, **rest),
    )
    forward = passes.forward_groups
    context = judge.encoder.context(query)
    verdicts = judge.score_groups([query])[0]
    for place, branch in enumerate(read[0].branches):
        written_on = context.branches[place // 2]
        shown = torch.cat([context.prefix_ids, written_on.ids])
        scored = torch.cat([read[0].prefix_ids, branch.ids])
        assert len(scored) <= 150 and branch.labels[-1], "the whole turn is there"
        assert torch.equal(scored[: len(shown)], shown), "critique and score are about the same text"
    assert [verdict.response_cut for verdict in verdicts] == [each.truncated for each in context.branches]
    assert any(judge.critic.write([query], [context])[0].critique_cut)


def test_a_character_of_several_tokens_is_kept_or_cut_as_a_whole(critic, query) -> None:
    """A response whose end is spelled in pieces is shortened before them."""
    judge = judge_of(critic, max_tokens=150)
    for tail in ("\U0001f99c", "\U0001f99c\U0001f99c word"):
        for words in range(10, 60):
            changed = replace(query, responses=(Response("red " * words + tail),))
            context = judge.encoder.context(changed)
            (branch,) = context.branches
            assert changed.responses[0].text.startswith(branch.shown) and branch.shown
            assert len(context.prefix_ids) + len(branch.ids) + CRITIQUE <= 150
