"""`mmrlhf serve`: a reward model's folder becomes a server, from the first byte that it answers to a clean end."""

from __future__ import annotations

import logging
import math
import os
import socket
import threading
from collections.abc import AsyncIterator, Callable
from concurrent.futures import ThreadPoolExecutor
from contextlib import asynccontextmanager
from pathlib import Path

import uvicorn
from fastapi import FastAPI

from mmrlhf.inference.reward_model import RewardModel
from mmrlhf.inference.settings import CritiqueSettings, PassSettings
from mmrlhf.models.promises import check_reward_folder, read_card
from mmrlhf.models.settings import ModelSettings
from mmrlhf.ranges import Count, Natural
from mmrlhf.serving.addresses import Addresses, Allowed
from mmrlhf.serving.batching import Batcher
from mmrlhf.serving.desk import Desk
from mmrlhf.serving.gate import Gate
from mmrlhf.serving.limits import Limits
from mmrlhf.serving.listening import ending_calmly, listening
from mmrlhf.serving.measures import Measures
from mmrlhf.serving.media_parts import MediaReader
from mmrlhf.serving.reading import QueryReader
from mmrlhf.serving.routes import ASKING, TELLING, create_app

log = logging.getLogger(__name__)
_LOOKING = 4  # threads in which pictures and clips are looked at
_IDLE = 75  # seconds that a connection stays open without a request
_GRACE = 5.0  # seconds that an answer may take on its way, when the server stops


def serve(
    *,
    reward_model: str,
    host: str = "127.0.0.1",
    port: Natural = 8000,
    precision: str | None = None,
    layout: str = "auto",
    attention: str = "auto",
    max_tokens: Count | None = None,
    too_long: str = "shorten",
    token_budget: Count = 4096,
    groups_per_batch: Count = 32,
    encoders: Count = 1,
    device: str | None = None,
    name: str | None = None,
    critiques: CritiqueSettings | None = None,
    allowed: Allowed | None = None,
    limits: Limits | None = None,
    token_variable: str = "MMRLHF_SERVE_TOKEN",
) -> None:
    """Serve a reward model until SIGTERM or Ctrl-C; requests under way are answered before it ends.

    Args:
        reward_model: folder that the reward stage wrote, or the hub id of one.
        host: address that it listens on; 0.0.0.0 is every machine's that can reach this one.
        port: port that it listens on; 0 takes a free one.
        precision: float32 or bf16; null: as the model was trained.
        layout: `packed`, `rows` or `auto`, as in `model.settings`.
        attention: `sdpa`, `flex`, `cascade` or `auto`, as in `model.settings`.
        max_tokens: longest conversation with one response and its critique; null: as many as the checkpoint has
            positions for.
        too_long: a response that does not fit is `shorten`ed at its end, and the answer says by how much, or `refuse`d.
        token_budget: tokens of one packed forward; queries that wait are batched up to it.
        groups_per_batch: queries of a batch at most.
        encoders: threads that decode pictures and tokenize, ahead of the model.
        device: cpu, cuda, cuda:1; null: the first GPU, else the CPU.
        name: what answers call the model; null: as its folder is called.
        critiques: how critiques are written.
        allowed: whom pictures and clips may be fetched from.
        limits: of requests.
        token_variable: environment variable with the token that requests must carry; where it is unset, none is
            needed.

    Raises:
        ModelError: no reward model in the folder.
        ConfigError: an address that cannot be listened on.
    """
    card = read_card(reward_model)
    if Path(reward_model).is_dir():
        check_reward_folder(reward_model)
    limits = limits or Limits()
    passes = PassSettings(
        ModelSettings(
            precision=precision or str(card.get("precision", "float32")),
            layout=layout, attention=attention, max_tokens=max_tokens, too_long=too_long,
        ),
        token_budget=token_budget,
    )  # fmt: skip

    def load(measures: Measures) -> Batcher:
        judge = RewardModel.from_pretrained(reward_model, passes, critiques, device=device)
        return Batcher(judge, limits=limits, groups_per_batch=groups_per_batch, encoders=encoders, measures=measures)

    token = os.environ.get(token_variable, "")
    service = Service(
        name or Path(reward_model).resolve().name, load, allowed=allowed or Allowed(), limits=limits, token=token
    )
    with listening(host, port) as listener:
        _announce(listener, reward_model, "" if token else token_variable)
        service.run(listener)


def _announce(listener: socket.socket, reward_model: str, token_variable: str) -> None:
    """Say where the model can be asked; and that anybody can, where no token is asked for (the variable sets one)."""
    host, port = listener.getsockname()[:2]
    shown = f"[{host}]" if ":" in host else host
    log.info("%s on http://%s:%d; /docs describes it", reward_model, shown, port)
    if token_variable and not host.startswith("127.") and host != "::1":
        log.warning("whoever reaches %s can ask this model; %s=TOKEN asks for a token", host, token_variable)


class Service:
    """A server around a model that is loaded while the server already says that it is being loaded.

    Args:
        name: the model's, as answers give it.
        load: makes what scores queries.
        allowed, limits, token: as of `serve`.
    """

    def __init__(
        self, name: str, load: Callable[[Measures], Batcher], *, allowed: Allowed, limits: Limits, token: str = ""
    ) -> None:
        self.name, self._load, self._limits = name, load, limits
        self._measures = Measures()
        self._addresses = Addresses(allowed, limits)
        self._looking = ThreadPoolExecutor(_LOOKING, "looker")
        reader = QueryReader(MediaReader(self._addresses, limits, self._looking), limits)
        self._desk = Desk(name, reader, limits)
        app = create_app(self._desk, self._measures, most_queries=limits.max_queries, lifespan=self._open_addresses)
        known = ASKING | TELLING
        self.app = Gate(app, limits=limits, token=token, guarded=ASKING, known=known, measures=self._measures)
        self._failure: Exception | None = None
        self.server = uvicorn.Server(self._config())

    def run(self, listener: socket.socket) -> None:
        """Serve until a signal asks for the end; raises what the loading of the model raised."""
        self._desk.is_stopping = lambda: self.server.should_exit
        loading = threading.Thread(target=self._load_model, name="loading", daemon=True)
        loading.start()
        with ending_calmly():
            self.server.run(sockets=[listener])
        self._looking.shutdown()
        if self._failure is not None:
            raise self._failure
        if self._desk.batcher is not None:  # else it is still being loaded, and nobody waits for that
            self._desk.batcher.stop()
        log.info("stopped")

    def _config(self) -> uvicorn.Config:
        return uvicorn.Config(
            self.app,
            log_config=None,
            access_log=False,
            server_header=False,
            ws="none",
            limit_concurrency=self._limits.max_connections,
            timeout_keep_alive=_IDLE,
            timeout_graceful_shutdown=math.ceil(self._limits.timeout + _GRACE),
        )

    def _load_model(self) -> None:
        try:
            self._desk.batcher = self._load(self._measures)
            log.info("ready")
        except Exception as error:
            self._failure = error
            self.server.should_exit = True

    @asynccontextmanager
    async def _open_addresses(self, app: FastAPI) -> AsyncIterator[None]:
        yield
        await self._addresses.close()
