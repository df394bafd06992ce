"""Expanders: recorded answers, a stand-in endpoint that is busy at first, a tiny local model."""

from __future__ import annotations

import json
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest
from transformers import Qwen2Config, Qwen2ForCausalLM, Qwen2Tokenizer

from mmrlhf.errors import ConfigError, DataError, HubError, ModelError
from mmrlhf.expansion.expanders import EndpointExpander, LocalExpander, RecordedExpander
from mmrlhf.expansion.request import Request

REQUESTS = [Request(f"k{i}", f"h{i}", f"expand reason {i} please", "reason", ("reason",)) for i in range(5)]


class StandIn(BaseHTTPRequestHandler):
    """Says the prompt back; what the server's `trouble` lists comes first."""

    def do_POST(self) -> None:  # noqa: N802 - the name that http.server calls
        content = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        server: EndpointServer = self.server  # type: ignore[assignment]
        server.seen.append((self.path, self.headers.get("Authorization"), content))
        code = server.trouble.pop() if server.trouble else 200
        body = {"choices": [{"message": {"content": f" {content['messages'][0]['content']} "}}]}
        if code == 299:  # an answer without choices
            code, body = 200, {}
        data = json.dumps(body if code == 200 else {"error": "busy"}).encode()
        self.send_response(code)
        self.send_header("Content-Length", str(len(data)))
        self.end_headers()
        self.wfile.write(data)

    def log_message(self, format: str, *args: object) -> None:
        """Keep the test's output clean."""


class EndpointServer(ThreadingHTTPServer):
    seen: list
    trouble: list[int]


@pytest.fixture
def server() -> Iterator[EndpointServer]:
    found = EndpointServer(("127.0.0.1", 0), StandIn)
    found.seen, found.trouble = [], []
    thread = threading.Thread(target=found.serve_forever, args=(0.01,))
    thread.start()
    yield found
    found.shutdown()
    thread.join()
    found.server_close()


def endpoint(server: EndpointServer, **settings) -> EndpointExpander:
    return EndpointExpander(f"http://127.0.0.1:{server.server_port}/v1/", "big", pause=0.0, **settings)


def test_an_endpoint_answers_in_order(server, monkeypatch):
    monkeypatch.setenv("THE_KEY", "secret")
    expander = endpoint(server, key_variable="THE_KEY", max_tokens=7)
    assert expander.expand(REQUESTS) == [request.prompt for request in REQUESTS]
    path, key, content = server.seen[0]
    assert path == "/v1/chat/completions" and key == "Bearer secret"
    assert (content["model"], content["max_tokens"], content["temperature"]) == ("big", 7, 0)
    assert "secret" not in expander.name


def test_without_a_key_none_is_sent(server, monkeypatch):
    monkeypatch.delenv("THE_KEY", raising=False)
    endpoint(server, key_variable="THE_KEY").expand(REQUESTS[:1])
    assert server.seen[0][1] is None


def test_a_busy_endpoint_is_asked_again(server):
    server.trouble = [503, 429]
    assert endpoint(server, concurrency=1).expand(REQUESTS[:2]) == [request.prompt for request in REQUESTS[:2]]
    assert len(server.seen) == 4


@pytest.mark.parametrize(
    ("trouble", "problem"), [([401], "HTTP 401"), ([503] * 9, "after 3 tries"), ([299], "choices")]
)
def test_an_endpoint_that_refuses_is_an_error(server, trouble, problem):
    server.trouble = list(trouble)
    with pytest.raises(HubError, match=problem):
        endpoint(server, retries=2).expand(REQUESTS[:1])


def test_no_endpoint_at_all():
    with pytest.raises(HubError, match="does not answer"):
        EndpointExpander("http://127.0.0.1:9/v1", "big", retries=0).expand(REQUESTS[:1])
    with pytest.raises(ConfigError, match="http"):
        EndpointExpander("file:///etc/passwd", "big")


def test_recorded_answers(tmp_path: Path):
    path = tmp_path / "answers.jsonl"
    path.write_text("".join(json.dumps({"digest": r.digest, "text": r.key}) + "\n" for r in REQUESTS[:3]))
    expander = RecordedExpander(path)
    assert expander.expand(REQUESTS[:3]) == ["k0", "k1", "k2"]
    with pytest.raises(DataError, match="no recorded expansion"):
        expander.expand(REQUESTS)
    path.write_text('{"digest": "a", "text": "b"}\nnot json\n')
    with pytest.raises(DataError, match="cannot be read"):
        RecordedExpander(path)
    with pytest.raises(DataError, match=r"no recorded expansions yet(?s:.)*requests\.jsonl"):
        RecordedExpander(tmp_path / "later.jsonl").expand(REQUESTS)


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
    together = LocalExpander(str(tiny_writer), max_tokens=6, batch_size=4, device="cpu").expand(requests)
    alone = LocalExpander(str(tiny_writer), max_tokens=6, batch_size=1, device="cpu").expand(requests)
    assert together == alone and len(together) == 6
    assert LocalExpander(str(tiny_writer)).count_tokens("expand reason") >= 2


def test_a_folder_that_is_no_model(tmp_path):
    with pytest.raises(ModelError, match="cannot be loaded"):
        LocalExpander(str(tmp_path), device="cpu").expand(REQUESTS[:1])
