"""Throughput: counts of hand-made micro-batches, and the names that a training logs."""

from __future__ import annotations

import lightning as L
import torch
from stand_ins.toy_training import Toy, build_trainer
from torch.utils.data import DataLoader

from mmrlhf.callbacks.curves import CurveLogger
from mmrlhf.callbacks.throughput import Throughput, count_work, peak_memory
from mmrlhf.summaries.curve_file import read_curves
from mmrlhf.tensors import PackedBatch, StepBatch


def make_packed(group_tokens, group_responses, weights):
    """Build a row of groups with so many tokens, responses and such weights."""
    group_of_token = torch.repeat_interleave(torch.arange(len(group_tokens)), torch.tensor(group_tokens))
    group_of_response = torch.repeat_interleave(torch.arange(len(group_responses)), torch.tensor(group_responses))
    num_tokens, empty = len(group_of_token), torch.zeros(0, dtype=torch.long)
    return PackedBatch(
        input_ids=torch.zeros(num_tokens, dtype=torch.long), position_ids=torch.zeros(1, num_tokens, dtype=torch.long),
        group_of_token=group_of_token, branch_of_token=torch.zeros(num_tokens, dtype=torch.long),
        shared=torch.ones(num_tokens, dtype=torch.bool), label_ids=empty, predict_at=empty, label_response=empty,
        last_token=torch.zeros(len(group_of_response), dtype=torch.long), group_of_response=group_of_response,
        pairs=torch.zeros(0, 2, dtype=torch.long), group_weight=torch.tensor(weights), media={}, columns={},
        keys=("k",) * len(weights), response_hashes=(), num_images=(), num_videos=(),
        content=torch.arange(len(group_of_response)),
    )  # fmt: skip


def test_filling_groups_are_no_work():
    """Tokens 10 + 30 with the second group at weight 0: 1 group, its 2 responses, 40 tokens, 10 of them useful."""
    assert count_work(make_packed([10, 30], [2, 5], [1.0, 0.0])).tolist() == [1, 2, 40, 10]


def test_memory_is_that_of_this_process():
    assert 0.05 < peak_memory(torch.device("cpu")) < 200


class Steps(L.LightningDataModule):
    """Six steps of two micro-batches."""

    def transfer_batch_to_device(self, batch, device, dataloader_idx):
        return batch

    def train_dataloader(self):
        packed = (make_packed([10, 30], [2, 5], [1.0, 0.0]), make_packed([20], [3], [1.0]))
        steps = [StepBatch(epoch=0, step=step, micro_batches=packed, num_groups=2) for step in range(6)]
        return DataLoader(steps, batch_size=None, collate_fn=lambda step: step)  # type: ignore[arg-type]


class StepToy(Toy):
    """Takes StepBatch."""

    def training_step(self, batch, batch_idx):
        super().training_step(torch.ones(1), batch_idx)


def test_a_training_logs_rates_in_windows(tmp_path):
    build_trainer([Throughput()], CurveLogger(tmp_path), log_every_n_steps=3).fit(StepToy(), datamodule=Steps())
    curves = {name: curve for name, curve in read_curves(tmp_path).items() if name.startswith("throughput/")}
    assert {name.split("/")[1] for name in curves} == {
        "groups_per_second", "responses_per_second", "tokens_per_second", "useful_token_share", "wait_share",
        "step_seconds", "peak_memory_gib",
    }  # fmt: skip
    assert all(steps.tolist() == [2, 5] for steps, _ in curves.values())
    # Of 60 tokens a step 30 belong to groups that count; 2 groups with 5 responses; rates share one clock.
    assert curves["throughput/useful_token_share"][1].tolist() == [0.5, 0.5]
    rate = curves["throughput/groups_per_second"][1]
    assert torch.allclose(torch.tensor(curves["throughput/responses_per_second"][1] / rate), torch.tensor(2.5).double())
    assert torch.allclose(torch.tensor(curves["throughput/step_seconds"][1] * rate), torch.tensor(2.0).double())
    assert ((curves["throughput/wait_share"][1] >= 0) & (curves["throughput/wait_share"][1] <= 1)).all()
