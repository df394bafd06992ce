"""A policy in Python: it reads as in training, answers as a stock model does, and says how likely an answer is."""

from __future__ import annotations

import io
from dataclasses import asdict
from pathlib import Path

import pytest
import torch
from PIL import Image
from transformers import AutoModelForImageTextToText, AutoProcessor

from mmrlhf import Policy, PreferenceGroup
from mmrlhf.conversation import IMAGE, Conversation
from mmrlhf.errors import ConfigError, DataError
from mmrlhf.inference.question import ask
from mmrlhf.inference.settings import PassSettings
from mmrlhf.models.export import save_policy
from mmrlhf.models.settings import ModelSettings
from mmrlhf.tokens.processing import MediaSettings

QUESTION = "red circle left ?"


@pytest.fixture(scope="module")
def policy(small_policy: Path) -> Policy:
    return Policy.from_pretrained(small_policy, device="cpu")


@pytest.fixture(scope="module")
def image(small_groups: list[PreferenceGroup]) -> bytes:
    return small_groups[1].media[0].data[0]


def _stock(folder: Path, image: bytes) -> tuple[object, dict[str, torch.Tensor]]:
    """The stock model and its own inputs for the question."""
    turns = [{"role": "user", "content": [{"type": "image"}, {"type": "text", "text": QUESTION}]}]
    processor = AutoProcessor.from_pretrained(folder)
    text = processor.apply_chat_template(turns, add_generation_prompt=True)
    pixels = Image.open(io.BytesIO(image)).convert("RGB")
    return AutoModelForImageTextToText.from_pretrained(folder), processor(
        images=[pixels], text=text, return_tensors="pt"
    )


def test_an_answer_is_the_stock_models(policy: Policy, small_policy: Path, image: bytes) -> None:
    model, inputs = _stock(small_policy, image)
    end = policy.encoder.end_tokens
    wanted = model.generate(**inputs, max_new_tokens=12, do_sample=False, eos_token_id=end)  # type: ignore[attr-defined]
    ids = [i for i in wanted[0, inputs["input_ids"].shape[1] :].tolist() if i not in end]
    found = policy.answer(image, QUESTION, max_new_tokens=12)
    assert found and found == policy.encoder.processor.tokenizer.decode(ids, skip_special_tokens=True)


def test_a_response_is_as_likely_as_the_stock_model_says(policy: Policy, small_policy: Path, image: bytes) -> None:
    model, inputs = _stock(small_policy, image)
    tokenizer, answers = policy.encoder.processor.tokenizer, ["red circle", "no blue square above"]
    found = policy.logprob(image, QUESTION, answers)
    assert len(found) == 2
    for text, value in zip(answers, found, strict=True):
        ids = torch.tensor([tokenizer(text, add_special_tokens=False)["input_ids"] + policy.encoder.end_tokens[:1]])
        whole = {**inputs, "input_ids": torch.cat([inputs["input_ids"], ids], 1)}
        whole["attention_mask"] = torch.ones_like(whole["input_ids"])
        with torch.no_grad():
            logits = model(**whole).logits[0, -ids.shape[1] - 1 : -1].log_softmax(-1)  # type: ignore[operator]
        assert value == pytest.approx(float(logits.gather(1, ids.T).sum()), abs=1e-3)


def test_several_answers_are_drawn_from_one_reading(policy: Policy, image: bytes) -> None:
    drawn = policy.answers(image, QUESTION, num_samples=3, max_new_tokens=6, seed=1)
    assert len(drawn) == 3 and len(set(drawn)) > 1
    assert drawn == policy.answers(image, QUESTION, num_samples=3, max_new_tokens=6, seed=1)
    assert drawn != policy.answers(image, QUESTION, num_samples=3, max_new_tokens=6, seed=2)


def test_media_are_read_as_in_training(small_policy: Path, policy: Policy, tmp_path: Path) -> None:
    """The folder says how many frames it was trained with; other settings win where they are given."""
    media = MediaSettings(num_frames=3)
    save_policy(policy.model, policy.encoder.processor, tmp_path, card={"media": asdict(media)})
    assert Policy.from_pretrained(tmp_path, device="cpu").encoder.media == media
    other = MediaSettings(num_frames=5)
    assert Policy.from_pretrained(tmp_path, PassSettings(media=other), device="cpu").encoder.media == other
    assert Policy.from_pretrained(small_policy, device="cpu").encoder.media == MediaSettings()


def test_what_cannot_be_asked_is_said(small_policy: Path, policy: Policy, image: bytes) -> None:
    with pytest.raises(DataError, match="no list of responses"):
        policy.logprob(image, QUESTION, [])
    with pytest.raises(DataError, match="no list of responses"):
        policy.logprob(image, QUESTION, "one text")
    with pytest.raises(ConfigError, match="all be the same"):
        policy.answers(None, "what?", num_samples=2, temperature=0.0)
    with pytest.raises(ConfigError, match="max_new_tokens=0"):
        policy.answer(image, QUESTION, max_new_tokens=0)
    with pytest.raises(DataError, match="image or video cannot be read"):
        policy.answer("nowhere.png", QUESTION)
    short = PassSettings(model=ModelSettings(max_tokens=120))
    with pytest.raises(DataError, match="longer than the model's context"):
        Policy.from_pretrained(small_policy, short, device="cpu").logprob(None, QUESTION, ["red " * 300])


def test_messages_are_asked_as_the_stock_template_says_them(policy: Policy, image: bytes, tmp_path: Path) -> None:
    """Parts that hold a picture, and parts that stand for the given ones, in their order."""
    (tmp_path / "a.png").write_bytes(image)
    other = Image.new("RGB", (60, 40))
    messages = [
        {"role": "system", "content": "be brief"},
        {"role": "user", "content": [{"type": "text", "text": "red ?"}, {"type": "image", "image": other}]},
        {"role": "assistant", "content": "no"},
        {"role": "user", "content": [{"type": "image"}, {"type": "text", "text": QUESTION}]},
    ]
    group = ask(tmp_path / "a.png", messages, ["yes"])
    assert group.prompt.form == "system:t user:ti assistant:t user:it" and group.media[1].data == (image,)
    processor = policy.encoder.processor
    parts = [[{**part, "type": part["type"]} for part in turn["content"]] if isinstance(turn["content"], list) else
             [{"type": "text", "text": turn["content"]}] for turn in messages]  # fmt: skip
    turns = [{"role": turn["role"], "content": content} for turn, content in zip(messages, parts, strict=True)]
    text = processor.apply_chat_template(turns, add_generation_prompt=True)
    pixels = Image.open(io.BytesIO(image)).convert("RGB")
    wanted = processor(images=[[other, pixels]], text=[text], return_tensors="pt")["input_ids"][0]
    context = policy.encoder.context(group)
    assert torch.equal(torch.cat([context.prefix_ids, context.branches[0].ids]), wanted)
    assert policy.answer(image, messages, max_new_tokens=4) == policy.answer(
        [other, image], group.prompt, max_new_tokens=4
    )
    in_front = ask(image, [{"role": "user", "content": QUESTION}], ["yes"])
    assert in_front.prompt == ask(image, QUESTION, ["yes"]).prompt


def test_other_media_than_a_conversation_has_places_for_are_refused(policy: Policy, image: bytes) -> None:
    asked = [{"role": "user", "content": [{"type": "image"}, {"type": "image"}, {"type": "text", "text": "?"}]}]
    with pytest.raises(DataError, match=r"2 images(?s:.)*1 image"):
        policy.answer(image, asked)
    with pytest.raises(DataError, match=r"media(?s:.)*0 \(none\)(?s:.)*1 \(image\)"):
        policy.answer(None, Conversation.about(QUESTION, [IMAGE]))
