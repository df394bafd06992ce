"""How fast training is, in the units that matter here: groups, responses and tokens a second, and memory."""

from __future__ import annotations

import resource
import sys
import time
from typing import Any

import lightning as L
import torch
from torch import Tensor
from typing_extensions import override

from mmrlhf.tensors import PackedBatch, StepBatch

GIB = 2.0**30


class Throughput(L.Callback):
    """Logs throughput over the steps since the last log line (`log_every_n_steps` of the Trainer).

    All names start with `throughput/`; counts are summed over ranks:
    `groups_per_second`, `responses_per_second`, `tokens_per_second`; `useful_token_share`: tokens of groups that count
    (weight > 0) among all tokens; `wait_share`: time spent waiting for data, mean over ranks; `step_seconds`;
    `peak_memory_gib`: the largest rank's (device memory, or resident memory on a CPU).
    """

    def __init__(self) -> None:
        self._counts = torch.zeros(5, dtype=torch.float64)
        self._steps = 0
        self._window = self._batch_ended = time.perf_counter()

    @override
    def on_train_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        self._restart()
        self._batch_ended = self._window
        if pl_module.device.type == "cuda":
            torch.cuda.reset_peak_memory_stats(pl_module.device)

    @override
    def on_train_batch_start(
        self, trainer: L.Trainer, pl_module: L.LightningModule, batch: StepBatch, batch_idx: int
    ) -> None:
        self._counts[4] += time.perf_counter() - self._batch_ended

    @override
    def on_train_batch_end(
        self, trainer: L.Trainer, pl_module: L.LightningModule, outputs: Any, batch: StepBatch, batch_idx: int
    ) -> None:
        for packed in batch.micro_batches:
            self._counts[:4] += count_work(packed)
        self._steps += 1
        if (batch_idx + 1) % max(1, int(getattr(trainer, "log_every_n_steps", 1))) == 0:
            self._log(trainer, pl_module)
            self._restart()
        self._batch_ended = time.perf_counter()

    @override
    def on_validation_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        self._validation_started = time.perf_counter()

    @override
    def on_validation_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        # A validation between two steps is no training time and no waiting for data either.
        away = time.perf_counter() - self._validation_started
        self._window += away
        self._batch_ended += away

    def _restart(self) -> None:
        self._counts.zero_()
        self._steps = 0
        self._window = time.perf_counter()

    def _log(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        if pl_module.device.type == "cuda":
            torch.cuda.synchronize(pl_module.device)
        seconds = max(time.perf_counter() - self._window, 1e-9)
        memory = torch.tensor(peak_memory(pl_module.device))
        counts, ranks = self._counts.clone(), trainer.world_size
        if ranks > 1:
            device = pl_module.device
            counts = _reduce(trainer, counts.float().to(device), "sum").double().cpu()
            memory = _reduce(trainer, memory.float().to(device), "max").cpu()
        groups, responses, tokens, useful, waited = counts.tolist()
        values = {
            "groups_per_second": groups / seconds,
            "responses_per_second": responses / seconds,
            "tokens_per_second": tokens / seconds,
            "useful_token_share": useful / max(tokens, 1.0),
            "wait_share": waited / ranks / seconds,
            "step_seconds": seconds / self._steps,
            "peak_memory_gib": float(memory),
        }
        pl_module.log_dict({f"throughput/{name}": value for name, value in values.items()}, batch_size=1)


def _reduce(trainer: L.Trainer, value: Tensor, operation: str) -> Tensor:
    reduced = trainer.strategy.reduce(value, reduce_op=operation)
    assert isinstance(reduced, Tensor)
    return reduced


def count_work(packed: PackedBatch) -> Tensor:
    """Count the work in one micro-batch: (4,) float64 with real groups, their responses, all tokens, real tokens."""
    real = packed.group_weight > 0
    return torch.stack(
        [
            real.sum(),
            real[packed.group_of_response].sum(),
            torch.tensor(packed.num_tokens, device=real.device),
            real[packed.group_of_token].sum(),
        ]
    ).to("cpu", torch.float64)


def peak_memory(device: torch.device) -> float:
    """Peak memory in GiB: of the device since training started, or of this process on a CPU."""
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device) / GIB
    # ru_maxrss is in bytes on macOS and in KiB elsewhere.
    unit = 1 if sys.platform == "darwin" else 1024
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit / GIB
