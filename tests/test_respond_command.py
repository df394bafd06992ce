"""The commands of docs/collect.md that ask models, as a user types them, offline and killed in the middle."""

from __future__ import annotations

import json
import signal
import subprocess
import sys
import time
from collections import Counter
from pathlib import Path

import pytest
from stand_ins.chat_endpoint import ChatServer, chat_server, words_of
from stand_ins.commands import PROJECT, environment, start

from mmrlhf.shards.index import Index

pytestmark = pytest.mark.slow
USUAL = ["scale=tiny", "logger=none", "trainer=cpu"]


def slowly(server: ChatServer) -> None:
    def says(asked: dict) -> str:
        time.sleep(0.1)
        return f"it is {words_of(asked)[:20]}"

    server.says = says


def test_two_policies_and_an_endpoint_answer_offline(tmp_path: Path) -> None:
    start(tmp_path, "experiment=respond", *USUAL, expected=0)
    (folder,) = (path for path in tmp_path.glob("artifacts/respond/*") if path.is_dir())
    summary = json.loads((folder / "metrics.json").read_text())
    assert {name: use["answers"] for name, use in summary["responders"].items()} == {
        "untrained": 48, "trained": 48, "service": 48
    }  # fmt: skip
    groups = list(Index.load(folder / "shards"))
    assert len(groups) == summary["groups"] > 40 and max(len(group.responses) for group in groups) == 3


def test_a_killed_run_asks_for_what_is_missing_and_a_policy_is_an_endpoint(tmp_path: Path) -> None:
    with chat_server() as server:
        slowly(server)
        words = [
            "stage=respond", *USUAL, f"paths.artifacts={tmp_path}/artifacts", "responders.far.kind=endpoint",
            f"responders.far.url={server.url}", "responders.far.model=big", "responders.near.kind=stand_in",
            "responders.far.concurrency=2",
        ]  # fmt: skip
        process = subprocess.Popen(
            [sys.executable, str(PROJECT / "run.py"), *words],
            cwd=tmp_path,
            env=environment(),
            stdout=subprocess.DEVNULL,
        )
        while len(server.seen) < 10 and process.poll() is None:
            time.sleep(0.02)
        process.send_signal(signal.SIGKILL)
        process.wait()
        before = len(server.seen)
        start(tmp_path, *words, expected=0)
        assert 10 <= before < 48 and len(server.seen) <= 48 + 2, "only what was under way is asked for again"
        assert len(Counter(json.dumps(content, sort_keys=True) for _, _, content in server.seen)) == 48
        server.seen = []
        policy = ["policy=endpoint", f"policy.endpoint.url={server.url}", "policy.endpoint.model=big"]
        told = start(
            tmp_path, "stage=evaluate", *USUAL, *policy, f"paths.artifacts={tmp_path}/artifacts",
            "inputs.reward_model=null", expected=0,
        )  # fmt: skip
        assert "evaluate" in told and not server.seen, "these very requests were paid for by stage=respond"
    (metrics,) = tmp_path.glob("artifacts/evaluate/*/metrics.json")
    summary = json.loads(metrics.read_text())
    assert summary["queries"] == 4 and summary["kl"] is None and summary["quality"] is not None
