"""Mistakes on the command line: whatever Hydra says, the user reads what was given, what there is, and what is near."""

from __future__ import annotations

import hydra
import pytest
from hydra.core.global_hydra import GlobalHydra
from hydra.errors import HydraException
from hypothesis import given
from hypothesis import strategies as st
from omegaconf.errors import OmegaConfBaseException

from mmrlhf.composition.config import CONF
from mmrlhf.composition.overrides import explain, known_settings
from mmrlhf.errors import ConfigError


def _mistake(*words: str) -> ConfigError:
    GlobalHydra.instance().clear()
    with hydra.initialize_config_dir(str(CONF), version_base="1.3"):
        try:
            hydra.compose("config", list(words))
        except (HydraException, OmegaConfBaseException) as error:
            return explain(error, words)
    raise AssertionError(f"{words} is no mistake")


@pytest.mark.parametrize(
    ("word", "problem", "fix"),
    [
        ("method.ww=1", "no setting `method.ww`", "did you mean method.w?"),
        ("methd=dpo", "no setting `methd`", "did you mean method?"),
        ("methd.w=1", "no setting `methd.w`", "method.w"),
        ("expermient=x", "no setting `expermient`", "did you mean experiment?"),
        ("trainer.device=2", "no setting `trainer.device`", "did you mean trainer.devices?"),
        ("stages.mmdpo.pars=x", "no setting `stages.mmdpo.pars`", "stages.mmdpo.pairs"),
        ("zzzzzz=1", "no setting `zzzzzz`", "--cfg job"),
        ("~method.q", "no setting `method.q`", "--cfg job"),
        ("method=dpoo", "no method `dpoo`", "method=dpo or"),
        ("experiment=mmdpo_lava", "no experiment `mmdpo_lava`", "experiment=mmdpo_llava"),
        ("experiment=mmdpo_llava_hardest", "no experiment", "words: experiment=mmdpo_llava pairs=hardest"),
        ("experiment=mmdpo_qwen2_5_vl_hardest", "no exp", "experiment=mmdpo model=qwen2_5_vl pairs=hardest"),
        ("experiment=dpo_internvl", "no experiment", "words: experiment=dpo model=internvl"),
        ("experiment=reward_internvl_no_critique", "no", "experiment=reward model=internvl data.critique=none"),
        ("hydra/launcher=nowhere", "launcher `nowhere` is not installed", "[sweeps]"),
        ("method.w=1,2", "a sweep", "add -m"),
        ("method.w=1,,2", "cannot be read", None),
        ("scale", "cannot be read", "scale lacks `=`"),
        ("modl@x=shapes", "does not exist", "--cfg job"),
        ("+model.settings.lora_rank=4", "there already", "leave out the +: model.settings.lora_rank=4"),
    ],
)
def test_every_mistake_says_what_to_do(word: str, problem: str, fix: str | None) -> None:
    error = _mistake(word)
    assert problem in error.problem
    assert error.fix is None if fix is None else fix in str(error.fix)
    assert word.lstrip("~").split("=")[0].split("/")[-1] in str(error)
    assert len(str(error).splitlines()) < 8 and len(str(error)) < 1500


def test_the_settings_beside_are_listed() -> None:
    assert _mistake("method=dpo", "method.ww=1").expected == "one of " + ", ".join(
        name for name in known_settings(["method=dpo"]) if name.startswith("method.")
    )
    assert "did you mean method?" in str(_mistake("methd=dpo").fix)


def test_another_mistake_does_not_hide_the_hint() -> None:
    error = explain(HydraException("Could not override 'method.ww'."), ["method=nonsense", "method.ww=1"])
    assert "method.w" in str(error.fix)


def test_settings_are_those_of_the_chosen_options() -> None:
    assert "method.link" not in known_settings([]) and "method.w" in known_settings(["seed=3", "method.q=1"])
    assert "method.w" not in known_settings(["method=dpo"])


@given(st.text(min_size=1, max_size=40))
def test_any_message_becomes_one_screen(text: str) -> None:
    error = explain(HydraException(text), ["a=1"])
    assert isinstance(error, ConfigError) and len(str(error).splitlines()) <= 5
