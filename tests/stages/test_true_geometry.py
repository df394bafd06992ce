"""A photographed receipt at LLaVA-OneVision's own geometry, 8,721 tokens, through every stage that reads pictures."""

from __future__ import annotations

import math
import resource
from pathlib import Path

import pytest
import torch
from stand_ins.small_data import WORDS

from mmrlhf.chain.runtime import Runtime
from mmrlhf.inference.policy import Policy
from mmrlhf.inference.settings import CritiqueSettings, PassSettings
from mmrlhf.losses.mmdpo import MMDPO
from mmrlhf.methods.optim import OptimSettings
from mmrlhf.models.random_checkpoints import TinySize, build_tiny
from mmrlhf.models.settings import ModelSettings
from mmrlhf.shards.sidecar import SideCar
from mmrlhf.shards.writer import write_shards
from mmrlhf.stages import mmdpo, reference, reward, score
from mmrlhf.tokens.templates import AnswerTemplate
from mmrlhf.training.preview import preview_stage
from mmrlhf.training.ranks import Ranks
from mmrlhf.training.settings import Schedule, TrainSettings
from mmrlhf.types import Media, PreferenceGroup, Response

SIZE = TinySize(hidden=16, layers=1, heads=2, vision_hidden=16, vision_layers=1, max_positions=32768, published=True)
VISUAL = 8721
# what a checkpoint has positions for is all that bounds a query, as in the recipe (`max_tokens: null`)
MODEL = ModelSettings(layout="packed", attention="sdpa")
TRAINING = TrainSettings(
    model=MODEL,
    optim=OptimSettings(lr=1e-3),
    schedule=Schedule(epochs=None, max_steps=1, groups_per_step=1, token_budget=9500, holdout=0.0),
)
PASSES = PassSettings(model=MODEL, token_budget=9500, groups_per_batch=1)


@pytest.fixture
def receipt(shared_data: Path, tmp_path: Path) -> tuple[Path, Path, PreferenceGroup]:
    """Shards of one query, a policy, and the query."""
    data = (shared_data / "real_pairs" / "long" / "receipt.png").read_bytes()
    texts = ("red circle above", "blue square", "no picture left")
    responses = tuple(Response(text, rank=n, critiques={"full": f"yes {text}"}) for n, text in enumerate(texts, 1))
    group = PreferenceGroup("receipt", "picture right ?", responses, (Media("image", ("0.png",), (data,)),))
    write_shards([group], tmp_path / "shards")
    build_tiny("llava_onevision", tmp_path / "policy", texts=[" ".join(WORDS)] * 40, size=SIZE)
    return tmp_path / "shards", tmp_path / "policy", group


@pytest.mark.slow
def test_a_large_picture_goes_through_every_stage(
    receipt: tuple[Path, Path, PreferenceGroup], tmp_path: Path, runtime: Runtime
) -> None:
    shards, policy, group = receipt
    asked = Policy.from_pretrained(policy, PASSES, device="cpu")
    encoded = asked.encoder(group)
    assert int((encoded.prefix_ids == asked.model.backbone.config.image_token_id).sum()) == VISUAL
    plan = preview_stage(shards=shards, checkpoint=policy, training=TRAINING, template=AnswerTemplate(), ranks=Ranks())
    assert VISUAL <= plan.visual_tokens <= VISUAL + 16 and not plan.preflight.too_long
    assert encoded.num_tokens <= plan.largest_micro_batch <= 1.05 * encoded.num_tokens

    table = tmp_path / "reference"
    reference.run(table, shards=shards, policy=policy, passes=PASSES, holdout=0.0, runtime=runtime)
    reward.run(tmp_path / "reward", shards=shards, policy=policy, training=TRAINING, num_samples=0, runtime=runtime)
    summary = score.run(
        tmp_path / "score",
        shards=shards,
        reward_model=tmp_path / "reward" / "model",
        passes=PASSES,
        critiques=CritiqueSettings(max_tokens=8),
        holdout=0.0,
        runtime=runtime,
    )
    assert summary["responses_scored"] == 3 and summary["responses_shortened"] == 0
    hashes = [response.hash for response in group.responses]
    rewards = SideCar.load(tmp_path / "score" / "rewards").lookup(group.key, hashes)["reward"]
    logprobs = SideCar.load(table / "logprobs").lookup(group.key, hashes)["reference_logprob"]
    assert torch.isfinite(rewards).all() and torch.isfinite(logprobs).all() and len(set(rewards.tolist())) == 3
    trained = mmdpo.run(
        tmp_path / "mmdpo",
        shards=shards,
        policy=policy,
        objective=MMDPO(),
        rewards=tmp_path / "score" / "rewards",
        reference=table / "logprobs",
        training=TRAINING,
        runtime=runtime,
    )
    assert trained["steps"] == 1 and trained["train"]["loss"] == pytest.approx(math.log(2), abs=1e-3)
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss < 6 * 2**20, "KiB"
