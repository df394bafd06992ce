"""The card of a trained model says what it is, and names no place on the machine that made it."""

from __future__ import annotations

import json
import re
from pathlib import Path

import yaml
from markdown_it import MarkdownIt

from mmrlhf import Policy
from mmrlhf.chain.runtime import Runtime
from mmrlhf.losses.mmdpo import MMDPO
from mmrlhf.stages import mmdpo, sft
from mmrlhf.summaries.rankings import Accuracy, Estimate, PartAccuracy
from mmrlhf.tokens.processing import MediaSettings
from mmrlhf.training.model_card import base_model, figures_table
from mmrlhf.training.settings import Schedule, TrainSettings

SETTINGS = TrainSettings(
    media=MediaSettings(num_frames=3), schedule=Schedule(max_steps=1, groups_per_step=2, holdout=0.3)
)


def _card(folder: Path) -> tuple[dict, str]:
    match = re.fullmatch(r"---\n(.*?)---\n(.*)", (folder / "README.md").read_text(), re.DOTALL)
    assert match is not None
    return yaml.safe_load(match[1]), match[2]


def test_a_trained_policy_carries_its_card(
    tmp_path: Path, small_shards: Path, small_policy: Path, runtime: Runtime
) -> None:
    sft.run(tmp_path / "a", shards=small_shards, policy=small_policy, training=SETTINGS, runtime=runtime)
    first = tmp_path / "a" / "model"
    # as if the first training had begun from a checkpoint on the hub
    card = json.loads((first / "policy.json").read_text())
    assert card["base"] is None and Policy.from_pretrained(first, device="cpu").encoder.media.num_frames == 3
    (first / "policy.json").write_text(json.dumps({**card, "base": "someone/some-model"}))
    summary = mmdpo.run(
        tmp_path / "b", shards=small_shards, policy=first, objective=MMDPO(w=0.7), training=SETTINGS,
        margin_from="implicit", reference_from="frozen_copy", runtime=runtime,
    )  # fmt: skip
    facts, text = _card(tmp_path / "b" / "model")
    assert facts["base_model"] == "someone/some-model" and facts["library_name"] == "transformers"
    for part in ("objective: MMDPO", "w: 0.7", "queries: 14", "num_frames: 3", "Policy.from_pretrained", "Licence"):
        assert part in text
    accuracy = summary["heldout"]["acc"]
    assert f"| acc | {accuracy['mean']:.3f} [{accuracy['low']:.3f}, {accuracy['high']:.3f}] |" in text
    assert "library" not in _card(first)[1]


def test_nothing_in_a_folder_names_a_place(
    tmp_path: Path, small_shards: Path, small_policy: Path, runtime: Runtime
) -> None:
    sft.run(tmp_path / "a", shards=small_shards, policy=small_policy, training=SETTINGS, runtime=runtime)
    texts = [file for file in (tmp_path / "a" / "model").iterdir() if file.suffix in (".json", ".md", ".jinja", ".txt")]
    assert len(texts) >= 5
    for file in texts:
        for place in (tmp_path, small_shards, small_policy):
            assert str(place) not in file.read_text(), file.name


def test_a_base_is_a_hub_id_or_what_a_folder_says(tmp_path: Path) -> None:
    assert base_model("someone/some-model") == "someone/some-model"
    assert base_model(tmp_path) is None
    (tmp_path / "reward_model.json").write_text('{"base": "someone/other"}')
    assert base_model(tmp_path) == "someone/other"


def test_a_category_of_strangers_is_no_markup_of_a_card() -> None:
    one = Estimate(0.5, None, None)
    heldout = Accuracy(one, one, 4, 1, 0, {"<img src=x>|[a](http://b)": PartAccuracy(one, one, 4, 1, 0)})
    page = MarkdownIt("commonmark").enable("table").render(figures_table(heldout, {}))
    assert "<img" not in page and "<a " not in page and page.count("<td>") == 2 * 4


def test_without_held_out_queries_the_card_says_so() -> None:
    assert "no query was held out" in figures_table(None, {})


def test_a_number_without_an_interval_is_written_without_one() -> None:
    one, whole = Estimate(0.5, None, None), Estimate(0.25, 0.1, 0.4)
    table = figures_table(Accuracy(one, whole, 4, 1, 0, {"long": PartAccuracy(one, one, 4, 1, 0)}), {"loss": 0.5})
    assert "| acc | 0.500 |" in table and "| acc_plus | 0.250 [0.100, 0.400] |" in table
    assert "| categories / long / acc | 0.500 |" in table and "| loss | 0.5 |" in table
