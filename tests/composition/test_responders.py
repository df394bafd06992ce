"""Responders by name on the command line, and an endpoint in the place of a policy."""

from __future__ import annotations

import os
from pathlib import Path

import hydra
import pytest
from hydra.core.global_hydra import GlobalHydra
from omegaconf import DictConfig

from mmrlhf.chain.order import plan_chain
from mmrlhf.composition.config import CONF, read_stage, stage_names, user_inputs
from mmrlhf.composition.unread import check_read

ENDPOINT = ["policy=endpoint", "policy.endpoint.url=http://localhost:1/v1", "policy.endpoint.model=big"]


def composed(*words: str) -> DictConfig:
    GlobalHydra.instance().clear()
    with hydra.initialize_config_dir(str(CONF), version_base="1.3"):
        return hydra.compose("config", list(words))


def chain(config: DictConfig, goal: str) -> list[str]:
    return [node.name for node in plan_chain(goal, lambda name: read_stage(config, name), stage_names(config))]


def test_responders_are_named_without_a_plus_and_their_places_are_inputs(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    os.makedirs("own/model")
    words = ["responders.own.kind=local", "responders.own.model=own/model", "responders.far.kind=local",
             "responders.far.model=owner/name", "responders.big.kind=endpoint", "responders.big.options.top_p=0.5",
             "responders.late.kind=batch", "responders.late.folder=nowhere"]  # fmt: skip
    config = composed(*words)
    check_read(config)
    settings = read_stage(config, "respond")["responders"]
    assert settings["big"] == {"kind": "endpoint", "options": {"top_p": 0.5}} and list(settings) == [
        "own",
        "far",
        "big",
        "late",
    ]
    assert "own/model" in user_inputs(config) and not {"owner/name", "nowhere"} & user_inputs(config)


def test_an_endpoint_in_place_of_a_policy_trains_nothing(own_store: Path) -> None:
    usual, other = composed(), composed(*ENDPOINT)
    check_read(other)
    assert "sft" in chain(usual, "generate")
    assert chain(other, "generate") == ["world", "pack", "generate"]
    assert chain(other, "best_answers") == ["world", "pack", "best_answers"]
    assert "mmdpo" in chain(usual, "evaluate") and "mmdpo" not in chain(other, "evaluate")
    settings = read_stage(other, "evaluate")
    assert settings["policy"]["url"] == "http://localhost:1/v1" and settings["reference"] is None
