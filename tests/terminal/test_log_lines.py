"""Log records with hostile text: no forged record and no command to the terminal, on screen and in the file."""

from __future__ import annotations

import io
import logging
import logging.config
from pathlib import Path

import pytest
import yaml
from hypothesis import given
from hypothesis import strategies as st

from mmrlhf.composition.config import CONF
from mmrlhf.errors import DataError
from mmrlhf.terminal.log_lines import LineFormatter

FORGED = "nothing\n2026-01-01 ERROR root: forged\r\x1b[2Jgone\u2028x"


def logged(message: str, *arguments: object) -> str:
    record = logging.LogRecord("n", logging.INFO, "f", 1, message, arguments, None)
    return LineFormatter("%(levelname)s %(message)s").format(record)


def test_no_text_starts_a_record() -> None:
    lines = logged("fields: %s", FORGED).splitlines()
    assert lines[0] == "INFO fields: nothing"
    assert lines[1:] == ["  2026-01-01 ERROR root: forged \\x1b[2Jgone x"]


def test_an_error_of_ours_keeps_its_lines() -> None:
    error = DataError("no", where=FORGED, given="x")
    assert len(logged("%s; trying again", error).split("\n")) == 3


@given(st.text())
def test_any_text(text: str) -> None:
    first, *rest = logged("%s", text).split("\n")
    assert all(line.startswith("  ") for line in rest) and len(first.splitlines()) == 1
    assert "\x1b" not in first


def test_a_traceback_is_safe(tmp_path: Path) -> None:
    try:
        raise ValueError("\x1b[31m\u202e")
    except ValueError:
        stream = io.StringIO()
        handler = logging.StreamHandler(stream)
        handler.setFormatter(LineFormatter("%(message)s"))
        logger = logging.Logger("alone")
        logger.addHandler(handler)
        logger.exception("failed")
    assert "ValueError: \\x1b[31m\\u202e" in stream.getvalue() and "\x1b" not in stream.getvalue()


@pytest.mark.parametrize("name", ["short", "full"])
def test_every_handler_of_the_command_writes_so(name: str) -> None:
    settings = yaml.safe_load((CONF / "hydra" / "job_logging" / "mmrlhf.yaml").read_text(encoding="utf-8"))
    assert {handler["formatter"] for handler in settings["handlers"].values()} == {"short", "full"}
    logging.config.dictConfig(
        {"version": 1, "disable_existing_loggers": False, "incremental": False, "formatters": settings["formatters"]}
    )
    assert settings["formatters"][name]["class"] == f"{LineFormatter.__module__}.{LineFormatter.__qualname__}"
