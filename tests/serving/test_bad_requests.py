"""Bad requests to a real server: every one gets a status and its field, and none touches anything."""

from __future__ import annotations

import json
import sys
import threading
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from stand_ins.bad_requests import BAD, BAD_OF_TRAINERS, check_refused
from stand_ins.request_bodies import asked, picture, png, words
from stand_ins.served_model import Served


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


def test_no_request_touches_a_file_or_an_address(judge_served: Served) -> None:
    """What Python itself is asked to open or to connect to, while good and bad requests are answered."""
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
