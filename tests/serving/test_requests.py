"""Requests to a real server: answers are the reward model's own, and every bad one gets a status and its field."""

from __future__ import annotations

import base64
import io
import json
import socket
import threading
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import httpx
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image
from stand_ins.clips import make_clip
from stand_ins.served_model import Served, served
from stand_ins.small_data import WORDS

from mmrlhf.conversation import IMAGE, Conversation, Turn
from mmrlhf.serving.limits import Limits
from mmrlhf.types import Media, PreferenceGroup, Response


def png(width: int = 30, height: int = 20, colour: str = "red") -> bytes:
    buffer = io.BytesIO()
    Image.new("RGB", (width, height), colour).save(buffer, "PNG")
    return buffer.getvalue()


def data_address(data: bytes, kind: str = "image/png") -> str:
    return f"data:{kind};base64,{base64.b64encode(data).decode()}"


def picture(data: bytes | str) -> dict[str, Any]:
    return {"type": "image_url", "image_url": {"url": data if isinstance(data, str) else data_address(data)}}


def words(text: str) -> dict[str, Any]:
    return {"type": "text", "text": text}


def asked(*content: Any, responses: Any = ("a red circle", "no"), **more: Any) -> dict[str, Any]:
    return {"messages": [{"role": "user", "content": list(content)}], "responses": list(responses), **more}


def expected(server: Served, prompt: str, responses: list[str], *media: Media) -> list[float]:
    group = PreferenceGroup("k", prompt, tuple(map(Response, responses)), media)
    return [verdict.reward for verdict in server.judge.score_groups([group])[0]]


# ---- good requests


def test_rewards_and_critiques_are_the_models_own(critic_served: Served) -> None:
    responses = ["a red circle", "no", "a red circle"]
    found = critic_served.ask(asked(picture(png()), words("what is there ?"), responses=responses))
    assert found.status_code == 200
    data = found.json()["data"]
    group = PreferenceGroup(
        "k", "what is there ?", tuple(map(Response, responses)), (Media("image", ("0",), (png(),)),)
    )
    verdicts = critic_served.judge.score_groups([group])[0]
    assert [item["reward"] for item in data] == pytest.approx([verdict.reward for verdict in verdicts], abs=1e-4)
    assert [item["critique"] for item in data] == [verdict.critique for verdict in verdicts]
    assert data[0]["critique"] and data[0]["reward"] == data[2]["reward"] != data[1]["reward"]
    assert [item["index"] for item in data] == [0, 1, 2] and data[0]["critique_cut"]


def test_a_clip_is_read(judge_served: Served) -> None:
    clip = make_clip(6)
    part = {"type": "video_url", "video_url": {"url": data_address(clip, "video/mp4")}}
    found = judge_served.ask(asked(part, words("what happens ?"), responses=["left", "right"]))
    media = Media("video", ("0.mp4",), (clip,))
    assert found.status_code == 200, found.text
    rewards = [item["reward"] for item in found.json()["data"]]
    assert rewards == pytest.approx(expected(judge_served, "what happens ?", ["left", "right"], media), abs=1e-4)


def test_a_text_stands_for_one_part(judge_served: Served) -> None:
    plain = {"messages": [{"role": "user", "content": "red ?"}], "responses": ["no"]}
    assert judge_served.ask(plain).json() == judge_served.ask(asked(words("red ?"), responses=["no"])).json()


CONVERSATIONS = {
    "a system turn": [("system", ["be brief"]), ("user", ["red ?"])],
    "a picture between words": [("user", ["this ", IMAGE, " what ?"])],
    "an earlier answer": [("user", [IMAGE, "red ?"]), ("assistant", ["yes"]), ("user", [IMAGE, "and ?"])],
}


@pytest.mark.parametrize("name", CONVERSATIONS)
def test_a_conversation_keeps_its_form(judge_served: Served, name: str) -> None:
    """Turns, and pictures in their places, each its own."""
    colours, media, messages = iter(("red", "blue")), [], []
    for role, parts in CONVERSATIONS[name]:
        content = []
        for part in parts:
            if part == IMAGE:
                media.append(Media("image", ("0",), (png(colour=next(colours)),)))
                content.append(picture(media[-1].data[0]))
            else:
                content.append(words(str(part)))
        messages.append({"role": role, "content": content})
    conversation = Conversation(tuple(Turn(role, tuple(parts)) for role, parts in CONVERSATIONS[name]))
    responses = tuple(map(Response, ("a circle", "no")))
    verdicts = judge_served.judge.score_groups([PreferenceGroup("k", conversation, responses, tuple(media))])[0]
    found = judge_served.ask({"messages": messages, "responses": ["a circle", "no"]})
    rewards = [item["reward"] for item in found.json()["data"]]
    assert rewards == pytest.approx([verdict.reward for verdict in verdicts], abs=1e-4)


def test_a_system_turn_of_a_trainer_counts(judge_served: Served) -> None:
    query = "<|im_start|>system\nbe brief<|im_end|>\n" + chatml("red ?", "no")
    messages = [{"role": "system", "content": "be brief"}, {"role": "user", "content": "red ?"}]
    (want,) = judge_served.ask({"messages": messages, "responses": ["no"]}).json()["data"]
    found = judge_served.ask({"query": [query]}, "/get_reward").json()["rewards"]
    assert found == pytest.approx([want["reward"]], abs=1e-4)
    assert found != pytest.approx(expected(judge_served, "red ?", ["no"]), abs=1e-4)


def chatml(prompt: str, response: str) -> str:
    return f"<|im_start|>user\n{prompt}<|im_end|>\n<|im_start|>assistant\n{response}<|im_end|>"


def test_openrlhf_is_answered_in_its_form(judge_served: Served) -> None:
    """As its client sends it: decoded prompt and response, the prompt beside it, labels that nobody needs."""
    queries = [chatml("red ?", "a red circle"), chatml("blue ?", "no") + "<|endoftext|>"]
    prompts = [query.partition("assistant\n")[0] + "assistant\n" for query in queries]
    want = [*expected(judge_served, "red ?", ["a red circle"]), *expected(judge_served, "blue ?", ["no"])]
    for body in (
        {"query": queries, "prompts": prompts, "labels": ["x", None]},
        {"query": queries},
        {"query": ["red ?\na red circle", "blue ? no"], "prompts": ["red ?", "blue ?"]},
    ):
        found = judge_served.ask(body, "/get_reward")
        assert found.status_code == 200, found.text
        answer = found.json()
        if body is not None and body["query"] == queries:
            assert answer["rewards"] == pytest.approx(want, abs=1e-4)
        assert answer["scores"] == answer["rewards"] and answer["extra_logs"] == {}


def test_openrlhf_queries_may_come_with_pictures(judge_served: Served) -> None:
    query = chatml("<|vision_start|><|image_pad|><|image_pad|><|vision_end|>what ?", "a red circle")
    found = judge_served.ask({"query": [query], "images": [[data_address(png())]]}, "/get_reward")
    want = expected(judge_served, "what ?", ["a red circle"], Media("image", ("0",), (png(),)))
    assert found.json()["rewards"] == pytest.approx(want, abs=1e-4)


def test_llama_factory_is_answered_in_its_form(judge_served: Served) -> None:
    found = judge_served.ask({"model": "model", "messages": [chatml("red ?", "a red circle")]}, "/v1/score/evaluation")
    answer = found.json()
    assert answer["scores"] == pytest.approx(expected(judge_served, "red ?", ["a red circle"]), abs=1e-4)
    assert (answer["object"], answer["model"]) == ("score.evaluation", "model") and answer["id"]


# ---- bad requests

HUGE = png(300, 200)
NOISE = base64.b64encode(bytes(range(256)) * 1000).decode()
BAD = {
    "no messages": ({"responses": ["a"]}, 422, "messages"),
    "no turn": ({"messages": [], "responses": ["a"]}, 422, "messages"),
    "no responses": (asked(words("?"), responses=[]), 422, "responses"),
    "a response that is no text": (asked(words("?"), responses=["a", 3]), 422, "responses[1]"),
    "half of a pair": ('{"messages":[{"role":"user","content":"?"}],"responses":["\\ud800"]}', 422, "responses[0]"),
    "a key that nothing reads": (asked(words("?"), temperature=1), 422, "temperature"),
    "another role": ({"messages": [{"role": "tool", "content": "?"}], "responses": ["a"]}, 422, "messages[0].role"),
    "another kind of part": (asked({"type": "audio"}), 422, "messages[0].content[0]"),
    "a part of the wrong form": (asked({"type": "text", "text": 1}), 422, "messages[0].content[0].text"),
    "an answer as the last turn": ({"messages": [{"role": role, "content": "?"} for role in ("user", "assistant")],
                                    "responses": ["a"]}, 422, "messages[1].role"),
    "too many responses": (asked(words("?"), responses=["a"] * 7), 413, "responses"),
    "too many pictures": (asked(*[picture(png())] * 3), 413, "messages"),
    "too many pixels": (asked(picture(HUGE)), 413, "messages[0].content[0].image_url.url"),
    "too large a picture": (asked(picture(png()), picture(f"data:image/png;base64,{NOISE[:160_000]}")),
                            413, "messages[0].content[1].image_url.url"),
    "no picture": (asked(picture(b"nothing")), 422, "messages[0].content[0].image_url.url"),
    "half a picture": (asked(picture(png()[:60]), words("?")), 422, "messages[0].content[0].image_url.url"),
    "a picture in PostScript": (asked(picture(b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\n")), 422,
                                "messages[0].content[0].image_url.url"),
    "no base64": (asked(picture("data:image/png;base64,???")), 422, "messages[0].content[0].image_url.url"),
    "no base64 address": (asked(picture("data:image/png,abc")), 422, "messages[0].content[0].image_url.url"),
    "a clip as a picture": (asked(picture("data:video/mp4;base64,AAAA")), 422, "messages[0].content[0].image_url.url"),
    "no clip": (asked({"type": "video_url", "video_url": {"url": data_address(b"no", "video/mp4")}}), 422,
                "messages[0].content[0].video_url.url"),
    "a file": (asked(picture("file:///etc/passwd")), 403, "messages[0].content[0].image_url.url"),
    "a path": (asked(picture("/etc/passwd")), 403, "messages[0].content[0].image_url.url"),
    "a host that is not allowed": (asked(picture("http://example.com/a.png")), 403,
                                   "messages[0].content[0].image_url.url"),
    "too long a prompt": (asked(words("red " * 3000)), 422, "messages"),
    "too many tokens": (asked(words("red"), responses=[f"{n} " * 100 for n in range(6)]), 413, "responses"),
    "no JSON": ("{", 400, "body"),
    "a number": ("3", 422, "body"),
    "brackets without end": ("[" * 100_000, 400, None),
    "no UTF-8": (b'{"messages": "\xff"}', 400, None),
    "too large a body": ("[" + "1," * 200_000 + "1]", 413, "body"),
}  # fmt: skip
BAD_OF_TRAINERS = {
    "no marks": ("/get_reward", {"query": [chatml("?", "a"), "plain"]}, 422, "query[1]"),
    "fewer prompts": ("/get_reward", {"query": [chatml("?", "a")] * 2, "prompts": ["?"]}, 422, "prompts"),
    "a picture that was not sent": ("/get_reward", {"query": [chatml("<image>?", "a")]}, 422, "query[0]"),
    "a picture of another place": ("/get_reward", {"query": [chatml("<image>?", "a")], "images": [["http://a/b"]]},
                                   403, "images[0]"),
    "a picture for nobody": ("/get_reward", {"query": ["<|im_start|>system\nbe<|im_end|>\n<|im_start|>assistant\na"],
                                             "images": [[data_address(png())]]}, 422, "query[0]"),
    "too many queries": ("/get_reward", {"query": [chatml("?", "a")] * 6}, 413, "query"),
    "no answer": ("/v1/score/evaluation", {"messages": ["<|im_start|>user\n?<|im_end|>\n"]}, 422, "messages[0]"),
    "a length": ("/v1/score/evaluation", {"messages": [chatml("?", "a")], "max_length": 3}, 422, "max_length"),
    "too long a message": ("/v1/score/evaluation", {"messages": [chatml("red " * 3000, "a")]}, 422, "messages[0]"),
    "no message": ("/v1/score/evaluation", {"messages": []}, 422, "messages"),
}  # fmt: skip


def check_refused(found: httpx.Response, status: int, field: str | None) -> None:
    assert found.status_code == status, found.text
    error = found.json()["error"]
    assert error["param"] == field or field is None
    assert error["message"].startswith(f"{field}: ") or field is None
    assert error["code"] and "\n" not in error["message"] and len(error["message"]) < 500


@pytest.mark.parametrize("name", BAD)
def test_a_bad_request_is_told_which_field(judge_served: Served, name: str) -> None:
    body, status, field = BAD[name]
    content = body if isinstance(body, bytes) else body.encode() if isinstance(body, str) else json.dumps(body).encode()
    headers = {"Content-Type": "application/json"}
    check_refused(judge_served.client.post("/v1/rewards", content=content, headers=headers), status, field)


@pytest.mark.parametrize("name", BAD_OF_TRAINERS)
def test_a_bad_request_of_a_trainer_is_told_which_field(judge_served: Served, name: str) -> None:
    path, body, status, field = BAD_OF_TRAINERS[name]
    check_refused(judge_served.ask(body, path), status, field)


def test_other_paths_methods_and_types_are_refused_in_the_same_form(judge_served: Served) -> None:
    check_refused(judge_served.client.get("/nothing"), 404, None)
    check_refused(judge_served.client.get("/v1/rewards"), 405, None)
    plain = judge_served.client.post("/v1/rewards", content=b"{}", headers={"Content-Type": "text/plain"})
    check_refused(plain, 415, "Content-Type")


@given(st.binary(max_size=300) | st.text(max_size=100).map(str.encode))
@settings(max_examples=25)
def test_whatever_is_sent_is_answered(judge_served: Served, body: bytes) -> None:
    found = judge_served.client.post("/v1/rewards", content=body, headers={"Content-Type": "application/json"})
    assert found.status_code in (400, 422)
    check_refused(found, found.status_code, None)


leaves = st.none() | st.booleans() | st.integers() | st.text(max_size=5) | st.sampled_from(["user", "text", "data:,"])
KEYS = st.sampled_from(["messages", "responses", "role", "content", "type", "text", "image_url", "url", "model"])
trees = st.recursive(leaves, lambda inner: st.lists(inner, max_size=3) | st.dictionaries(KEYS, inner, max_size=4))


@given(
    st.dictionaries(KEYS, trees, max_size=4), st.sampled_from(["/v1/rewards", "/get_reward", "/v1/score/evaluation"])
)
@settings(max_examples=40)
def test_whatever_object_is_sent_is_answered(judge_served: Served, body: dict[str, Any], path: str) -> None:
    found = judge_served.ask(body, path)
    assert found.status_code in (200, 403, 413, 422), found.text
    if found.status_code != 200:
        check_refused(found, found.status_code, None)


# ---- many at once


def test_answers_go_to_whom_they_belong(judge_served: Served) -> None:
    """Good and bad requests at once: every good one gets the rewards that it gets alone."""
    rng = range(24)
    queries = [(f"what is {WORDS[n % 5]} ?", [f"{WORDS[(n * k) % 12]} {k}" for k in range(1, 4)]) for n in rng]
    want = [expected(judge_served, prompt, responses) for prompt, responses in queries]
    bad = [entry for entry in BAD.values() if isinstance(entry[0], dict)]

    def ask(number: int) -> httpx.Response:
        if number % 3 == 2:
            return judge_served.ask(bad[number % len(bad)][0])
        prompt, responses = queries[number // 3]
        return judge_served.ask(asked(words(prompt), responses=responses))

    with ThreadPoolExecutor(12) as pool:
        found = list(pool.map(ask, range(3 * len(queries))))
    for number, answer in enumerate(found):
        if number % 3 == 2:
            assert answer.status_code == bad[number % len(bad)][1]
        else:
            assert answer.status_code == 200
            rewards = [item["reward"] for item in answer.json()["data"]]
            assert rewards == pytest.approx(want[number // 3], abs=1e-4)


def test_a_failing_model_fails_one_query_alone(scalar_model: Path, caplog: pytest.LogCaptureFixture) -> None:
    def failing(judge: Any) -> Any:
        score = judge.score_groups

        def score_groups(groups: Any, *rest: Any) -> Any:
            if any("poison" in group.prompt.question for group in groups):
                raise RuntimeError("out of memory")
            time.sleep(0.05)  # so that others wait for the same batch
            return score(groups, *rest)

        judge.score_groups = score_groups
        return judge

    with served(scalar_model, judge=failing) as server, ThreadPoolExecutor(8) as pool:
        prompts = ["red ?", "poison", "blue ?", "green ?", "poison", "left ?", "right ?", "no ?"]
        found = list(pool.map(lambda prompt: server.ask(asked(words(prompt))), prompts))
        assert [answer.status_code for answer in found] == [500 if prompt == "poison" else 200 for prompt in prompts]
        check_refused(found[1], 500, None)
        assert server.ask(asked(words("red ?"))).json() == found[0].json()
    assert "out of memory" in caplog.text


# ---- limits of the server


@pytest.fixture(scope="module")
def guarded(scalar_model: Path) -> Iterator[Served]:
    """A server that asks for a token, scores slowly, and lets two queries wait and nobody wait for long."""

    def slow(judge: Any) -> Any:
        score = judge.score_groups

        def score_groups(*arguments: Any) -> Any:
            time.sleep(0.5)
            return score(*arguments)

        judge.score_groups = score_groups
        return judge

    limits = Limits(max_waiting=2, timeout=0.9, max_query_tokens=600, body_timeout=0.4, max_held_mib=0.01)
    with served(scalar_model, limits=limits, token="secret", judge=slow) as server:
        yield server


def test_a_token_is_asked_for(guarded: Served) -> None:
    check_refused(guarded.ask(asked(words("?"))), 401, None)
    check_refused(guarded.ask(asked(words("?")), Authorization="Bearer wrong"), 401, None)
    check_refused(guarded.ask({}, Authorization="Bearer secret"), 422, "messages")
    assert guarded.client.get("/health").status_code == guarded.client.get("/metrics").status_code == 200


def test_too_many_are_told_to_come_again_and_late_ones_that_it_took_too_long(guarded: Served) -> None:
    def ask(number: int) -> httpx.Response:
        return guarded.ask(asked(words(f"{number} ?"), responses=["a b " * 120] * 2), Authorization="Bearer secret")

    with ThreadPoolExecutor(12) as pool:
        found = [answer for answer in pool.map(ask, range(12))]
    statuses = {answer.status_code for answer in found}
    assert statuses <= {200, 503, 504} and 503 in statuses and 200 in statuses
    for answer in found:
        if answer.status_code == 503:
            assert answer.headers["Retry-After"] == "1"
    time.sleep(1.0)
    assert ask(0).status_code == 200


def test_memory_for_bodies_is_given_back(guarded: Served) -> None:
    large = asked(words("?"), responses=["a" * 12_000])
    for _ in range(3):
        check_refused(guarded.ask(large, Authorization="Bearer secret"), 503, None)
    assert guarded.service.app._held == 0


def test_a_body_that_drips_is_not_waited_for(guarded: Served) -> None:
    host, port = guarded.url.removeprefix("http://").split(":")
    with socket.create_connection((host, int(port))) as client:
        client.sendall(b"POST /v1/rewards HTTP/1.1\r\nHost: a\r\nContent-Type: application/json\r\n"
                       b"Authorization: Bearer secret\r\nContent-Length: 100\r\n\r\n{")  # fmt: skip
        started = time.monotonic()
        client.settimeout(10)
        assert b"408" in client.recv(1000).splitlines()[0]
        assert time.monotonic() - started < 5


def test_a_client_that_leaves_is_not_worked_for(guarded: Served) -> None:
    host, port = guarded.url.removeprefix("http://").split(":")
    body = json.dumps(asked(words("gone ?"))).encode()
    for _ in range(2):
        with socket.create_connection((host, int(port))) as client:
            head = (
                f"POST /v1/rewards HTTP/1.1\r\nHost: a\r\nContent-Type: application/json\r\nContent-Length: {len(body)}"
            )
            client.sendall(head.encode() + b"\r\nAuthorization: Bearer secret\r\n\r\n" + body)
            time.sleep(0.1)
    time.sleep(1.2)
    assert guarded.client.get("/metrics").text.count('mmrlhf_refusals_total{code="gone"}')


# ---- what the server says of itself


def test_it_describes_itself(judge_served: Served) -> None:
    described = judge_served.client.get("/openapi.json").json()
    assert set(described["paths"]) >= {"/v1/rewards", "/get_reward", "/v1/score/evaluation", "/health", "/ready"}
    page = judge_served.client.get("/docs").text
    assert "http://" not in page and "https://" not in page, "nothing from elsewhere"
    assert len(judge_served.client.get("/docs/swagger-ui-bundle.js").content) > 100_000
    example = described["components"]["schemas"]["RewardRequest"]["example"]
    assert judge_served.ask(example).status_code == 200


def test_it_counts(judge_served: Served) -> None:
    def count(name: str) -> float:
        lines = judge_served.client.get("/metrics").text.splitlines()
        return sum(float(line.rpartition(" ")[2]) for line in lines if line.startswith(name))

    before = {name: count(name) for name in ("mmrlhf_queries_total", "mmrlhf_responses_total", "mmrlhf_refusals_total")}
    judge_served.ask(asked(words("?"), responses=["a", "b", "c"]))
    judge_served.ask({})
    after = {name: count(name) - number for name, number in before.items()}
    assert after == {"mmrlhf_queries_total": 1, "mmrlhf_responses_total": 3, "mmrlhf_refusals_total": 1}
    assert 'path="/v1/rewards",status="422"' in judge_served.client.get("/metrics").text


def test_no_request_touches_a_file_or_an_address(judge_served: Served) -> None:
    """What Python itself is asked to open or to connect to, while good and bad requests are answered."""
    import sys

    seen, watching = [], threading.Event()

    def hook(event: str, arguments: tuple[Any, ...]) -> None:
        if watching.is_set() and event in (
            "open",
            "os.listdir",
            "os.scandir",
            "socket.getaddrinfo",
            "subprocess.Popen",
        ):
            seen.append((event, str(arguments[0])))
        if watching.is_set() and event == "socket.connect" and arguments[1][1] != port:
            seen.append((event, str(arguments[1])))

    port = int(judge_served.url.rpartition(":")[2])
    sys.addaudithook(hook)  # for good, but it looks at nothing unless it is told to
    bodies = [entry[0] for entry in BAD.values() if isinstance(entry[0], dict)]
    bodies.append(asked(picture(png()), words("?")))
    for turn in range(2):  # the first time imports what is needed
        if turn:
            watching.set()
        for body in bodies:
            if "video_url" not in json.dumps(body):  # clips are decoded by a process of their own
                judge_served.ask(body)
    watching.clear()
    assert not seen
