"""`mmrlhf serve` as it is typed: settings and mistakes, and a process that ends as it should."""

from __future__ import annotations

import re
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import cast

import httpx
import pytest
from stand_ins.commands import PROJECT, environment

from mmrlhf import app
from mmrlhf.errors import ConfigError
from mmrlhf.serving.listening import listening
from mmrlhf.serving.service import _announce


@pytest.fixture
def typed(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]):
    """Type words behind the command; (exit code, what it printed)."""

    def run(*words: str) -> tuple[int, str]:
        monkeypatch.setattr(sys, "argv", ["mmrlhf", *words])
        code = 0
        try:
            app.main()
        except SystemExit as end:
            code = int(end.code or 0)
        out = capsys.readouterr()
        return code, out.out + out.err

    return run


def test_every_setting_is_listed_and_explained(typed) -> None:
    code, page = typed("serve", "--help")
    lines = page.splitlines()
    assert code == 0
    for key in ("reward_model", "host", "port", "token_budget", "critiques.max_tokens", "allowed.hosts",
                "limits.timeout", "limits.max_body_mib", "token_variable"):  # fmt: skip
        place = next(number for number, line in enumerate(lines) if line.startswith(f"{key}="))
        assert lines[place + 1].startswith("    "), f"{key} has no explanation"


@pytest.mark.parametrize(
    ("words", "said"),
    [
        ([], "reward_model"),
        (["reward_model=/nowhere"], "no such folder"),
        (["reward_modle=/nowhere"], "did you mean reward_model?"),
        (["somewhere"], "not a setting of the server"),
        (["reward_model=."], "no trained score head"),
        (["reward_model=.", "port=-1"], "port"),
        (["reward_model=.", "limits.timeout=0"], "limits.timeout"),
        (["reward_model=.", "critiques.num_samples=3"], "critiques.temperature"),
        (["reward_model=.", "allowed.hosts=[http://a.example]"], "allowed.hosts"),
    ],
)
def test_a_mistake_is_named_before_anything_is_loaded(typed, words: list[str], said: str) -> None:
    code, page = typed("serve", *words)
    assert code == 2 and said in re.sub(r"[│╭╮╰╯─\s]+", " ", page)


def test_an_address_that_is_taken_is_a_mistake(typed, scalar_model: Path) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        code, page = typed("serve", f"reward_model={scalar_model}", f"port={taken.getsockname()[1]}")
    assert code == 2 and "cannot be listened on" in page


@pytest.mark.parametrize("host", ["127.0.0.1", "::1"])
def test_what_is_written_is_sent_at_once(host: str) -> None:
    """The second piece of an answer does not wait until the client acknowledges the first."""
    with listening(host, 0) as listener, socket.create_connection(listener.getsockname()[:2]):
        connection, _ = listener.accept()
        with connection:
            assert connection.getsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY) != 0


def test_a_name_that_no_name_can_be_is_a_mistake() -> None:
    with pytest.raises(ConfigError, match="cannot be listened on"), listening("é" * 80, 0):
        pass


def test_the_address_that_is_said_can_be_opened(caplog: pytest.LogCaptureFixture) -> None:
    class Listener:
        def getsockname(self) -> tuple[str, int, int, int]:
            return "::1", 8000, 0, 0

    with caplog.at_level("INFO"):
        _announce(cast(socket.socket, Listener()), "DIR", "")
    assert "http://[::1]:8000;" in caplog.text


@contextmanager
def running(folder: Path, *words: str, **variables: str) -> Iterator[tuple[subprocess.Popen[str], str]]:
    """The command as a process of its own, and its address, as soon as it says it."""
    command = [sys.executable, str(PROJECT / "run.py"), "serve", f"reward_model={folder}", "port=0", *words]
    process = subprocess.Popen(
        command, env=environment(PYTHONUNBUFFERED="1", **variables), stdout=subprocess.PIPE, stderr=subprocess.STDOUT,
        text=True,
    )  # fmt: skip
    try:
        assert process.stdout is not None
        said = (re.search(r"http://\S+:\d+", line) for line in process.stdout)
        found = next((address for address in said if address), None)
        assert found, "it ended without an address"
        yield process, found[0]
    finally:
        process.kill()
        process.communicate()


def wait_until_ready(client: httpx.Client) -> list[int]:
    """Statuses of /ready until it is 200."""
    seen = []
    for _ in range(1200):
        seen.append(client.get("/ready").status_code)
        if seen[-1] == 200:
            return seen
        assert client.get("/health").status_code == 200
        time.sleep(0.05)
    raise AssertionError(seen[-1])


@pytest.mark.slow
@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_requests_under_way_are_answered_before_it_ends(critic: Path, number: signal.Signals) -> None:
    slow = ["critiques.max_tokens=200", "limits.timeout=60"]
    with running(critic, *slow, MMRLHF_SERVE_TOKEN="secret") as (process, url):
        headers = {"Authorization": "Bearer secret"}
        with httpx.Client(base_url=url, timeout=60, headers=headers, trust_env=False) as client:
            wait_until_ready(client)
            answers: list[httpx.Response] = []
            body = {"messages": [{"role": "user", "content": "red ?"}], "responses": ["a", "b", "c"]}

            def ask() -> None:
                answers.append(httpx.post(f"{url}/v1/rewards", json=body, headers=headers, timeout=60, trust_env=False))

            askers = [threading.Thread(target=ask) for _ in range(4)]
            for asker in askers:
                asker.start()
            while "mmrlhf_requests_total" not in client.get("/metrics").text:
                time.sleep(0.01)
            time.sleep(0.3)
            process.send_signal(number)
            for asker in askers:
                asker.join()
        assert process.stdout is not None
        rest = process.stdout.read()
        assert process.wait(30) == 0 and "stopped" in rest
    assert [answer.status_code for answer in answers] == [200] * 4
    assert all(len(answer.json()["data"]) == 3 for answer in answers)


@pytest.mark.slow
def test_a_folder_that_cannot_be_loaded_ends_it_with_a_sentence(scalar_model: Path, tmp_path: Path) -> None:
    import shutil

    folder = shutil.copytree(scalar_model, tmp_path / "model")
    (folder / "chat_template.jinja").write_text("{{ 1 / 0 }}")
    process = subprocess.run(
        [sys.executable, str(PROJECT / "run.py"), "serve", f"reward_model={folder}", "port=0"],
        env=environment(), capture_output=True, text=True, timeout=120, check=False,
    )  # fmt: skip
    assert process.returncode != 0 and "ready" not in process.stdout
