"""The socket that a server listens on, and an end of its process that is the server's alone."""

from __future__ import annotations

import signal
import socket
import threading
from collections.abc import Iterator
from contextlib import contextmanager

from mmrlhf.errors import ConfigError


@contextmanager
def listening(host: str, port: int) -> Iterator[socket.socket]:
    """A socket that listens; raises ConfigError where the address cannot be had."""
    try:
        host.encode("idna")  # a name that no name can be, which create_server meets with its socket open
        family = socket.AF_INET6 if ":" in host else socket.AF_INET
        listener = socket.create_server((host, port), family=family, backlog=2048)
    except (OSError, OverflowError, UnicodeError) as error:
        raise ConfigError(
            "this address cannot be listened on",
            where="host, port",
            given=f"{host}:{port} ({error})",
            expected="an address of this machine and a port that nothing else uses",
            fix="port=0 takes a free one",
        ) from error
    # Connections inherit it. An answer is written in two pieces, and without it the second waits for the first to be
    # acknowledged, which a client puts off for 40 ms; asyncio sets it only where a socket names its protocol.
    listener.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    with listener:
        yield listener


@contextmanager
def ending_calmly() -> Iterator[None]:
    """Let the signals that end the server end nothing else: uvicorn raises them once more when it is done."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    before = {number: signal.signal(number, signal.SIG_IGN) for number in (signal.SIGTERM, signal.SIGINT)}
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
