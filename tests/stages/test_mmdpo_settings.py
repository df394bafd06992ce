"""Choices of method, pairs and margin that do not fit together are refused before anything is built for them."""

from __future__ import annotations

import hydra
import pytest
from hydra.core.global_hydra import GlobalHydra

from mmrlhf.composition.config import CONF, make, read_stage
from mmrlhf.errors import ConfigError
from mmrlhf.stages import mmdpo


def check(*overrides: str) -> None:
    """Check the stage `mmdpo` as the app does, with these words on the command line."""
    GlobalHydra.instance().clear()
    with hydra.initialize_config_dir(str(CONF), version_base="1.3"):
        config = hydra.compose("config", list(overrides))
    settings = read_stage(config, "mmdpo")
    assert settings.pop("_target_") == "mmrlhf.stages.mmdpo.run"
    mmdpo.check_settings(make(settings, "stages.mmdpo"))


@pytest.mark.parametrize("pairs", ["pairs=margin_filtered", "pairs.rank_by=reward", "pairs.ties=reward"])
def test_the_policys_own_rewards_choose_no_pairs(pairs: str) -> None:
    with pytest.raises(ConfigError, match="chosen by rewards") as caught:
        check("margin=implicit", pairs)
    assert "margin=implicit" in str(caught.value) and "pairs=all" in str(caught.value)
    check("margin=human", pairs)


def test_margins_must_come_from_somewhere() -> None:
    with pytest.raises(ConfigError, match="MMDPO needs margins"):
        check("inputs.rewards=null")
    check("inputs.rewards=null", "method=dpo")


@pytest.mark.parametrize("method", ["mmdpo", "odpo", "simpo", "dpo", "plackett_luce"])
def test_implicit_margins_go_with_every_method(method: str) -> None:
    check("margin=implicit", f"method={method}")


def test_a_ranking_takes_no_chosen_pairs() -> None:
    with pytest.raises(ConfigError, match="whole ranking"):
        check("method=plackett_luce", "pairs=hardest")
