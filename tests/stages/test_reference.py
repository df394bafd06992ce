"""Stage `reference`: the cached log-probabilities are those of the policy itself, for every response, resumable."""

from __future__ import annotations

import math
from dataclasses import replace

import pytest
import torch
from safetensors.torch import load_file

from mmrlhf.errors import DataError
from mmrlhf.inference import tables
from mmrlhf.inference.policy import Policy
from mmrlhf.inference.settings import PassSettings
from mmrlhf.losses.dpo import DPO
from mmrlhf.methods.optim import OptimSettings
from mmrlhf.models.settings import ModelSettings
from mmrlhf.shards.index import Index
from mmrlhf.shards.sidecar import SideCar
from mmrlhf.stages import mmdpo, reference
from mmrlhf.tokens.packing import pack_groups
from mmrlhf.tokens.processing import MediaSettings
from mmrlhf.training.settings import Schedule, TrainSettings

PASSES = PassSettings(groups_per_batch=4)


def look_up(table: SideCar, group) -> dict[str, torch.Tensor]:
    return table.lookup(group.key, [response.hash for response in group.responses])


def test_the_table_holds_the_training_forwards_log_probabilities(
    tmp_path, small_shards, small_groups, small_policy, runtime
):
    summary = reference.run(
        tmp_path, shards=small_shards, policy=small_policy, passes=PASSES, holdout=0.4, runtime=runtime
    )
    table = SideCar.load(tmp_path / "logprobs")
    policy = Policy.from_pretrained(small_policy, device=torch.device("cpu"))
    for group in small_groups:
        with torch.inference_mode():
            expected = policy.model(pack_groups([policy.encoder(group)]))
        found = look_up(table, group)
        assert torch.allclose(found["reference_logprob"], expected.logprob, atol=1e-3)
        assert torch.equal(found["reference_tokens"], expected.num_tokens)
    assert summary["queries"] == len(small_groups)
    assert summary["responses"] == sum(len(group.responses) for group in small_groups)


def test_a_stopped_run_goes_on(tmp_path, small_shards, small_policy, runtime, monkeypatch):
    monkeypatch.setattr(tables, "SECONDS_BETWEEN_WRITES", -1.0)
    forward, calls = reference.forward_groups, []

    def stops_after_two_batches(*args, **kwargs):
        calls.append(1)
        if len(calls) == 3:
            raise KeyboardInterrupt
        return forward(*args, **kwargs)

    monkeypatch.setattr(reference, "forward_groups", stops_after_two_batches)
    with pytest.raises(KeyboardInterrupt):
        reference.run(tmp_path, shards=small_shards, policy=small_policy, passes=PASSES, holdout=0.4, runtime=runtime)
    again = []

    def counts(model, groups, **kwargs):
        again.extend(group.key for group in groups)
        return forward(model, groups, **kwargs)

    monkeypatch.setattr(reference, "forward_groups", counts)
    summary = reference.run(
        tmp_path, shards=small_shards, policy=small_policy, passes=PASSES, holdout=0.4, runtime=runtime
    )
    assert len(again) == 14 - 8 and summary["queries"] == 14, "counts are of the whole table"
    assert len(SideCar.load(tmp_path / "logprobs").keys()) == 14


@pytest.mark.parametrize("change", ["policy", "media"])
def test_a_table_of_another_policy_or_other_media_settings_is_refused(
    tmp_path, small_shards, small_policy, other_policy, runtime, change
):
    reference.run(tmp_path, shards=small_shards, policy=small_policy, passes=PASSES, holdout=0.4, runtime=runtime)
    policy = other_policy if change == "policy" else small_policy
    passes = replace(PASSES, media=MediaSettings(num_frames=3)) if change == "media" else PASSES
    with pytest.raises(DataError, match=change):
        reference.run(tmp_path, shards=small_shards, policy=policy, passes=passes, holdout=0.4, runtime=runtime)


def test_limit_keeps_all_held_out_queries(tmp_path, small_shards, small_policy, runtime):
    index = Index.load(small_shards)
    reference.run(
        tmp_path, shards=small_shards, policy=small_policy, limit=2, passes=PASSES, holdout=0.4, runtime=runtime
    )
    wanted = [*index.split("heldout", 0.4), *index.split("train", 0.4, 2)]
    assert SideCar.load(tmp_path / "logprobs").keys() == {index.entries[int(row)].key for row in wanted}


@pytest.mark.parametrize("reference_from", ["adapter", "frozen_copy"])
def test_every_kind_of_reference_trains_the_same_policy(tmp_path, small_shards, small_policy, runtime, reference_from):
    """Table, adapters off and frozen copy: the same losses from step to step, the same policy in the end."""
    training = TrainSettings(
        model=ModelSettings(language="lora", lora_rank=4, projector="frozen"),
        optim=OptimSettings(lr=1e-2, warmup=0.0),
        schedule=Schedule(epochs=None, max_steps=4, groups_per_step=3, holdout=0.4),
    )
    reference.run(
        tmp_path / "table", shards=small_shards, policy=small_policy, passes=PASSES, holdout=0.4, runtime=runtime
    )
    found = {}
    for way, table in {"table": tmp_path / "table" / "logprobs", reference_from: None}.items():
        summary = mmdpo.run(
            tmp_path / way,
            shards=small_shards,
            policy=small_policy,
            objective=DPO(beta=0.5),
            reference=table,
            reference_from=way,
            training=training,
            runtime=runtime,
        )
        found[way] = summary, load_file(tmp_path / way / "model" / "model.safetensors")
    (by_table, one), (other_way, two) = found["table"], found[reference_from]
    # A reference that was the policy itself would leave the loss at log 2.
    assert abs(by_table["validation"]["loss"] - math.log(2)) > 1e-2
    assert other_way["train"] == pytest.approx(by_table["train"], rel=1e-4, abs=1e-5)
    assert other_way["validation"] == pytest.approx(by_table["validation"], rel=1e-4, abs=1e-5)
    torch.testing.assert_close(two, one, rtol=1e-4, atol=1e-5)
