"""What a parameter may be is declared with it: numbers in their range, choices among theirs, not a number nowhere."""

from __future__ import annotations

import math
import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Literal, get_args

import pytest
import yaml
from hydra.utils import get_object
from hypothesis import given
from hypothesis import strategies as st

from mmrlhf.composition.config import CONF
from mmrlhf.composition.signatures import parameters
from mmrlhf.errors import ConfigError
from mmrlhf.losses.mmdpo import MMDPO
from mmrlhf.methods.optim import OptimSettings
from mmrlhf.models.settings import ModelSettings
from mmrlhf.ranges import Count, Positive, Share, ShareBelowOne, check_arguments, declared, whole
from mmrlhf.training.settings import Schedule
from mmrlhf.trees import described_objects


@pytest.mark.parametrize(
    ("owner", "name", "wrong"),
    [
        (OptimSettings, "lr", [0, -1, math.nan, math.inf, "fast", None, True]),
        (OptimSettings, "weight_decay", [-0.1, math.nan]),
        (OptimSettings, "betas", [(0.9, 1.0), (-0.1, 0.9), (0.9,), (math.nan, 0.9)]),
        (OptimSettings, "max_grad_norm", [-1, math.nan, math.inf]),
        (OptimSettings, "warmup", [-0.1, 1.1, math.nan]),
        (OptimSettings, "schedule", ["cosin", None]),
        (ModelSettings, "lora_rank", [0, -1, 2.5]),
        (ModelSettings, "lora_dropout", [1.0, -0.1]),
        (ModelSettings, "logprob_chunk", [0, -1]),
        (Schedule, "epochs", [0, -1, math.nan, math.inf]),
        (Schedule, "keep_checkpoints", [0, 1.5]),
        (Schedule, "holdout", [1.0, -0.1, math.nan]),
        (MMDPO, "beta", [0, math.nan, math.inf]),
        (MMDPO, "margin_scale", ["standard", 0, -1, math.nan]),
    ],
)
def test_a_value_out_of_its_range_is_refused_by_name(owner: type, name: str, wrong: list[Any]) -> None:
    for value in wrong:
        with pytest.raises(ConfigError) as caught:
            owner(**{name: value})
        assert caught.value.argument == name, value


def test_none_and_zero_where_they_mean_off() -> None:
    assert OptimSettings(max_grad_norm=0).max_grad_norm == 0 and OptimSettings(max_grad_norm=None, head_lr=None)
    assert Schedule(max_steps=None, limit=None) and MMDPO(w=0.0, margin_scale=3.0)


def _toy(
    count: Count,
    rate: Positive | None = None,
    *,
    shares: dict[str, Share] | None = None,
    kind: Literal["a", "b"] = "a",
    names: Sequence[str] = (),
    either: str | Sequence[str] = "",
) -> None:
    """Takes one argument of each kind."""


@given(st.integers() | st.floats() | st.none() | st.text() | st.booleans())
def test_an_argument_passes_exactly_if_it_is_in_its_range(value: Any) -> None:
    number = isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)
    fits = {
        "count": isinstance(value, int) and number and value >= 1,
        "rate": value is None or (number and value > 0),
        "kind": value in ("a", "b"),
    }
    for name, passes in fits.items():
        if passes:
            check_arguments(_toy, {name: value})
        else:
            with pytest.raises(ConfigError, match=name):
                check_arguments(_toy, {name: value})
    share = number and 0 <= value <= 1
    if share:
        check_arguments(_toy, {"shares": {"x": value}})
    else:
        with pytest.raises(ConfigError, match="each a finite number"):
            check_arguments(_toy, {"shares": {"x": value}})


@given(st.integers() | st.floats() | st.text() | st.booleans())
def test_one_text_or_number_is_no_list_and_no_mapping(value: Any) -> None:
    """As a shell makes of `mix={long:4,short:5}` without quotes: `mix=long:4 mix=short:5`."""
    for name in ("shares", "names"):
        with pytest.raises(ConfigError, match=r"VALUE, \.\.\.") as caught:
            check_arguments(_toy, {name: value})
        assert caught.value.argument == name
    if isinstance(value, str):
        check_arguments(_toy, {"either": value, "names": [value]})


def _targets() -> set[str]:
    contents = (yaml.safe_load(file.read_text()) for file in Path(CONF).rglob("*.yaml"))
    names = {str(node["_target_"]) for content in contents for _, node in described_objects(content)}
    return {name for name in names if name.startswith("mmrlhf.")} | {"mmrlhf.chain.runtime.Runtime"}


@pytest.mark.parametrize("target", sorted(_targets()))
def test_every_number_has_a_range(target: str) -> None:
    """A bare `int` or `float` among the parameters of a configured object is a range that nobody declared."""
    bare = {
        name: parameter.annotation
        for name, parameter in (parameters(target) or {}).items()
        if re.search(r"\b(int|float)\b", parameter.annotation) and name != "devices"  # Lightning's own
    }
    assert not bare
    assert set(parameters(target) or {}) <= set(declared(get_object(target)))


def test_aliases_say_their_range() -> None:
    for alias in (Count, Positive, Share, ShareBelowOne):
        assert len(get_args(alias)) == 2


def test_the_whole_part_of_decimals() -> None:
    """0.29 * 100 is 28.999999999999996."""
    assert [whole(share * 100) for share in (0.29, 0.57, 0.58, 0.1, 0.0)] == [29, 57, 58, 10, 0]
    assert whole(0.999) == 0 and whole(1e9 + 0.5) == 10**9
