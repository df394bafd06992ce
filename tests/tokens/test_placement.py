"""Media stand where a conversation says: our tokens are those of the stock processor on the same messages.

Where a chat template refuses a conversation, or loses a part of it, the query is refused by name.
"""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from stand_ins.tiny_models import AVAILABLE, formed_groups, frames, image, responses

from mmrlhf.conversation import IMAGE, VIDEO, Conversation, Part, Slot, Turn
from mmrlhf.errors import DataError
from mmrlhf.media.damage import DAMAGED, Damage, damaged_only
from mmrlhf.methods.image_conditional import has_media
from mmrlhf.models.families import positions_for
from mmrlhf.models.load import load_backbone
from mmrlhf.models.settings import ModelSettings
from mmrlhf.tokens.encode import Encoder
from mmrlhf.tokens.packing import pack_groups
from mmrlhf.tokens.processing import MediaSettings, decode_media
from mmrlhf.tokens.templates import AnswerTemplate, CritiqueTemplate
from mmrlhf.types import Media, PreferenceGroup

LETTERS = {"u": "user", "a": "assistant", "s": "system"}


def talk(*turns: tuple[str, tuple[Part, ...]]) -> Conversation:
    return Conversation(tuple(Turn(LETTERS[letter], parts) for letter, parts in turns))  # type: ignore[arg-type]


FORMS: dict[str, Conversation] = {
    "front": talk(("u", (IMAGE, "what is it ?"))),
    "middle": talk(("u", ("look at", IMAGE, "and say what it is"))),
    "end": talk(("u", ("what is it ?", IMAGE))),
    "several": talk(("u", (IMAGE, "compare it to", IMAGE, "please"))),
    "two between words": talk(("u", ("first", IMAGE, "then", IMAGE, "what changed ?"))),
    "several turns": talk(("u", (IMAGE, "what ?")), ("a", ("a circle",)), ("u", ("and", IMAGE, "this ?"))),
    "text turns": talk(("u", (IMAGE, "what ?")), ("a", ("a circle",)), ("u", ("sure ?",))),
    "system": talk(("s", ("be brief",)), ("u", (IMAGE, "what ?"))),
    "system, several turns": talk(
        ("s", ("be brief",)), ("u", ("what ?", IMAGE)), ("a", ("a",)), ("u", (IMAGE, "sure ?"))
    ),
    "picture in an answer": talk(("u", ("draw",)), ("a", (IMAGE, "here")), ("u", ("again",))),
    "two questions in a row": talk(("u", (IMAGE, "what ?")), ("u", ("tell me",))),
    "clip in the middle": talk(("u", ("look at", VIDEO, "and", IMAGE, "say"))),
}
# What templates refuse: found by rendering, family by family, and pinned here.
REFUSED = {
    ("llava_next", "picture in an answer"): "it writes 0 of 1 images",
    ("gemma3", "two questions in a row"): "it refuses: Conversation roles must alternate",
}


def make_group(prompt: Conversation, **fields: Any) -> PreferenceGroup:
    media: list[Media] = []
    for number, slot in enumerate(prompt.slots):
        media.append(image(60 + 20 * number, 50, number) if slot == IMAGE else frames(2, 60, 50, number))
    return PreferenceGroup("k", prompt, responses("a red circle", "no"), tuple(media), **fields)


def encoder_of(folder: Path, template: Any = None, **options: Any) -> Encoder:
    backbone, processor = load_backbone(folder, ModelSettings())
    settings = MediaSettings(num_frames=2)
    asked = template or AnswerTemplate()
    return Encoder(processor, template=asked, positions=positions_for(backbone), media=settings, **options)


@pytest.fixture(scope="module")
def encoders(tiny_folders: dict[str, Path]) -> dict[str, Encoder]:
    return {family: encoder_of(tiny_folders[family]) for family in AVAILABLE}


def stock_ids(encoder: Encoder, group: PreferenceGroup) -> torch.Tensor:
    """The stock processor's own `apply_chat_template` of the messages, media inside."""
    shown = encoder.visual.readable(decode_media(group, encoder.media))
    found: list[Any] = []
    for item in shown.shown:
        found += (
            [{"type": "image", "image": each} for each in item]
            if isinstance(item, tuple)
            else [{"type": "video", "video": item.frames}]
        )
    prompt, items = group.prompt.showing(shown.slots), iter(found)
    messages = [
        {
            "role": turn.role,
            "content": [next(items) if isinstance(p, Slot) else {"type": "text", "text": p} for p in turn.parts],
        }
        for turn in prompt.turns
    ]
    output = encoder.processor.apply_chat_template(
        messages, tokenize=True, return_dict=True, return_tensors="pt", add_generation_prompt=True,
        **({"do_sample_frames": False} if shown.clips else {}),
    )  # fmt: skip
    return output["input_ids"][0]


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("family", AVAILABLE)
def test_prefixes_are_the_stock_processors(family: str, form: str, encoders: dict[str, Encoder]) -> None:
    encoder, group = encoders[family], make_group(FORMS[form])
    refused = REFUSED.get((family, form))
    if refused is not None:
        with pytest.raises(DataError, match=rf"key k(?s:.)*{refused}"):
            encoder(group)
        return
    context = encoder.context(group)
    ids = torch.cat([context.prefix_ids, context.branches[0].ids])
    if not context.num_videos:  # the stock loader takes other frames of a clip
        assert torch.equal(ids, stock_ids(encoder, group))
    encoded = encoder(group)
    whole, _ = encoder.stock_inputs(group, group.responses[1])
    assert torch.equal(torch.cat([encoded.prefix_ids, encoded.branches[1].ids]), whole["input_ids"][0])
    # the labels alone are the branches': everything that was asked is read once
    assert len(encoded.prefix_ids) >= len(ids) - 1


@pytest.mark.parametrize("family", AVAILABLE)
def test_special_tokens_in_words_before_a_picture_are_words(family: str, encoders: dict[str, Encoder]) -> None:
    """The processor never sees them; the tokens before and behind the picture are those of the words."""
    encoder = encoders[family]
    placeholder, end = encoder.chat.placeholders[0], encoder.tokenizer.convert_ids_to_tokens(encoder.end_tokens[0])
    words = f"the tokens {placeholder} and {end} are special, as"
    prompt = talk(("u", (words, IMAGE)), ("a", (f"yes {end}",)), ("u", (f"and {placeholder} ?",)))
    quiet = talk(("u", ("the tokens", IMAGE)), ("a", ("yes",)), ("u", ("and",)))
    marked, plain = (encoder.context(make_group(each)) for each in (prompt, quiet))
    ids, others = (torch.cat([each.prefix_ids, each.branches[0].ids]).tolist() for each in (marked, plain))
    shown = encoder.tokenizer.decode(ids)
    assert shown.count(end) == encoder.tokenizer.decode(others).count(end) + 2
    assert shown.replace(" ", "").count(f"and{placeholder}?".replace(" ", "")) == 1
    for token in {*encoder.end_tokens, *encoder.tokenizer.convert_tokens_to_ids(encoder.chat.placeholders)}:
        assert ids.count(token) == others.count(token)


def test_a_critique_shows_the_whole_conversation_with_its_media_in_place() -> None:
    template = CritiqueTemplate(instruction="Judge.", request="[Q]: {question}\n[A]: {response}")
    group = make_group(FORMS["two between words"])
    (turn,) = template.conversation(group, group.responses[0]).turns
    assert turn.parts == ("Judge.\n[Q]: first", IMAGE, "then", IMAGE, "what changed ?\n[A]: a red circle")
    group = make_group(FORMS["system, several turns"])
    (turn,) = template.conversation(group, group.responses[0]).turns
    assert turn.parts == (
        "Judge.\n[Q]: System: be brief\nUser: what ?", IMAGE, "\nAssistant: a\nUser: ", IMAGE,
        "sure ?\n[A]: a red circle",
    )  # fmt: skip
    plain = make_group(FORMS["front"])
    asked = template.conversation(plain, plain.responses[0])
    assert asked == Conversation.about("Judge.\n[Q]: what is it ?\n[A]: a red circle", [IMAGE])
    twice = CritiqueTemplate(instruction="", request="{question} / {response} / {question}")
    (turn,) = twice.conversation(make_group(FORMS["middle"]), group.responses[0]).turns
    assert turn.parts == ("look at", IMAGE, "and say what it is / a red circle / look at<image>and say what it is")


def test_a_judge_reads_what_a_template_refuses_as_a_conversation(tiny_folders: dict[str, Path]) -> None:
    group = make_group(FORMS["two questions in a row"])
    judged = encoder_of(tiny_folders["gemma3"], CritiqueTemplate())(group)
    assert len(judged.branches) == 2 and judged.num_images == 1


@pytest.mark.parametrize("family", ["llava_onevision", "qwen2_5_vl", "gemma3"])
def test_media_of_one_response_are_in_its_branch(family: str, encoders: dict[str, Encoder]) -> None:
    encoder, prompt = encoders[family], talk(("s", ("be brief",)), ("u", ("look at", IMAGE, "what ?")))
    shared = image(60, 50, 1)
    said = [replace(one, media=(image(60, 50, 7),) if number else ()) for number, one in enumerate(responses("a", "b"))]
    group = PreferenceGroup("k", prompt, tuple(said), (shared,))
    encoded = encoder(group)
    tokens = set(encoder.tokenizer.convert_tokens_to_ids(encoder.chat.placeholders))
    assert not tokens & set(encoded.prefix_ids.tolist()) and not encoded.media and not encoded.num_images
    words = encoder.tokenizer.decode(encoded.prefix_ids).replace(" ", "")
    assert "bebrief" in words and ("lookat" in words) == (family != "llava_onevision")
    alone = [encoder(replace(group, responses=(replace(one, media=()),), media=one.media or (shared,))) for one in said]
    for branch, each in zip(encoded.branches, alone, strict=True):
        assert branch.num_images == 1 and torch.equal(branch.media["pixel_values"], each.media["pixel_values"])
        whole = [torch.cat([e.prefix_ids, b.ids]) for e, b in ((encoded, branch), (each, each.branches[0]))]
        assert torch.equal(*whole)
        at = [torch.cat([e.prefix_positions, b.positions], 1) for e, b in ((encoded, branch), (each, each.branches[0]))]
        assert torch.equal(*at)
    asked = encoder.context(group)
    assert len(asked.branches) == 1 and torch.equal(asked.media["pixel_values"], alone[0].media["pixel_values"])


def test_media_of_responses_are_damaged_in_their_branches(tiny_folders: dict[str, Path]) -> None:
    """mDPO's damaged copy of each, beside the original, for the group that has them."""
    encoder = encoder_of(tiny_folders["llava_onevision"], damage=Damage("blank"))
    _, own = formed_groups()
    text = PreferenceGroup("text", Conversation.about("why ?"), responses("a"))
    batch = pack_groups([encoder(text), encoder(own)])
    assert has_media(batch).tolist() == [0, 1] and batch.branch_images == (0, 1, 1, 1)
    for response in (1, 2, 3):
        tensors, pictures = batch.media_of(1, response)
        assert tensors is batch.branch_media[response] and pictures == 1
    for tensors in batch.branch_media[1:]:
        spoilt = damaged_only(tensors)
        assert spoilt.keys() == {name for name in tensors if not name.startswith(DAMAGED)}
        assert spoilt["pixel_values"].unique().numel() < tensors["pixel_values"].unique().numel()


def test_a_query_without_media_of_its_own_cannot_be_asked(encoders: dict[str, Encoder]) -> None:
    said = tuple(replace(one, media=(image(60, 50, n),)) for n, one in enumerate(responses("a", "b")))
    group = PreferenceGroup("k", talk(("u", ("look at", IMAGE, "what ?"))), said)
    assert len(encoders["qwen2_5_vl"](group).branches) == 2
    with pytest.raises(DataError, match=r"key k(?s:.)*given: 0(?s:.)*1 \(image\)(?s:.)*cannot be asked"):
        encoders["qwen2_5_vl"].context(group)
