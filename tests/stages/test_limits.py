"""Money and patience of whoever is asked are no part of a stage's fingerprint; who is asked, and what, is."""

from __future__ import annotations

import importlib
import inspect
from fnmatch import fnmatchcase
from pathlib import Path

import pytest

from mmrlhf import stages
from mmrlhf.expansion.expanders import EndpointExpander
from mmrlhf.judging.judge_model import JudgeSettings
from mmrlhf.responders.endpoint import EndpointAnswerer

ASKED = {
    "expander": EndpointExpander, "judge": JudgeSettings,
    "policy": EndpointAnswerer, "responders.big": EndpointAnswerer,
}  # fmt: skip
# how a stage's parameter says that somebody paid may stand behind it
PAID = ("Expander", "JudgeSettings", "JudgeModel", "EndpointAnswerer")
PAYING = [
    file.stem
    for file in sorted(Path(stages.__path__[0]).glob("*.py"))
    if any(word in file.read_text(encoding="utf-8") for word in (*PAID, "max_cost"))
]
MONEY_AND_PATIENCE = {"max_cost", "price_in", "price_out", "timeout", "retries", "concurrency", "key_variable"}
WHO_AND_WHAT = {"url", "model", "max_tokens", "options", "max_missing", "longest_side"}


@pytest.mark.parametrize("name", PAYING)
def test_limits_are_left_out_and_nothing_else(name: str) -> None:
    stage = importlib.import_module(f"mmrlhf.stages.{name}")
    takes = inspect.signature(stage.run).parameters
    # elsewhere a `judge` is a reward model's folder, and a `policy` a checkpoint's
    paid = {key for key, each in takes.items() if key == "responders" or any(word in str(each) for word in PAID)}
    asked = {f"{key}.{each}" for key, kind in ASKED.items() for each in inspect.signature(kind).parameters}
    settings = set(takes) | {each for each in asked if each.partition(".")[0] in paid}
    left_out = {each for each in settings if any(fnmatchcase(each, limit) for limit in stage.LIMITS)}
    assert {each for each in settings if each.rpartition(".")[2] in MONEY_AND_PATIENCE} <= left_out
    assert not {each.rpartition(".")[2] for each in left_out} & WHO_AND_WHAT
    assert all(any(fnmatchcase(each, limit) for each in settings) for limit in stage.LIMITS), "each is a setting"


def test_all_of_them_are_found() -> None:
    assert set(PAYING) == {"evaluate", "expand", "generate", "respond", "rewardbench", "suite_scores"}
