"""Responses in turn as tokens: their orders, where their branches begin, and that all of a query have to fit."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from stand_ins.packed_toy import make_group
from stand_ins.tiny_models import formed_groups, image, responses

from mmrlhf.conversation import IMAGE, Conversation, Turn
from mmrlhf.errors import ConfigError, DataError
from mmrlhf.models.processors import load_processor
from mmrlhf.tensors import EncodedGroup
from mmrlhf.tokens.encode import Encoder
from mmrlhf.tokens.in_turn import drawn_order, in_order, reading_orders
from mmrlhf.tokens.length import shares_of
from mmrlhf.tokens.packing import pack_groups
from mmrlhf.tokens.templates import AnswerTemplate, CritiqueTemplate
from mmrlhf.types import PreferenceGroup

PROMPT = "what is in the picture ?"
ALIKE = responses("a red circle", "a red square", "a red circle above the blue square")


def encoder_of(folder: Path, reading: Any = "in_turn", critique: str = "full", **options: Any) -> Encoder:
    return Encoder(
        load_processor(folder),
        template=options.pop("template", CritiqueTemplate(critique, instruction="judge :")),
        positions=lambda ids, media: torch.arange(len(ids))[None],
        reading=reading,
        **options,
    )


@pytest.fixture(scope="module")
def encoder(tiny_folders: dict[str, Path]) -> Encoder:
    return encoder_of(tiny_folders["llava_onevision"])


@pytest.fixture(scope="module")
def apart(tiny_folders: dict[str, Path]) -> Encoder:
    return encoder_of(tiny_folders["llava_onevision"], "apart")


def named(*hashes: str) -> EncodedGroup:
    group = make_group(1, tuple(float(n) for n in range(len(hashes))))
    branches = tuple(replace(branch, response_hash=name) for branch, name in zip(group.branches, hashes, strict=True))
    return replace(group, branches=branches, in_turn=True)


@given(st.lists(st.sampled_from("abcdefg"), min_size=1, max_size=7), st.randoms())
def test_every_response_stands_once_at_every_place(hashes: list[str], random: Any) -> None:
    """The orders are the same for the same responses however they come; of equal ones the first is read."""
    group, shuffled = named(*hashes), list(hashes)
    random.shuffle(shuffled)
    orders = reading_orders(group, "all")
    texts = [[hashes[number] for number in order] for order in orders]
    assert texts == [[shuffled[number] for number in order] for order in reading_orders(named(*shuffled), "all")]
    assert all(sorted(column) == sorted(set(hashes)) for column in [*texts, *zip(*texts, strict=True)])
    assert all(hashes.index(hashes[number]) == number for order in orders for number in order)
    assert reading_orders(group, "drawn") == orders[:1]


def test_each_step_draws_an_order_of_all_responses() -> None:
    group = named("a", "b", "c", "d", "a")
    drawn = [drawn_order(group, 3, step) for step in range(40)]
    assert all(sorted(order) == list(range(5)) for order in drawn) and len(set(drawn)) > 10
    assert drawn == [drawn_order(group, 3, step) for step in range(40)] != [drawn_order(group, 4, s) for s in range(40)]
    first = [order[0] for order in drawn]
    assert set(first) >= {0, 1, 2, 3}, "each response comes first sometimes"


def test_an_order_takes_everything_along() -> None:
    group = make_group(1, (1, 2, 3))
    turned = in_order(group, (2, 0, 1))
    assert [branch.response_hash for branch in turned.branches] == ["1-2", "1-0", "1-1"]
    assert turned.columns["rank"].tolist() == [3, 1, 2] and set(turned.pairs) == {(1, 2), (1, 0), (2, 0)}
    fewer = in_order(group, (2, 0))
    assert fewer.columns["rank"].tolist() == [3, 1] and fewer.pairs == ((1, 0),)


@pytest.mark.parametrize("critique", ["full", "none"])
def test_branches_begin_with_the_words_that_show_the_response(critique: str, tiny_folders: dict[str, Path]) -> None:
    """However alike responses begin; and prefix + branch is the sequence that it always was."""
    encoder, apart = (encoder_of(tiny_folders["llava_onevision"], how, critique) for how in ("in_turn", "apart"))
    talk = formed_groups()[0]
    odd = PreferenceGroup("odd", "\ue0f6 what \ue0f6 ?", responses("\ue0f6 a", "\ue0f6 b"))
    for group in (PreferenceGroup("one", PROMPT, ALIKE, (image(60, 90),)), talk, odd):
        found, usual = encoder(group), apart(group)
        for branch, same in zip(found.branches, usual.branches, strict=True):
            whole = torch.cat([found.prefix_ids, branch.ids])
            assert torch.equal(whole, torch.cat([usual.prefix_ids, same.ids]))
            assert torch.equal(branch.positions[0], torch.arange(len(found.prefix_ids), len(whole)))
            assert encoder.tokenizer.decode(branch.ids).lstrip().startswith("[LMM Response]:")
        text = encoder.tokenizer.decode(found.prefix_ids).rstrip()
        assert text.endswith("?") and "[LMM Response]" not in text


def test_a_row_goes_on_over_contexts_and_not_over_critiques(encoder: Encoder) -> None:
    group = encoder(PreferenceGroup("one", PROMPT, ALIKE))
    batch = pack_groups([group])
    start, place = len(group.prefix_ids), len(group.prefix_ids)
    for branch in group.branches:
        own = slice(place, place := place + len(branch.ids))
        context = branch.num_context
        assert 0 < context < len(branch.ids) and not branch.labels[:context].any() and branch.labels[context]
        assert batch.position_ids[0, own].tolist() == list(range(start, start + len(branch.ids)))
        assert batch.shared[own].tolist() == [True] * context + [False] * (len(branch.ids) - context)
        start += context
    assert batch.shared[: len(group.prefix_ids)].all() and batch.num_tokens == place


def test_contexts_are_of_every_response_even_of_equal_ones(encoder: Encoder, apart: Encoder) -> None:
    same = PreferenceGroup("one", PROMPT, responses("no", "no"))
    assert len(encoder.context(same).branches) == 2 and len(apart.context(same).branches) == 1


@given(st.lists(st.integers(0, 30), min_size=1, max_size=6), st.integers(-5, 60))
def test_the_longest_give_up_what_is_too_much(lengths: list[int], excess: int) -> None:
    shares = shares_of(excess, lengths)
    left = [length - share for length, share in zip(lengths, shares, strict=True)]
    assert all(share >= 0 for share in shares) and min(left) >= 0
    wanted = min(max(excess, 0), sum(lengths))
    assert wanted <= sum(shares) < wanted + len(lengths)
    assert all(share == 0 or each >= max(left) - 1 for share, each in zip(shares, left, strict=True))


@pytest.mark.parametrize("room", [0, 12])
def test_all_responses_of_a_query_have_to_fit(room: int, tiny_folders: dict[str, Path]) -> None:
    """What is too much comes off the longest ones; what is foreseen is what happens; the short one stays whole."""
    long = " ".join(["red circle"] * 20)
    group = PreferenceGroup("one", PROMPT, responses(long, "no", f"{long} above"))
    roomy = encoder_of(tiny_folders["llava_onevision"], room=room)
    encode = roomy.context if room else roomy
    whole = encode(group)
    needs = len(whole.prefix_ids) + sum(branch.num_context for branch in whole.branches)
    behind = roomy.room if room else max(len(b.ids) - b.num_context for b in whole.branches)
    limit = needs + behind - 11
    tight = encoder_of(tiny_folders["llava_onevision"], room=room, max_tokens=limit)
    found = tight.context(group) if room else tight(group)
    cut = [branch.truncated for branch in found.branches]
    used = len(found.prefix_ids) + sum(branch.num_context for branch in found.branches) + behind
    assert cut[1] == 0 and sum(cut) >= 11 and limit - 3 <= used <= limit
    assert [branch.shown for branch in found.branches][1] == "no"
    refusing = encoder_of(tiny_folders["llava_onevision"], room=room, max_tokens=limit, too_long="refuse")
    with pytest.raises(DataError, match=r"for all responses together \(reading=in_turn\)"):
        refusing.context(group) if room else refusing(group)
    if room:
        text = tight.beginning("so " * 100, tight.room_behind(found, 0))
        given = tuple(
            replace(r, text=b.shown, critiques={"full": text.strip()})
            for r, b in zip(group.responses, found.branches, strict=True)
        )
        again = tight(replace(group, responses=given))
        assert not any(branch.truncated for branch in again.branches), "a written critique always fits"


@pytest.mark.parametrize("critique", ["full", "none"])
@pytest.mark.parametrize(("how", "room"), [("__call__", 0), ("context", 12)])
def test_one_response_that_does_not_fit_is_shortened_as_ever(
    critique: str, how: str, room: int, tiny_folders: dict[str, Path]
) -> None:
    """Nothing stands before it: it keeps what it keeps when it is read apart."""
    alone = PreferenceGroup("one", PROMPT, responses(" ".join(["red circle"] * 20)))

    def encoded(reading: str, **limit: int) -> EncodedGroup:
        return getattr(encoder_of(tiny_folders["llava_onevision"], reading, critique, room=room, **limit), how)(alone)

    limit = encoded("apart").num_tokens + room - 11
    usual, found = (encoded(reading, max_tokens=limit) for reading in ("apart", "in_turn"))
    assert torch.equal(found.prefix_ids, usual.prefix_ids)
    (same,), (branch,) = usual.branches, found.branches
    assert torch.equal(branch.ids, same.ids) and (branch.truncated, branch.shown) == (same.truncated, same.shown)
    assert branch.truncated >= 11 and found.num_tokens + room <= limit


def test_responses_with_media_of_their_own_are_read_apart(encoder: Encoder, apart: Encoder) -> None:
    own = formed_groups()[1]
    for found, usual in ((encoder(own), apart(own)), (encoder.context(own), apart.context(own))):
        assert not found.in_turn and reading_orders(found, "all") == [(0, 1, 2)]
        assert torch.equal(found.prefix_ids, usual.prefix_ids)
        assert all(torch.equal(a.ids, b.ids) for a, b in zip(found.branches, usual.branches, strict=True))


def test_a_request_that_shows_the_response_first_is_refused(tiny_folders: dict[str, Path]) -> None:
    turned = CritiqueTemplate(instruction="", request="{response} answers {question}")
    for template in (turned, AnswerTemplate()):
        with pytest.raises(ConfigError, match="behind a question that all of them share"):
            encoder_of(tiny_folders["llava_onevision"], template=template)


def test_pictures_in_the_question_stay_before_the_responses(encoder: Encoder) -> None:
    asked = Conversation((Turn("user", ("look at", IMAGE, "what ?")),))
    group = encoder(PreferenceGroup("one", asked, ALIKE, (image(50, 40),)))
    token = encoder.tokenizer.convert_tokens_to_ids(encoder.processor.image_token)
    assert (group.prefix_ids == token).any() and not any((b.ids == token).any() for b in group.branches)
