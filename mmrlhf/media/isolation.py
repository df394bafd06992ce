"""Calls in a child process: what crashes or hangs there is an error here, and the caller goes on.

Decoders are C code that meets files from anywhere. A segmentation fault or an endless loop in one cannot be caught by
the process that it happens in. The child is a fresh interpreter (not a fork: decoders do not survive one), is kept for
the next call, and ends with its parent.
"""

from __future__ import annotations

import contextlib
import faulthandler
import os
import pickle
import signal
import socket
import subprocess
import sys
import threading
import time
import traceback
from collections import deque
from collections.abc import Callable, Generator, Iterable
from itertools import islice
from multiprocessing.connection import Connection, wait
from typing import Any, TypeVar

T = TypeVar("T")

_IMPORT_SECONDS = 1800  # to start an interpreter and import what a call needs, on a machine that does much else
_AHEAD = 4  # items that may wait, per process, for an earlier one to finish
_inside = False  # whether this process is such a child
_START = (
    "import sys; sys.path[:] = {path!r}; from mmrlhf.media.isolation import serve; serve({descriptor}, {timeout!r})"
)


class ProcessDied(Exception):
    """A call ended its process, or did not end in time; the message says which."""


class Isolated:
    """A child process that runs one call at a time; a dead one is replaced at the next call.

    Args:
        timeout: seconds that a call may take, from the moment at which the child has imported what it needs.
    """

    def __init__(self, timeout: float) -> None:
        self.timeout = timeout
        self._process: subprocess.Popen[bytes] | None = None
        self._owner = os.getpid()
        self._begun, self._deadline = False, 0.0

    def __call__(self, function: Callable[..., T], *arguments: Any) -> T:
        """Run an importable function in the child and return what it returns, or raise what it raises.

        Raises:
            ProcessDied: it crashed or took too long, twice: a machine that stood still is no fault of the file.
        """
        for last in (False, True):
            try:
                self.start(function, *arguments)
                return self.result()
            except ProcessDied:
                if last:
                    raise
        raise AssertionError

    def start(self, function: Callable[..., Any], *arguments: Any) -> None:
        """Send a call, whose `result` has to be fetched before the next one."""
        if self._process is None or self._process.poll() is not None or self._owner != os.getpid():
            self._spawn()
        self._begun, self._deadline = False, time.monotonic() + _IMPORT_SECONDS
        with contextlib.suppress(BrokenPipeError, ConnectionResetError):  # `result` finds out why
            self.connection.send_bytes(pickle.dumps((function, arguments)))

    def finished(self, patience: float = 0.0) -> bool:
        """Wait so many seconds at most, and say whether `result` has something to return or raise by now."""
        end = time.monotonic() + patience
        while True:
            left = min(end, self._deadline) - time.monotonic()
            if not self.connection.poll(max(0.0, left)):
                return self.seconds_left() == 0
            if self._begun or not self._begin():
                return True

    def _begin(self) -> bool:
        """Take the child's word that it begins; False if it is gone."""
        with contextlib.suppress(EOFError, ConnectionResetError):
            self.connection.recv_bytes()
            self._begun, self._deadline = True, time.monotonic() + self.timeout
        return self._begun

    def result(self) -> Any:
        """Wait for the call that was started; raises as `__call__`, without trying again."""
        while not self.finished(self.seconds_left()):
            pass
        try:
            if not self.connection.poll():
                begun = self._begun
                self.close()
                if not begun:  # the machine's fault, and so no file's
                    raise TimeoutError(f"a process did not start within {_IMPORT_SECONDS} s")
                raise ProcessDied(f"took longer than {self.timeout:g} s")
            fine, value = pickle.loads(self.connection.recv_bytes())
        except (EOFError, ConnectionResetError) as error:
            code = self._process.wait() if self._process else None
            self.close()
            raise ProcessDied(f"crashed (signal {-code})" if code and code < 0 else f"ended ({code})") from error
        if fine:
            return value
        error, trace = value
        error.add_note(f"in a process of its own:\n{trace}")
        raise error

    def seconds_left(self) -> float:
        """Time until the running call has taken too long."""
        return max(0.0, self._deadline - time.monotonic())

    def close(self) -> None:
        """End the child, unless it belongs to the process that this one was forked from."""
        if self._process is not None and self._owner == os.getpid():
            self.connection.close()
            self._process.kill()
            self._process.wait()
        self._process = None

    def __del__(self) -> None:
        self.close()

    def _spawn(self) -> None:
        self.close()
        ours, theirs = socket.socketpair()
        code = _START.format(path=sys.path, descriptor=theirs.fileno(), timeout=self.timeout)
        with theirs:
            self._process = subprocess.Popen(
                [sys.executable, "-c", code], pass_fds=[theirs.fileno()], stdin=subprocess.DEVNULL,
            )  # fmt: skip
        self.connection, self._owner = Connection(ours.detach()), os.getpid()


def guarded(function: Callable[..., T], *arguments: Any, timeout: float) -> T:
    """Run an importable function where it may crash or hang: in a child that is kept for this, or here in a child.

    A process that is a child itself has a parent that survives it, so it needs no child of its own.

    Args:
        timeout: seconds that the call may take in a child of this process.

    Raises:
        ProcessDied: as a call of `Isolated`.
    """
    return function(*arguments) if _inside else _kept(timeout)(function, *arguments)


def _kept(timeout: float) -> Isolated:
    """This thread's child for calls of such a length: a child runs one call at a time."""
    if timeout not in _own.children:
        _own.children[timeout] = Isolated(timeout)
    return _own.children[timeout]


class _Own(threading.local):
    """What each thread has for itself."""

    def __init__(self) -> None:
        self.children: dict[float, Isolated] = {}


_own = _Own()


def serve(descriptor: int, timeout: float) -> None:
    """Be the child: run calls until the parent is gone."""
    global _inside
    _inside = True
    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGUSR1, signal.SIGUSR2):
        signal.signal(number, signal.SIG_IGN)  # they are the parent's to handle; it ends its children
    connection = Connection(descriptor)
    gone = (EOFError, BrokenPipeError, ConnectionResetError)
    with open(os.devnull, "w", encoding="utf-8") as nowhere, contextlib.suppress(*gone):
        while True:
            call = connection.recv_bytes()
            # Ends this process from a thread of its own if the call hangs and the parent is no longer there to do it.
            faulthandler.dump_traceback_later(2 * timeout + 120, exit=True, file=nowhere)
            answer = _answer(call, connection)
            faulthandler.cancel_dump_traceback_later()
            connection.send_bytes(answer)


def _answer(call: bytes, connection: Connection) -> bytes:
    try:
        try:
            function, arguments = pickle.loads(call)
        finally:
            connection.send_bytes(b"begun")
        return pickle.dumps((True, function(*arguments)), protocol=pickle.HIGHEST_PROTOCOL)
    except Exception as error:
        return pickle.dumps((False, (error, traceback.format_exc())))


def map_isolated(
    function: Callable[[T], Any], items: Iterable[T], *, num_processes: int, timeout: float
) -> Generator[tuple[T, Any], None, None]:
    """Yield (item, what `function` made of it) in the order of the items, from several processes.

    A call that died twice gives its `ProcessDied` in place of a result; any other exception is raised.
    """
    source = iter(items)
    idle = [Isolated(timeout) for _ in range(num_processes)]
    everyone = tuple(idle)
    waiting: deque[_Call] = deque()
    todo: deque[_Call] = deque()
    try:
        while True:
            room = num_processes * _AHEAD - len(waiting)
            fresh = [_Call(item) for item in islice(source, room)]
            waiting.extend(fresh)
            todo.extend(fresh)
            if not waiting:
                return
            while idle and todo:
                call = todo.popleft()
                call.process = idle.pop()
                call.process.start(function, call.item)
            _finish_some([call for call in waiting if call.process is not None], idle, todo)
            while waiting and waiting[0].finished:
                done = waiting.popleft()
                yield done.item, done.outcome
    finally:
        for process in everyone:
            process.close()


class _Call:
    """One item on its way through `map_isolated`."""

    def __init__(self, item: Any) -> None:
        self.item = item
        self.process: Isolated | None = None
        self.outcome: Any = None
        self.finished = self.failed = False


def _finish_some(running: list[_Call], idle: list[Isolated], todo: deque[_Call]) -> None:
    """Wait until a call has ended or run out of time, and collect those that have."""
    connections = [call.process.connection for call in running if call.process is not None]
    patience = min(call.process.seconds_left() for call in running if call.process is not None)
    wait(connections, timeout=patience)
    for call in running:
        process = call.process
        if process is None or not process.finished():
            continue
        call.process = None
        idle.append(process)
        try:
            call.outcome, call.finished = process.result(), True
        except ProcessDied as error:
            if call.failed:
                call.outcome, call.finished = error, True
            else:
                call.failed = True
                todo.appendleft(call)
