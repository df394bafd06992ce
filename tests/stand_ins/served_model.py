"""A tiny reward model behind a real port of this machine, in a thread of the test's own process."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import httpx
import pytest

from mmrlhf.inference.reward_model import RewardModel
from mmrlhf.inference.settings import CritiqueSettings
from mmrlhf.serving.addresses import Allowed
from mmrlhf.serving.batching import Batcher
from mmrlhf.serving.limits import Limits
from mmrlhf.serving.listening import listening
from mmrlhf.serving.measures import Measures
from mmrlhf.serving.service import Service

CRITIQUES = CritiqueSettings(max_tokens=8)
# small enough to be reached by a test
SMALL = Limits(
    max_body_mib=0.25, max_responses=6, max_queries=5, max_media=2, max_media_mib=0.1, max_pixels=20_000,
    max_query_tokens=600, timeout=60.0, body_timeout=0.5, fetch_timeout=0.5,
)  # fmt: skip


@dataclass
class Served:
    """A running server: how to ask it, and the judge that it asks."""

    client: httpx.Client
    service: Service
    judge: RewardModel
    url: str

    def ask(self, body: Any, path: str = "/v1/rewards", **headers: str) -> httpx.Response:
        """Send a body as JSON."""
        return self.client.post(path, json=body, headers=headers)


@contextmanager
def served(
    folder: Path,
    *,
    limits: Limits = SMALL,
    allowed: Allowed | None = None,
    token: str = "",
    judge: Callable[[RewardModel], Any] = lambda judge: judge,
) -> Iterator[Served]:
    """Serve a folder for as long as the block lasts.

    Args:
        judge: changes the model before it is served.
    """
    asked = judge(RewardModel.from_pretrained(folder, critiques=CRITIQUES, device="cpu"))

    def load(measures: Measures) -> Batcher:
        return Batcher(asked, limits=limits, groups_per_batch=16, encoders=1, measures=measures)

    service = Service("tiny", load, allowed=allowed or Allowed(), limits=limits, token=token)
    with listening("127.0.0.1", 0) as listener:
        url = f"http://127.0.0.1:{listener.getsockname()[1]}"
        running = threading.Thread(target=service.run, args=(listener,))
        running.start()
        try:
            with httpx.Client(base_url=url, timeout=60.0, trust_env=False) as client:
                while client.get("/ready").status_code != 200:
                    time.sleep(0.01)
                yield Served(client, service, asked, url)
        finally:
            service.server.should_exit = True
            running.join()


@pytest.fixture(scope="session")
def judge_served(scalar_model: Path) -> Iterator[Served]:
    """A model without critiques, with small limits."""
    with served(scalar_model) as server:
        yield server


@pytest.fixture(scope="session")
def critic_served(critic: Path) -> Iterator[Served]:
    """A model that writes critiques, with small limits."""
    with served(critic) as server:
        yield server
