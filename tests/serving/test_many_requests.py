"""Many requests at once to a real server: no answer depends on what is asked beside it."""

from __future__ import annotations

import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import httpx
import pytest
from stand_ins.bad_requests import BAD, check_refused
from stand_ins.request_bodies import asked, expected, words
from stand_ins.served_model import Served, served
from stand_ins.small_data import WORDS


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
