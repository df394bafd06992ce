"""What is refused before the first stage runs, whichever stage would have met it."""

from __future__ import annotations

from contextlib import nullcontext
from pathlib import Path
from typing import Any

import pytest

from mmrlhf.chain.order import Node
from mmrlhf.composition.checks import check_adapters, check_chain, check_protocols
from mmrlhf.errors import ConfigError

RUNTIME = {"trainer": {"accelerator": "cpu"}}
RELEASED = {"reward_model": "stage:reward/model", "protocol": "released"}


def chain(start: dict[str, Any], judged: dict[str, Any]) -> list[Node]:
    """A reward model in training behind two other trainings, and the stage that asks it."""
    return [
        Node("tiny", "m.run", start, ()),
        Node("sft", "m.run", {"policy": "stage:tiny/model"}, ("tiny",)),
        Node("reward", "m.run", {"policy": "stage:sft/model"}, ("sft",)),
        Node("score", "m.run", judged, ("reward",)),
    ]


@pytest.mark.parametrize("family", ["qwen2_5_vl", "internvl"])
def test_a_protocol_of_another_family_is_refused_before_its_model_is_trained(
    family: str, tiny_folders: dict[str, Path]
) -> None:
    """By the family that a stage will make, by that of a folder it starts from, and by a finished reward model's."""
    folder = str(tiny_folders[family])
    wrong = [
        chain({"family": family}, RELEASED),
        chain({"policy": folder}, RELEASED),
        chain({"base": folder}, RELEASED),
        chain({"family": "llava_onevision"}, {**RELEASED, "reward_model": folder}),
    ]
    for nodes in wrong:
        with pytest.raises(ConfigError, match=f"protocol=released, a model of the family {family}"):
            check_protocols(nodes)


def test_a_protocol_of_the_family_passes(tiny_folders: dict[str, Path]) -> None:
    """As does every family asked as it was trained, a measurement without a model, and what nothing says."""
    check_protocols(chain({"family": "llava_onevision"}, RELEASED))
    check_protocols(chain({"policy": str(tiny_folders["llava_onevision"])}, RELEASED))
    check_protocols(chain({"family": "internvl"}, {**RELEASED, "protocol": "trained"}))
    check_protocols(chain({"family": "internvl"}, {"protocol": "released", "reward_model": None}))
    check_protocols(chain({}, RELEASED))


def _training(name: str, policy: str, save: str) -> Node:
    references = (policy.removeprefix("stage:").partition("/")[0],) if policy.startswith("stage:") else ()
    return Node(name, f"mmrlhf.stages.{name}.run", {"policy": policy, "training": {"save": save}}, references)


@pytest.mark.parametrize(("first", "second", "refused"), [
    ("adapter", "adapter", True), ("adapter", "both", True), ("both", "both", False), ("both", "adapter", False),
    ("merged", "adapter", False), ("adapter", "merged", False),
])  # fmt: skip
def test_adapters_of_adapters_are_refused_before_the_first_are_trained(first: str, second: str, refused: bool) -> None:
    nodes = [_training("sft", "BASE", first), _training("mmdpo", "stage:sft/model", second)]
    check_adapters([_training("mmdpo", "BASE", second)])
    with pytest.raises(ConfigError, match=r"stage sft with save=both") if refused else nullcontext():
        check_adapters(nodes)


@pytest.mark.parametrize(("family", "plain"), [("gemma3", False), ("qwen2_5_vl", True)])
def test_attention_for_plain_layers_is_refused_by_the_configuration_that_is_known(
    family: str, plain: bool, tiny_folders: dict[str, Path]
) -> None:
    """By that of a folder, also behind a training, and by the family's own where a stage makes its model of nothing."""
    model = {"_target_": "mmrlhf.models.settings.ModelSettings", "attention": "cascade"}
    settings = {"_target_": "mmrlhf.training.settings.TrainSettings", "model": model}
    folder, trained = str(tiny_folders[family]), {"shards": "SHARDS", "training": settings}
    made = [
        Node("made", "mmrlhf.stages.tiny.run", {"shards": "SHARDS", "family": family}, ()),
        Node("made", "mmrlhf.stages.import_reward.run", {"checkpoint": "FILE", "base": folder}, ()),
    ]
    for above, start in (([], folder), (made[:1], "stage:made/model"), (made[1:], "stage:made/model")):
        nodes = [
            *above,
            Node("first", "mmrlhf.stages.sft.run", {**trained, "policy": start}, tuple(node.name for node in above)),
            Node("sft", "mmrlhf.stages.sft.run", {**trained, "policy": "stage:first/model"}, ("first",)),
        ]
        with nullcontext() if plain else pytest.raises(ConfigError, match="cascade is for plain causal layers"):
            check_chain(nodes, RUNTIME, frozenset())


def test_training_without_settings_names_its_key() -> None:
    node = Node("sft", "mmrlhf.stages.sft.run", {"shards": "SHARDS", "policy": "BASE", "training": None}, ())
    with pytest.raises(ConfigError, match="no settings of its training") as raised:
        check_chain([node], RUNTIME, frozenset())
    assert raised.value.argument == "stages.sft.training"
