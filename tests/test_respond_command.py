"""The commands of docs/collect.md that ask models, as a user types them, offline and killed in the middle."""

from __future__ import annotations

import json
import signal
import subprocess
import sys
import time
from collections import Counter
from pathlib import Path
from typing import Any

import hydra
import pytest
from hydra.core.global_hydra import GlobalHydra
from stand_ins.chat_endpoint import ChatServer, chat_server, words_of
from stand_ins.commands import PROJECT, environment, start

from mmrlhf.app import CONF, run_chain
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


def command(tmp_path: Path, *words: str) -> list[Any]:
    """Run a command in this process."""
    GlobalHydra.instance().clear()
    with hydra.initialize_config_dir(str(CONF), version_base="1.3"):
        config = hydra.compose("config", [*USUAL, f"paths.artifacts={tmp_path}/artifacts", *words])
        return run_chain(config, tmp_path / "run", shows=False)


def test_a_killed_run_asks_for_what_is_missing_and_a_policy_is_an_endpoint(tmp_path: Path) -> None:
    with chat_server() as server:
        slowly(server)
        words = [
            "stage=respond", "responders.far.kind=endpoint", f"responders.far.url={server.url}",
            "responders.far.model=big", "responders.far.concurrency=2", "responders.near.kind=stand_in",
        ]  # fmt: skip
        started = [sys.executable, str(PROJECT / "run.py"), *USUAL, f"paths.artifacts={tmp_path}/artifacts", *words]
        process = subprocess.Popen(started, cwd=tmp_path, env=environment(), stdout=subprocess.DEVNULL)
        while len(server.seen) < 10 and process.poll() is None:
            time.sleep(0.02)
        process.send_signal(signal.SIGKILL)
        process.wait()
        before = len(server.seen)
        command(tmp_path, *words)
        assert 10 <= before < 48 and len(server.seen) <= 48 + 2, "only what was under way is asked for again"
        assert len(Counter(json.dumps(content, sort_keys=True) for _, _, content in server.seen)) == 48
        server.seen = []
        policy = ["policy=endpoint", f"policy.endpoint.url={server.url}", "policy.endpoint.model=big"]
        *_, evaluated = command(tmp_path, "stage=evaluate", "inputs.reward_model=null", *policy)
        assert not server.seen, "these very requests were paid for by stage=respond"
    summary = evaluated.summary
    assert summary["queries"] == 4 and summary["kl"] is None and summary["quality"] is not None
