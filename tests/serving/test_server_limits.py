"""What a server does not put up with: no token, too much at once, slow bodies, clients that leave."""

from __future__ import annotations

import json
import socket
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import httpx
import pytest
from stand_ins.bad_requests import check_refused
from stand_ins.request_bodies import asked, words
from stand_ins.served_model import Served, served

from mmrlhf.serving.limits import Limits


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
