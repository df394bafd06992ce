"""Expanders: recorded answers, a stand-in endpoint that is busy at first, a tiny local model."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path

import pytest
from stand_ins.chat_endpoint import chat_server
from transformers import Qwen2Config, Qwen2ForCausalLM, Qwen2Tokenizer

from mmrlhf.endpoints.completions import CUT
from mmrlhf.errors import DataError, ModelError
from mmrlhf.expansion.expanders import EndpointExpander, Expander, LocalExpander, RecordedExpander
from mmrlhf.expansion.request import Request

REQUESTS = [Request(f"k{i}", f"h{i}", f"expand reason {i} please", "reason", ("reason",)) for i in range(5)]


def texts(expander: Expander, requests: Sequence[Request]) -> list[str]:
    """The answers in the order of the requests; none may have a problem."""
    found = {request.digest: answer for request, answer in expander.expand(requests)}
    assert not any(answer.problem for answer in found.values())
    return [found[request.digest].text for request in requests]


def test_an_endpoint_is_asked_for_a_critique_of_that_length() -> None:
    with chat_server() as server:
        expander = EndpointExpander(server.url, "big", max_tokens=7)
        assert texts(expander, REQUESTS) == [request.prompt for request in REQUESTS]
        assert expander.name == "endpoint: big"
        assert (server.seen[0][2]["max_tokens"], server.seen[0][2]["temperature"]) == (7, 0)


def test_recorded_answers(tmp_path: Path):
    path = tmp_path / "answers.jsonl"
    path.write_text("".join(json.dumps({"digest": r.digest, "text": r.key}) + "\n" for r in REQUESTS[:3]))
    expander = RecordedExpander(path)
    assert texts(expander, REQUESTS[:3]) == ["k0", "k1", "k2"]
    with pytest.raises(DataError, match="no recorded expansion"):
        list(expander.expand(REQUESTS))
    path.write_text('{"digest": "a", "text": "b"}\nnot json\n')
    with pytest.raises(DataError, match="cannot be read"):
        RecordedExpander(path)
    with pytest.raises(DataError, match=r"no recorded expansions yet(?s:.)*requests\.jsonl"):
        list(RecordedExpander(tmp_path / "later.jsonl").expand(REQUESTS))


@pytest.fixture(scope="module")
def tiny_writer(tmp_path_factory) -> Path:
    """A random causal language model with a chat template, a few kilobytes."""
    folder = tmp_path_factory.mktemp("writer")
    texts = [request.prompt for request in REQUESTS]
    tokenizer = Qwen2Tokenizer().train_new_from_iterator(texts, vocab_size=300, show_progress=False)
    tokenizer.chat_template = "{% for turn in messages %}{{ turn['role'] + ' ' + turn['content'] }}{% endfor %}"
    config = Qwen2Config(
        vocab_size=len(tokenizer), hidden_size=16, intermediate_size=16, num_hidden_layers=1, num_attention_heads=2,
        num_key_value_heads=2, eos_token_id=tokenizer.eos_token_id, pad_token_id=tokenizer.pad_token_id,
    )  # fmt: skip
    Qwen2ForCausalLM(config).save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder


def test_a_local_model_writes_the_same_alone_and_in_a_batch(tiny_writer):
    requests = [*REQUESTS, Request("k", "h", "expand please please please reason", "reason", ())]
    together, alone = (
        dict(LocalExpander(str(tiny_writer), max_tokens=6, batch_size=size, device="cpu").expand(requests))
        for size in (4, 1)
    )
    assert together == alone and len(together) == 6 and any(answer.text for answer in alone.values())
    assert LocalExpander(str(tiny_writer)).count_tokens("expand reason") >= 2


def test_a_folder_that_is_no_model(tmp_path):
    with pytest.raises(ModelError, match="cannot be loaded"):
        list(LocalExpander(str(tmp_path), device="cpu").expand(REQUESTS[:1]))


def test_what_a_local_model_has_not_ended_is_cut_off(tiny_writer):
    """As an endpoint's is: half a critique is none."""
    expander = LocalExpander(str(tiny_writer), max_tokens=3, device="cpu")
    assert {answer.problem for _, answer in expander.expand(REQUESTS)} == {CUT}
    config = expander._model.generation_config
    config.eos_token_id = list(range(expander._model.config.vocab_size))
    assert {answer.problem for _, answer in expander.expand(REQUESTS)} == {""}, "any word ends it"
