"""`protocol=released`: thumbnails alone, a clip's first frame, in every path that reads pictures; no other family."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch
from stand_ins.small_data import draw_group, picture

from mmrlhf.errors import ConfigError
from mmrlhf.inference.passes import forward_groups
from mmrlhf.inference.reward_model import RELEASED_CRITIQUE, RewardModel
from mmrlhf.inference.scoring import Scoring
from mmrlhf.inference.settings import CritiqueSettings, PassSettings
from mmrlhf.models.forward import PackedModel
from mmrlhf.models.heads import build_head
from mmrlhf.models.load import load_backbone
from mmrlhf.models.reward_folder import save_reward_model
from mmrlhf.models.settings import ModelSettings
from mmrlhf.shards.index import Index
from mmrlhf.tensors import THUMBNAILS
from mmrlhf.types import Media

CARD = {"critique": "full", "instruction": ""}
ASKED = PassSettings(ModelSettings(max_tokens=8000))


def save(folder, out):
    torch.manual_seed(0)
    backbone, processor = load_backbone(folder, ModelSettings())
    head = build_head("linear", backbone.config.get_text_config().hidden_size)
    for parameter in head.parameters():
        torch.nn.init.normal_(parameter)
    model = PackedModel(backbone, ModelSettings(), score_head=head)
    save_reward_model(model, processor, out, card=CARD)
    return out


@pytest.fixture(scope="module")
def folder(tiny_folders, tmp_path_factory):
    return save(tiny_folders["llava_onevision"], tmp_path_factory.mktemp("released") / "model")


def ask(folder, protocol: str, **options) -> RewardModel:
    return RewardModel.from_pretrained(folder, ASKED, CritiqueSettings(max_tokens=4), protocol=protocol, **options)  # type: ignore[arg-type]


def pictures(*sizes: tuple[int, int]) -> tuple[Media, ...]:
    rng = np.random.default_rng(3)
    return tuple(Media("image", (f"{i}.png",), (picture(rng, *size),)) for i, size in enumerate(sizes))


@pytest.mark.parametrize("sizes", [[(150, 90)], [(150, 90), (40, 77)]], ids=["one", "two"])
def test_scores_are_those_of_the_first_views_features(folder, sizes) -> None:
    """Against the stock parts: tower and projector on the thumbnail, put where the picture's tokens are."""
    judge = ask(folder, "released", device="cpu")
    group = replace(draw_group(1), prompt="what is it ?", media=pictures(*sizes))
    encoded = judge.encoder(group)
    backbone = judge.model.backbone
    views = encoded.media[THUMBNAILS]
    side = backbone.config.vision_config.image_size // backbone.config.vision_config.patch_size
    ids = torch.cat([encoded.prefix_ids, encoded.branches[0].ids])[None]
    shown = ids == backbone.config.image_token_id
    assert int(shown.sum()) == len(sizes) * side * side and views.shape[0] == len(sizes)
    base = backbone.model
    with torch.no_grad():
        seen = base.vision_tower(views, output_hidden_states=True).hidden_states[backbone.config.vision_feature_layer]
        embedded = base.get_input_embeddings()(ids)
        embedded[shown] = base.multi_modal_projector(seen).flatten(0, 1)
        hidden = base.language_model(inputs_embeds=embedded).last_hidden_state[:, -1]
        expected = judge.model.score_head(hidden)[0, 0]
    (found,) = forward_groups(judge.model, [encoded], token_budget=9999)
    assert found.reward is not None and found.reward[0].item() == pytest.approx(expected.item(), abs=1e-4)
    (trained,) = forward_groups(judge.model, [ask(folder, "trained", device="cpu").encoder(group)], token_budget=9999)
    assert trained.reward is not None and abs(trained.reward[0] - found.reward[0]) > 1e-3


def test_of_a_clip_it_sees_the_first_frame(folder) -> None:
    judge = ask(folder, "released", device="cpu")
    shots = pictures((60, 50), (60, 50), (60, 50))
    clip = Media("frames", ("f0.png", "f1.png", "f2.png"), tuple(shot.data[0] for shot in shots))
    whole, first = (
        judge.encoder(replace(draw_group(1), prompt="what is it ?", media=media)) for media in ((clip,), shots[:1])
    )
    assert torch.equal(whole.media[THUMBNAILS], first.media[THUMBNAILS])
    assert torch.equal(whole.prefix_ids, first.prefix_ids)


def test_critiques_are_written_from_it_and_tables_do_not_mix(folder, small_shards, runtime) -> None:
    released, trained = ask(folder, "released", device="cpu"), ask(folder, "trained", device="cpu")
    assert released.critiques.max_tokens == RELEASED_CRITIQUE == 4096
    released.critiques = replace(released.critiques, max_tokens=4)
    group = replace(draw_group(1), prompt="what is it ?", media=pictures((150, 90)))
    ((given,), (verdicts,)) = released.score_groups([group], critique_source="given"), released.score_groups([group])
    assert len(given) == len(verdicts) == len(group.responses)
    index = Index.load(small_shards)
    said = [Scoring(index, judge, folder, 4, runtime).fingerprint("generate") for judge in (released, trained)]
    assert said[0]["protocol"] == "released" and "protocol" not in said[1]


def test_other_families_are_refused(tiny_folders, tmp_path) -> None:
    other = save(tiny_folders["qwen2_5_vl"], tmp_path / "model")
    with pytest.raises(ConfigError, match=r"protocol=released, a model of the family qwen2_5_vl"):
        ask(other, "released")
    with pytest.raises(ConfigError, match="cannot be asked under this protocol"):
        ask(other, "other")
