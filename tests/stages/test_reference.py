"""Stage `reference`: the cached log-probabilities are those of the policy itself, for every response, resumable."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch

from mmrlhf.data.index import Index
from mmrlhf.data.pack import pack_groups
from mmrlhf.data.processing import MediaSettings
from mmrlhf.data.sidecar import SideCar
from mmrlhf.errors import DataError
from mmrlhf.stages import reference
from mmrlhf.stages.passes import Policy
from mmrlhf.stages.settings import PassSettings

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
    policy = Policy.load(small_policy, device=torch.device("cpu"))
    for group in small_groups:
        with torch.inference_mode():
            expected = policy.model(pack_groups([policy.encoder(group)]))
        found = look_up(table, group)
        assert torch.allclose(found["reference_logprob"], expected.logprob, atol=1e-3)
        assert torch.equal(found["reference_tokens"], expected.num_tokens)
    assert summary["queries"] == len(small_groups)
    assert summary["responses"] == sum(len(group.responses) for group in small_groups)


def test_a_stopped_run_goes_on(tmp_path, small_shards, small_policy, runtime, monkeypatch):
    monkeypatch.setattr(reference, "SECONDS_BETWEEN_WRITES", -1.0)
    forward, calls = reference.forward_groups, []

    def stops_after_two_batches(*args, **kwargs):
        calls.append(1)
        if len(calls) == 3:
            raise KeyboardInterrupt
        return forward(*args, **kwargs)

    monkeypatch.setattr(reference, "forward_groups", stops_after_two_batches)
    with pytest.raises(KeyboardInterrupt):
        reference.run(tmp_path, shards=small_shards, policy=small_policy, passes=PASSES, holdout=0.4, runtime=runtime)
    monkeypatch.setattr(reference, "forward_groups", forward)
    summary = reference.run(
        tmp_path, shards=small_shards, policy=small_policy, passes=PASSES, holdout=0.4, runtime=runtime
    )
    assert summary["queries"] == 14 - 8
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
