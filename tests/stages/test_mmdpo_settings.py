"""Choices of method, pairs and margin that do not fit together are refused before anything is built for them."""

from __future__ import annotations

import hydra
import pytest
from hydra.core.global_hydra import GlobalHydra

from mmrlhf.composition.config import CONF, read_stage
from mmrlhf.composition.instantiate import make
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
    with pytest.raises(ConfigError, match="MMDPO needs margins") as caught:
        check("inputs.rewards=null")
    assert caught.value.argument == "rewards"
    check("inputs.rewards=null", "method=dpo")
    check("margin=mean")


@pytest.mark.parametrize("method", ["mmdpo", "odpo", "simpo", "dpo", "plackett_luce"])
def test_implicit_margins_go_with_every_method(method: str) -> None:
    check("margin=implicit", f"method={method}")


@pytest.mark.parametrize(
    "words",
    [
        ("method.margin_scale=standardise",),
        ("method.negative_margin=drop",),
        ("method=hard_filter",),
        ("method=hard_filter", "method.threshold=1"),
        ("method=hard_filter", "method.threshold=-0.001"),
        ("method=shuffled_margin",),
        ("method=mean_beta_dpo", "method.negative_margin=drop"),
        ("method=outside_weight", "method.margin_scale=standardise"),
    ],
)
def test_rounding_does_not_decide_what_is_learned(words: tuple[str, ...]) -> None:
    with pytest.raises(ConfigError, match="the policy is the reference") as caught:
        check("margin=implicit", *words)
    assert "margin=human" in str(caught.value)
    check("margin=human", *words)


def test_losses_that_are_continuous_at_equal_rewards_take_implicit_margins() -> None:
    for words in (
        ("method.negative_margin=signed",),
        ("method.margin_scale=2.0",),
        ("method=mean_beta_dpo",),
        ("method=outside_weight",),
        ("method=hard_filter", "method.threshold=-1"),
    ):
        check("margin=implicit", *words)


def test_a_ranking_takes_no_chosen_pairs() -> None:
    with pytest.raises(ConfigError, match="whole ranking"):
        check("method=plackett_luce", "pairs=hardest")


def test_responses_are_not_labelled_by_rewards_that_are_all_zero_at_first() -> None:
    with pytest.raises(ConfigError, match="labels responses by their rewards"):
        check("margin=implicit", "method=kto_by_reward")
    check("margin=implicit", "method=kto")
    check("margin=human", "method=kto_by_reward")
