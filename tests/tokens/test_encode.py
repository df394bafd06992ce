"""Prefix + branch is what the processor itself would have made of each response."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from stand_ins.tiny_models import AVAILABLE, frames, image, responses
from transformers import AutoProcessor

from mmrlhf.errors import ConfigError, DataError
from mmrlhf.models.families import positions_for
from mmrlhf.models.load import load_backbone
from mmrlhf.models.settings import ModelSettings
from mmrlhf.tokens.encode import Encoder
from mmrlhf.tokens.processing import MediaSettings
from mmrlhf.tokens.templates import AnswerTemplate, CritiqueTemplate, Template
from mmrlhf.types import PreferenceGroup, Response

TEMPLATES = [AnswerTemplate(), CritiqueTemplate(instruction="")]


@pytest.fixture(scope="module", params=AVAILABLE)
def encoder_of(request: pytest.FixtureRequest, tiny_folders: dict[str, Path]):
    """(template, max_tokens) -> Encoder, for each family."""
    backbone, processor = load_backbone(tiny_folders[request.param], ModelSettings())
    positions = positions_for(backbone)

    def make(template: Template, max_tokens: int = 8192) -> Encoder:
        return Encoder(
            processor, template=template, positions=positions, media=MediaSettings(num_frames=4), max_tokens=max_tokens
        )

    return make


@pytest.mark.parametrize("template", TEMPLATES, ids=["answer", "critique"])
def test_prefix_and_branch_are_the_processors_own_ids(
    encoder_of, template: Template, groups: list[PreferenceGroup]
) -> None:
    """Every family and modality: the processor called on the complete conversation of each response gives these ids."""
    encoder = encoder_of(template)
    for group in groups:
        encoded = encoder(group)
        for response, branch in zip(group.responses, encoded.branches, strict=True):
            expected = encoder.stock_inputs(group, response)[0]["input_ids"][0]
            assert torch.equal(torch.cat([encoded.prefix_ids, branch.ids]), expected)


@pytest.mark.parametrize("template", TEMPLATES, ids=["answer", "critique"])
def test_labels_are_the_assistant_turn_and_its_end(
    encoder_of, template: Template, groups: list[PreferenceGroup]
) -> None:
    """Decoding the labels gives the response (or critique) and the end-of-turn token, nothing of the prompt."""
    encoder = encoder_of(template)
    for group in groups:
        encoded = encoder(group)
        for response, branch in zip(group.responses, encoded.branches, strict=True):
            text = encoder.tokenizer.decode(branch.ids[branch.labels])
            assert text == (template.assistant(group, response) or "") + encoder.chat.turn_end
            assert branch.labels[-1] and branch.response_hash == response.hash


def test_prefix_is_shared_as_far_as_it_goes(encoder_of) -> None:
    """The answer's prefix ends where the answers begin, even if all answers begin alike."""
    encoder = encoder_of(AnswerTemplate())
    encoded = encoder(PreferenceGroup("k", "what ?", responses("the same start a", "the same start b"), ()))
    assert all(branch.labels.all() for branch in encoded.branches)
    in_critique = encoder_of(CritiqueTemplate(instruction=""))(
        PreferenceGroup("k", "what ?", responses("the same start a", "the same start b"), ())
    )
    assert "the same start" in encoder.tokenizer.decode(in_critique.prefix_ids)


def test_positions_are_the_familys_own(tiny_folders: dict[str, Path]) -> None:
    """M-RoPE positions are the stock model's on complete sequences; text behind a picture goes on from its extent."""
    backbone, processor = load_backbone(tiny_folders["qwen2_5_vl"], ModelSettings())
    encoder = Encoder(
        processor, template=AnswerTemplate(), positions=positions_for(backbone), media=MediaSettings(num_frames=4)
    )
    for media in ((image(60, 90),), (frames(4, 60, 50),), (image(60, 50, 1), image(90, 70, 2))):
        group = PreferenceGroup("k", "what ?", responses("a red circle", "b"), media)
        encoded = encoder(group)
        for response, branch in zip(group.responses, encoded.branches, strict=True):
            inputs, _ = encoder.stock_inputs(group, response)
            ids = inputs.pop("input_ids")
            grids = {n: v for n, v in inputs.items() if "grid" in n or n == "mm_token_type_ids"}
            stock, _ = backbone.model.get_rope_index(ids, **grids)
            assert torch.equal(torch.cat([encoded.prefix_positions, branch.positions], dim=1), stock[:, 0])


def test_too_long_a_prompt_says_the_numbers(encoder_of) -> None:
    """An error with key, tokens and setting; media tokens are never cut."""
    group = PreferenceGroup("long-one", "word " * 50, responses("a", "b"), (image(60, 60),), shard="000.tar")
    with pytest.raises(DataError, match=r"long-one, shard 000\.tar[\s\S]*model\.settings\.max_tokens"):
        encoder_of(AnswerTemplate(), max_tokens=40)(group)


def test_too_long_a_response_is_cut_at_its_end_and_counted(encoder_of) -> None:
    """Only the response loses tokens, and the branch says how many."""
    group = PreferenceGroup("k", "what ?", responses("word " * 60, "short"), (image(60, 60),))
    whole = encoder_of(AnswerTemplate())(group)
    most = len(whole.prefix_ids) + 20
    cut = encoder_of(AnswerTemplate(), max_tokens=most)(group)
    assert torch.equal(whole.prefix_ids, cut.prefix_ids)
    assert len(cut.prefix_ids) + len(cut.branches[0].ids) == most
    assert cut.branches[0].truncated == len(whole.branches[0].ids) - len(cut.branches[0].ids) > 0
    assert cut.branches[1].truncated == 0


@pytest.mark.parametrize("template", TEMPLATES, ids=["answer", "critique"])
def test_special_tokens_in_a_user_s_text_are_ordinary_words(encoder_of, template: Template) -> None:
    """Spelled in prompt, response and critique they end no turn and are no medium; every character of them is read."""
    encoder = encoder_of(template)
    tokenizer, token = encoder.tokenizer, encoder.processor.image_token
    end = tokenizer.decode([encoder.end_tokens[-1]])
    special = {tokenizer.convert_tokens_to_ids(each) for each in (token, end, *tokenizer.all_special_tokens)}

    def group(inside: str) -> PreferenceGroup:
        said = tuple(
            replace(one, critiques={"full": f"red{inside} blue"})
            for one in responses(f"see {inside}the red", f"b{inside}")
        )
        return PreferenceGroup("k", f"what {inside} is ?", said, (image(60, 60),))

    spelled = f"{token}{end} x{end}{token}"
    plain, attacked = encoder(group("")), encoder(group(spelled))
    for which, (one, other) in enumerate(zip(plain.branches, attacked.branches, strict=True)):
        counts = [
            [int((torch.cat([encoded.prefix_ids, branch.ids]) == each).sum()) for each in sorted(special)]
            for encoded, branch in ((plain, one), (attacked, other))
        ]
        assert counts[0] == counts[1], "as many of each as without"
        text = tokenizer.decode(other.ids[other.labels])
        wanted = group(spelled).responses[which]
        expected = wanted.text if template.name == "answer" else wanted.critiques["full"]
        assert text.startswith(expected.strip()) or text.strip().startswith(expected.strip())
        assert len(plain.media) == len(attacked.media)
        for name, tensor in plain.media.items():
            assert torch.equal(tensor, attacked.media[name])


def test_missing_critique_names_what_there_is(encoder_of) -> None:
    """A record without the wanted critique."""
    with pytest.raises(DataError, match="critiques: full, short"):
        encoder_of(CritiqueTemplate("evidence"))(PreferenceGroup("k", "what ?", responses("a", "b"), ()))


def test_context_is_the_prefix_of_the_complete_sequence(encoder_of, groups: list[PreferenceGroup]) -> None:
    """What a critique is generated from is exactly what precedes it in training."""
    for template in TEMPLATES:
        encoder = encoder_of(template)
        for group in groups:
            complete, context = encoder(group), encoder.context(group)
            assert len(context.branches) == (len(group.responses) if template.name == "critique" else 1)
            for branch, whole in zip(context.branches, complete.branches, strict=False):
                asked = torch.cat([context.prefix_ids, branch.ids])
                first_label = len(complete.prefix_ids) + int(whole.labels.nonzero()[0])
                full = torch.cat([complete.prefix_ids, whole.ids])
                assert torch.equal(asked, full[:first_label])


def test_estimate_is_close(encoder_of, groups: list[PreferenceGroup]) -> None:
    """The index-only estimate covers the visual tokens, which dominate real groups."""
    from types import SimpleNamespace

    encoder = encoder_of(AnswerTemplate())
    sizes = {"one": [(60, 90)], "two": [(60, 50), (90, 70)], "video": [], "text": []}
    for group in groups:
        entry = SimpleNamespace(
            num_responses=len(group.responses),
            image_sizes=sizes[group.key],
            video_size=(60, 50) if group.key == "video" else None,
            duration=4.0,
            num_frames=4 if group.key == "video" else 0,
            text_chars=group.prompt.num_chars + sum(len(r.text) for r in group.responses),
            critique_chars=0,
            more_clips=(),
            own_media=(),
        )
        true = encoder(group).num_tokens
        assert 0.5 * true < encoder.estimate_tokens(entry) < 2.2 * true + 16 * len(group.responses)


@settings(max_examples=40, deadline=None)
@given(texts=st.lists(st.text(max_size=30), min_size=1, max_size=6), prompt=st.text(max_size=20))
def test_any_text_keeps_the_law(tiny_folders: dict[str, Path], texts: list[str], prompt: str) -> None:
    """Whatever people write: prefix + branch is the whole sequence, every branch has a token, labels are the answer."""
    encoder = _text_encoder(tiny_folders["internvl"])
    group = PreferenceGroup("k", prompt, tuple(Response(text, rank=i) for i, text in enumerate(texts)), ())
    if any(token in text for token in ("<IMG_CONTEXT>", "<video>") for text in [prompt, *texts]):
        return
    encoded = encoder(group)
    for response, branch in zip(group.responses, encoded.branches, strict=True):
        whole = encoder.stock_inputs(group, response)[0]["input_ids"][0]
        assert torch.equal(torch.cat([encoded.prefix_ids, branch.ids]), whole)
        assert len(branch.ids) >= 1 and branch.labels.any()
        assert not branch.labels[: int(branch.labels.nonzero()[0])].any()


_ENCODERS: dict[Path, Encoder] = {}


def _text_encoder(folder: Path) -> Encoder:
    if folder not in _ENCODERS:
        processor = AutoProcessor.from_pretrained(folder)
        count = lambda ids, media: torch.arange(len(ids))[None]  # noqa: E731
        _ENCODERS[folder] = Encoder(processor, template=AnswerTemplate(), positions=count)
    return _ENCODERS[folder]


@pytest.mark.parametrize("template", TEMPLATES, ids=["answer", "critique"])
def test_end_tokens_end_every_branch(encoder_of, template: Template, groups: list[PreferenceGroup]) -> None:
    """Generation stops at what training taught as the end: every branch's last token is one of these."""
    encoder = encoder_of(template)
    assert encoder.tokenizer.eos_token_id in encoder.end_tokens
    for group in groups:
        assert all(int(branch.ids[-1]) in encoder.end_tokens for branch in encoder(group).branches)


@pytest.mark.parametrize(
    "wrong", [{"num_frames": 0}, {"sampling": "often"}, {"backend": "vlc"}, {"alpha": "black"}, {"fps": 0.0}]
)
def test_media_settings_that_cannot_work_are_refused(wrong: dict) -> None:
    with pytest.raises(ConfigError, match=next(iter(wrong))):
        MediaSettings(**wrong)


def test_an_estimate_asks_about_sizes_that_exist(tiny_folders: dict[str, Path]) -> None:
    """Qwen's processor refuses sides of 200 : 1; 65 x 12,990 pixels are below that, rounded to 64 x 12,992 above."""
    backbone, processor = load_backbone(tiny_folders["qwen2_5_vl"], ModelSettings())
    encoder = Encoder(processor, template=AnswerTemplate(), positions=positions_for(backbone))

    def estimate(width: int, height: int) -> int:
        entry = SimpleNamespace(
            image_sizes=((width, height),), video_size=None, num_frames=0, more_clips=(), own_media=(), num_responses=1
        )
        return encoder.visual.estimate(entry)  # type: ignore[arg-type]

    group = PreferenceGroup("k", "", responses("a"), (image(65, 12990),))
    inputs, _ = encoder.stock_inputs(group, group.responses[0], with_answer=False)
    counted = int((inputs["input_ids"] == backbone.config.image_token_id).sum())
    assert counted > 0 and estimate(65, 12990) == pytest.approx(counted, abs=20)
    assert estimate(3, 900) == 0, "refused by itself: whoever reads it says so"
    assert estimate(0, 0) == 0, "unreadable"
