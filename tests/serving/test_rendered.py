"""Conversations that trainers send as one text come apart where the response begins, whatever the chat template."""

from __future__ import annotations

from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st
from stand_ins.little_work import little_work
from transformers import AutoProcessor

from mmrlhf.models.random_checkpoints import build_tiny
from mmrlhf.serving.refusals import Refusal
from mmrlhf.serving.rendered import RenderedTurn, as_messages, split_rendered
from mmrlhf.serving.wire import ImagePart, TextPart

RENDERED = {
    "chatml": "<|im_start|>system\nBe brief.<|im_end|>\n<|im_start|>user\n{user}<|im_end|>\n<|im_start|>assistant\n"
    "{answer}<|im_end|>\n",
    "llama3": "<|begin_of_text|><|start_header_id|>system<|end_header_id|>\n\nBe brief.<|eot_id|><|start_header_id|>"
    "user<|end_header_id|>\n\n{user}<|eot_id|><|start_header_id|>assistant<|end_header_id|>\n\n{answer}<|eot_id|>",
    "phi": "<|system|>\nBe brief.<|end|>\n<|user|>\n{user}<|end|>\n<|assistant|>\n{answer}<|end|>\n<|endoftext|>",
    "vicuna": "<s>Be brief. USER: {user} ASSISTANT: {answer}</s>",
}


@pytest.mark.parametrize("name", RENDERED)
@pytest.mark.parametrize("behind", ["", "<pad><pad>", "<|endoftext|>"])
def test_common_templates(name: str, behind: str) -> None:
    text = RENDERED[name].format(user="What is red?", answer="The circle.\nNo square.") + behind
    turns, response = split_rendered(text, None, "query[0]")
    assert [(turn.role, turn.text.strip()) for turn in turns] == [("system", "Be brief."), ("user", "What is red?")]
    assert response == "The circle.\nNo square."


@pytest.mark.parametrize(
    ("text", "before"),
    [
        ("<s>[INST] What? [/INST] A.</s>[INST] And? [/INST] B.</s>", ["What?", "A.", "And?"]),
        ("<bos><start_of_turn>user\nWhat?<end_of_turn>\n<start_of_turn>model\nB.<end_of_turn>\n", ["What?"]),
        ("<|im_start|>User: What?<end_of_utterance>\nAssistant: B.<end_of_utterance>", ["What?"]),
    ],
)
def test_templates_without_a_system_turn(text: str, before: list[str]) -> None:
    turns, response = split_rendered(text, None, "query[0]")
    assert [turn.text.strip() for turn in turns] == before and response.strip() == "B."
    assert [turn.role for turn in turns] == ["user", "assistant", "user"][: len(before)]


@pytest.fixture(scope="module", params=["llava_onevision", "qwen2_5_vl", "gemma3", "idefics3", "llava_next"])
def processor(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory):
    folder: Path = tmp_path_factory.mktemp(request.param)
    build_tiny(request.param, folder, texts=["a b c"] * 20)
    return AutoProcessor.from_pretrained(folder)


plain = st.text(st.characters(codec="utf-8", exclude_characters="<[|]>", exclude_categories=["C"]), min_size=1).map(
    lambda text: f"x{text}x"
)


@given(plain, plain)
def test_what_families_write_is_read_back(processor, user: str, answer: str) -> None:
    """A law over the templates of the families: what is rendered comes apart again, with and without the prompt."""
    turn = {"role": "user", "content": [{"type": "text", "text": user}]}
    reply = {"role": "assistant", "content": [{"type": "text", "text": answer}]}
    prompt = processor.apply_chat_template([turn], tokenize=False, add_generation_prompt=True)
    for text, given_prompt in (
        (processor.apply_chat_template([turn, reply], tokenize=False), None),
        (f"{prompt}{answer}", prompt),
    ):
        turns, response = split_rendered(text, given_prompt, "query[0]")
        assert [(each.role, each.text.strip(" \n")) for each in turns] == [("user", user)]
        assert response.strip(" \n") == answer


def test_a_prompt_says_where_the_response_begins() -> None:
    """Also where the response writes marks of its own, which without the prompt would be turns."""
    prompt = "<|im_start|>user\nWhat?<|im_end|>\n<|im_start|>assistant\n"
    answer = "No.<|im_end|>\n<|im_start|>user\nSay yes<|im_end|>\n<|im_start|>assistant\nYes"
    assert split_rendered(prompt + answer, prompt, "q") == ([RenderedTurn("user", "What?")], answer)
    assert split_rendered("<s>Why? Because.</s>", "Why?", "q") == ([RenderedTurn("user", "Why?")], " Because.")


@pytest.mark.parametrize("text", ["", "plain", "<|im_start|>user\n?<|im_end|>", "<|im_start|>assistant\nno"])
def test_a_text_without_a_beginning_of_the_response_is_refused(text: str) -> None:
    with pytest.raises(Refusal, match="where the response begins"):
        split_rendered(text, None, "query[0]")


def test_pictures_stand_where_their_placeholders_do() -> None:
    text = "<|im_start|>user\nthis <|vision_start|><|image_pad|><|image_pad|><|vision_end|> and <image> ?<|im_end|>\n"
    turns, _ = split_rendered(f"{text}<|im_start|>assistant\nno", None, "q")
    (message,) = as_messages(turns, ["data:a", "data:b"], "q")
    found = [part.text if isinstance(part, TextPart) else part.image_url.url for part in message.content]
    assert found[:4] == ["this", "data:a", "and", "data:b"] and found[4].startswith("?")
    with pytest.raises(Refusal, match="2 pictures stand in the prompt and 1 were sent"):
        as_messages(turns, ["data:a"], "q")
    with pytest.raises(Refusal, match="2 pictures stand in the prompt and 0 were sent"):
        as_messages(turns, None, "q")
    (message,) = as_messages([RenderedTurn("user", "what ?")], ["data:a"], "q")
    assert isinstance(message.content[0], ImagePart)


END = ["<|im_end|>", "</s>", "<pad>", "<|endoftext|>", " ", "\n", "\t"]


@given(plain, st.lists(st.sampled_from(END), max_size=8))
def test_what_ends_a_response_is_taken_off_and_nothing_else(answer: str, behind: list[str]) -> None:
    """White space goes with special tokens, and stays where none is."""
    tail = "".join(behind)
    _, response = split_rendered("<|im_start|>user\n?<|im_end|>\n<|im_start|>assistant\n" + answer + tail, None, "q")
    assert response == (answer if "<" in tail else answer + tail)


@pytest.mark.parametrize("run", [" ", "\n", "</s>", "<pad> ", "<|vision_start|>", "<img>\n\n"])
def test_a_long_run_takes_no_longer_than_other_text(run: str) -> None:
    """Texts are read where every other request waits: a policy that says nothing but line breaks must not stop them."""
    long = f"a{run * 20_000}b"
    with little_work():
        turns, response = split_rendered(RENDERED["chatml"].format(user=long, answer=long), None, "q")
        (_, message) = as_messages(turns, None, "q")
        assert response == long and message.role == "user"
