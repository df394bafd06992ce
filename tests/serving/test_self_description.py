"""What a server says of itself: its paths, and what it has counted."""

from __future__ import annotations

from stand_ins.request_bodies import asked, words
from stand_ins.served_model import Served


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
