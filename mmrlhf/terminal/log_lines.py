"""Log lines that no text of others can break up, forge or colour."""

from __future__ import annotations

import logging
from types import TracebackType

from typing_extensions import override

from mmrlhf.text import one_line

_ExcInfo = tuple[type[BaseException], BaseException, TracebackType | None] | tuple[None, None, None]


class LineFormatter(logging.Formatter):
    """Formats messages so that a text in them can neither start a record of its own nor command the terminal.

    Line feeds stay, as errors have several lines, but what follows one is indented; tracebacks keep their shape.
    """

    @override
    def format(self, record: logging.LogRecord) -> str:
        first, *rest = record.getMessage().split("\n")
        safe = logging.makeLogRecord(record.__dict__)
        safe.msg = "\n".join([one_line(first), *(f"  {one_line(line).lstrip()}" for line in rest)])
        safe.args = ()
        return super().format(safe)

    @override
    def formatException(self, ei: _ExcInfo) -> str:  # noqa: N802
        return "\n".join(f"  {one_line(line)}" for line in super().formatException(ei).split("\n"))
