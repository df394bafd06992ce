"""An endpoint's faults: every one is a retry, a counted problem or an error that says what; nothing hangs or leaks."""

from __future__ import annotations

import gzip
import threading
import time
from collections.abc import Iterator
from email.utils import formatdate

import pytest
from hypothesis import given
from hypothesis import strategies as st
from stand_ins.chat_endpoint import ChatServer, chat_server, said

from mmrlhf.endpoints.client import ChatEndpoint, _asked_for
from mmrlhf.endpoints.completions import Answer, Use
from mmrlhf.errors import ConfigError, DataError, HubError


@pytest.fixture
def server() -> Iterator[ChatServer]:
    with chat_server() as found:
        yield found


def ask(server: ChatServer, *prompts: str, sampling: dict | None = None, **settings) -> dict[str, Answer]:
    endpoint = ChatEndpoint(server.url, "big", **{"pause": 0.0, "timeout": 5.0, "concurrency": 2, **settings})
    requests = [(prompt, [{"role": "user", "content": prompt}]) for prompt in prompts]
    return dict(endpoint.ask(requests, **(sampling or {})))


def test_what_is_asked(server: ChatServer, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("THE_KEY", "secret")
    prompts = [f"p{i}" for i in range(9)]
    assert ask(server, *prompts, key_variable="THE_KEY", sampling={"max_tokens": 7}) == {p: Answer(p) for p in prompts}
    path, key, content = server.seen[0]
    assert path == "/v1/chat/completions" and key == "Bearer secret"
    assert content["model"] == "big" and content["max_tokens"] == 7
    monkeypatch.delenv("THE_KEY")
    ask(server, "p", key_variable="THE_KEY")
    assert server.seen[-1][1] is None


# without the time of packing: every process of a test run has to name the tests alike
PACKED = gzip.compress(said("small here, and without end once it is unpacked"), mtime=0)


@pytest.mark.parametrize(
    "fault",
    [("status", 503), ("status", 429), ("status", 500), ("status", 408), ("cut",), ("bad_status_line",), ("drip",),
     ("flood",), ("body", b"\xff\xfe"), ("body", b'{"choices": [{"mess'),
     ("body", PACKED, {"Content_Encoding": "gzip"})],
    ids=lambda fault: f"{fault[0]}-{fault[1:]}"[:40],
)  # fmt: skip
def test_a_passing_fault_is_a_retry(server: ChatServer, fault: tuple) -> None:
    server.faults = [fault]
    assert ask(server, "p", timeout=0.5 if fault == ("drip",) else 5.0, max_bytes=1 << 20) == {"p": Answer("p")}
    assert len(server.seen) == 2


@pytest.mark.parametrize("named", ["identity", "Identity", " ", ""])
def test_an_answer_that_is_said_not_to_be_packed_is_none_that_is(server: ChatServer, named: str) -> None:
    server.faults = [("body", said("p"), {"Content_Encoding": named})]
    assert ask(server, "p", retries=0) == {"p": Answer("p")}


@pytest.mark.parametrize("form", ["seconds", "date"])
def test_the_pause_that_a_service_asks_for_is_made(server: ChatServer, form: str) -> None:
    server.faults = [("status", 429, {"Retry_After": "1" if form == "seconds" else formatdate(time.time() + 2)})]
    started = time.monotonic()
    assert ask(server, "p") == {"p": Answer("p")}
    assert time.monotonic() - started > 0.9


@pytest.mark.parametrize(
    "said",
    ["Mon, 01 Jan 0001 00:00:00 +2300", "Fri, 31 Dec 9999 23:59:59 -2359", "soon", "", "-5", "nan", "1 Jan", "9" * 400,
     "Mon, 01 Jan 2024 00:00:00 +99999999"],
)  # fmt: skip
def test_a_pause_that_is_none_is_not_made(said: str) -> None:
    pause = _asked_for(said)
    assert pause is None or pause >= 0


@pytest.mark.parametrize("zone", ["America/New_York", "Asia/Tokyo", "UTC"])
@pytest.mark.parametrize("form", ["%a, %d %b %Y %H:%M:%S GMT", "%A, %d-%b-%y %H:%M:%S GMT", "%a %b %e %H:%M:%S %Y"])
def test_the_three_forms_of_a_date_are_in_universal_time(monkeypatch: pytest.MonkeyPatch, zone: str, form: str) -> None:
    """RFC 9110, 5.6.7: also the form of asctime, which names no zone, wherever this machine is."""
    with monkeypatch.context() as elsewhere:
        elsewhere.setenv("TZ", zone)
        time.tzset()
        pause = _asked_for(time.strftime(form, time.gmtime(time.time() + 60)))
    time.tzset()
    assert pause is not None and 57 < pause <= 60


@given(
    st.text(max_size=20)
    | st.from_regex(r"(Mon, )?[0-9]{1,2} Jan [0-9]{1,5} [0-9:]{0,9} [+-][0-9]{1,9}", fullmatch=True)
)
def test_any_pause(said: str) -> None:
    pause = _asked_for(said)
    assert pause is None or pause >= 0


@pytest.mark.parametrize(
    ("body", "answer"),
    [
        (said("half of an", "length"), Answer("half of an", "cut off")),
        (said("", "content_filter"), Answer("", "filtered")),
        (said(None), Answer("", "empty")),
        (said("   "), Answer("", "empty")),
        (said([{"type": "text", "text": "a "}, {"type": "reasoning", "text": "no"}, {"type": "text", "text": "b"}]),
         Answer("a b")),
        (said("no reason given", None), Answer("no reason given")),
        (said(None, "content_filter"), Answer("", "filtered")),
        (b'{"choices": [{"message": {"role": "assistant"}, "finish_reason": "content_filter"}]}',
         Answer("", "filtered")),
        (b'{"choices": [{"message": {"content": null, "refusal": "No."}, "finish_reason": "stop"}]}',
         Answer("", "declined")),
        (said(None, "tool_calls"), Answer("", "ended by tool_calls")),
    ],
    ids=["cut off", "filtered", "none", "blank", "parts", "no finish reason", "null", "absent", "declined", "tools"],
)  # fmt: skip
def test_what_is_said_is_read_for_what_it_is(server: ChatServer, body: bytes, answer: Answer) -> None:
    server.faults = [("body", body)]
    assert ask(server, "p") == {"p": answer}


def test_what_is_known_about_an_answer_comes_with_it(server: ChatServer) -> None:
    server.faults = [("status", 429), ("status", 503), ("cut",)]
    (answer,) = ask(server, "three words here").values()
    assert answer.use == Use("big-2026", "stop", 3, 3, ("HTTP 429", "HTTP 503", "RemoteProtocolError"))
    server.faults = [("body", said("half", "length", usage={"prompt_tokens": True, "completion_tokens": -1}))]
    (cut,) = ask(server, "p").values()
    assert cut.use == Use("", "length", None, None) and cut.reason == "cut off", "what is no count is no count"
    server.faults = [("body", said("a", usage={"prompt_tokens": 10**400, "completion_tokens": 2**31}))]
    (answer,) = ask(server, "p").values()
    assert answer.use == Use("", "stop", None, None), "nothing could be reckoned with it, and the answer would be lost"


@pytest.mark.parametrize(
    ("fault", "reason"),
    [
        (("status", 429), "HTTP 429"), (("status", 500), "HTTP 500"), (("drip",), "no whole answer"),
        (("body", b"{"), "an answer that is no JSON"), (("status", 413), "HTTP 413"),
    ],
    ids=["busy", "broken", "slow", "no JSON", "too large"],
)  # fmt: skip
def test_problems_are_of_few_kinds(server: ChatServer, fault: tuple, reason: str) -> None:
    server.always = {"bad": fault}
    found = ask(server, "a", "bad", retries=1, timeout=0.4, concurrency=1)
    assert found["bad"].reason == reason and found["bad"].use.tries == (() if reason == "HTTP 413" else (reason,) * 2)


def test_a_refusal_of_a_moderation_is_told_from_others(server: ChatServer) -> None:
    told = b'{"error": {"code": "content_filter", "message": "The response was filtered"}}'
    server.always = {"bad": ("send", 400, told)}
    assert ask(server, "bad")["bad"].reason == "filtered"


def test_requests_are_made_when_their_turn_comes(server: ChatServer) -> None:
    """So that pictures of millions of requests need not be in memory at once."""
    made: list[int] = []

    def requests():
        for number in range(1000):
            made.append(number)
            yield number, {"messages": [{"role": "user", "content": str(number)}], "seed": number}

    answers = ChatEndpoint(server.url, "big", concurrency=2).send(requests())
    number, answer = next(answers)
    # either of two that are under way may come first
    assert answer == Answer(str(number)) and server.seen[0][2]["seed"] in (0, 1)
    assert len(made) < 500
    answers.close()  # type: ignore[attr-defined]


def test_where_the_collector_ends_it_nothing_waits(server: ChatServer) -> None:
    """In whatever thread: here in one that makes a request, which the asking itself waits for."""
    ready, ended = threading.Event(), threading.Event()

    def requests():
        yield 0, {"messages": [{"role": "user", "content": "a"}]}
        ready.wait()
        answers.close()  # type: ignore[attr-defined]
        ended.set()
        yield 1, {"messages": [{"role": "user", "content": "b"}]}

    answers = ChatEndpoint(server.url, "big", concurrency=1).send(requests())
    assert next(answers) == (0, Answer("a"))
    ready.set()
    assert ended.wait(20) and list(answers) == []


def test_a_request_that_cannot_be_made_ends_the_asking_with_its_error(server: ChatServer) -> None:
    def requests():
        yield 1, {"messages": [{"role": "user", "content": "p"}]}
        raise DataError("a picture is damaged")

    with pytest.raises(DataError, match="picture is damaged"):
        dict(ChatEndpoint(server.url, "big").send(requests()))


@pytest.mark.parametrize(("code", "tries"), [(400, 1), (413, 1), (422, 1), (500, 3)])
def test_a_request_that_always_fails_is_an_outcome_and_the_others_go_on(server: ChatServer, code, tries) -> None:
    server.always = {"bad": ("status", code)}
    prompts = ["a", "bad", "b", "c", "d"]
    found = ask(server, *prompts, retries=2, concurrency=1)
    assert {p: found[p] for p in prompts if p != "bad"} == {p: Answer(p) for p in prompts if p != "bad"}
    assert found["bad"].text == "" and f"HTTP {code}" in found["bad"].problem
    assert found["bad"].failed == (code == 500), "what was refused is final, what failed may be asked again"
    assert sum(content["messages"][0]["content"] == "bad" for _, _, content in server.seen) == tries


@pytest.mark.parametrize("code", [401, 403, 404, 405])
def test_an_endpoint_that_knows_no_key_or_model_ends_the_run(server: ChatServer, code: int) -> None:
    server.faults = [("status", code)] * 9
    with pytest.raises(HubError, match=f"HTTP {code}"):
        ask(server, "a", "b", "c", concurrency=1)
    assert len(server.seen) == 1


def test_an_endpoint_that_is_down_ends_the_run_and_what_was_answered_is_kept(server: ChatServer) -> None:
    prompts = [f"p{i}" for i in range(20)]
    server.always = {prompt: ("status", 503) for prompt in prompts[4:]}
    endpoint = ChatEndpoint(server.url, "big", pause=0.0, concurrency=1, retries=0, give_up_after=3)
    kept = []
    with pytest.raises(HubError, match="HTTP 503"):
        for name, answer in endpoint.ask([(p, [{"role": "user", "content": p}]) for p in prompts]):
            kept.append((name, answer.problem))
    assert [name for name, problem in kept if not problem] == prompts[:4] and len(kept) == 6


def test_a_redirect_is_not_followed_and_the_key_stays(server: ChatServer, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("OPENAI_API_KEY", "secret")
    with chat_server() as other:
        server.faults = [("status", 307, {"Location": f"{other.url}/chat/completions"})]
        with pytest.raises(HubError, match="redirect to"):
            ask(server, "p")
        assert not other.seen


def test_an_answer_without_choices_ends_the_run(server: ChatServer) -> None:
    server.faults = [("body", b'{"result": "p"}')]
    with pytest.raises(HubError, match="choices"):
        ask(server, "p")


def test_who_stops_listening_stops_the_asking(server: ChatServer) -> None:
    endpoint = ChatEndpoint(server.url, "big", concurrency=1)
    answers = endpoint.ask([(i, [{"role": "user", "content": str(i)}]) for i in range(100_000)])
    next(answers)
    answers.close()  # type: ignore[attr-defined]
    time.sleep(0.2)
    seen = len(server.seen)
    time.sleep(0.2)
    assert len(server.seen) == seen < 100_000


def test_nobody_there() -> None:
    with pytest.raises(HubError, match="Connect"):
        list(ChatEndpoint("http://127.0.0.1:9/v1", "big", retries=0).ask([(1, [])]))


@pytest.mark.parametrize("url", ["file:///etc/passwd", "ftp://host/v1", "http://", "host/v1", "http://me:secret@h/v1"])
def test_addresses_that_are_none(url: str) -> None:
    with pytest.raises(ConfigError) as error:
        ChatEndpoint(url, "big")
    assert "secret" not in str(error.value)


@pytest.mark.parametrize("wrong", [{"concurrency": 0}, {"timeout": 0}, {"timeout": float("nan")}, {"retries": -1}])
def test_settings_that_ask_nothing(wrong: dict) -> None:
    with pytest.raises(ConfigError):
        ChatEndpoint("http://127.0.0.1/v1", "big", **wrong)
