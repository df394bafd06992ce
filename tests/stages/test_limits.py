"""Settings that stages leave out of their fingerprints are settings that there are: a misspelt one would count."""

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
WITH_LIMITS = [
    file.stem for file in Path(stages.__path__[0]).glob("*.py") if "\nLIMITS = " in file.read_text(encoding="utf-8")
]


@pytest.mark.parametrize("name", WITH_LIMITS)
def test_limits_are_settings_of_their_stage_and_never_say_who_is_asked(name: str) -> None:
    stage = importlib.import_module(f"mmrlhf.stages.{name}")
    own = set(inspect.signature(stage.run).parameters)
    asked = {f"{key}.{each}" for key, kind in ASKED.items() for each in inspect.signature(kind).parameters}
    settings = own | {each for each in asked if each.partition(".")[0] in own}
    assert all(any(fnmatchcase(each, limit) for each in settings) for limit in stage.LIMITS)
    left_out = {each for each in settings if any(fnmatchcase(each, limit) for limit in stage.LIMITS)}
    assert not any(each.endswith((".url", ".model", ".max_tokens", ".options", ".max_missing")) for each in left_out)
