"""One optimizer step over packed micro-batches, whatever their number and the number of ranks.

Follows: Lightning's manual optimization; torchtitan's rule of summed losses divided once by the step's global count.
Differs in: the divisor is counted before the first forward, from the pairs and labels of all ranks' micro-batches, so
that neither the micro-batching nor the number of ranks enters the loss.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections import Counter
from collections.abc import Mapping, Sequence
from contextlib import nullcontext
from dataclasses import replace
from typing import Any, Literal

import lightning as L
import torch
from torch import Tensor, nn
from torch.optim.lr_scheduler import LambdaLR
from typing_extensions import override

from mmrlhf.errors import UserError
from mmrlhf.methods.counts import Counts
from mmrlhf.methods.finite import finite_gradients, is_finite, stop
from mmrlhf.methods.heldout import PairScores, Validation, require_finite_validation
from mmrlhf.methods.optim import (
    OptimSettings,
    average_replicated_gradients,
    build_optimizer,
    clip_gradients,
    fill_missing_gradients,
)
from mmrlhf.methods.step_numbers import StepRecord
from mmrlhf.models.sharding import OVER_ALL, is_sharded, shard_model
from mmrlhf.models.trained_state import FrozenBase
from mmrlhf.processes import gather_ranks
from mmrlhf.tensors import PackedBatch, StepBatch


class PackedModule(L.LightningModule, ABC):
    """Trains a packed model; one `training_step` is one `StepBatch` is one optimizer step.

    The data module leaves a step on the host; its micro-batches move to the device one at a time.

    A method says what its loss is made of: `count` counts what each named part is divided by, `loss_sums` runs the
    forward and returns each part's sum. The loss is the sum over parts of `part_weights` * sum / divisor.

    Args:
        model: takes a PackedBatch, returns ResponseOutputs.
        optim: optimizer settings.
        total_steps: optimizer steps of the whole run (for the schedule).
        seed: dropout of step s on rank r is drawn from (seed, s, r), so that a resumed run repeats it.
        precision: "bf16" lets a sharded model compute in bfloat16 (one device: the Trainer's autocast does).

    Attributes:
        stage: what errors call this run.
    """

    def __init__(
        self,
        model: nn.Module,
        optim: OptimSettings,
        *,
        total_steps: int,
        seed: int = 0,
        precision: Literal["float32", "bf16"] = "float32",
    ) -> None:
        super().__init__()
        self.automatic_optimization = False
        self.model = model
        self._optim, self._total_steps = optim, total_steps
        self._seed, self._precision = seed, precision
        self._validation = Validation(self.device)
        self.heldout_scores: PairScores | None = None
        self.train_metrics: dict[str, float] = {}
        self.validation_metrics: dict[str, float] = {}
        self.validated_step = -1
        self._cuts = Counter[str]()
        self._base = FrozenBase(self)
        self.stage = type(self).__name__

    @property
    @abstractmethod
    def part_weights(self) -> Mapping[str, float]:
        """The loss's named parts and their weights, in a fixed order."""

    @abstractmethod
    def count(self, batch: PackedBatch) -> Counts:
        """Say what a micro-batch puts into the loss; runs on the host, before the micro-batch moves to the device."""

    @abstractmethod
    def loss_sums(self, batch: PackedBatch, counts: Counts, record: StepRecord) -> Mapping[str, Tensor]:
        """Run the forward; return each part's sum over the micro-batch and record what is worth logging."""

    def complaint(self, batch: PackedBatch) -> UserError | None:
        """Say what makes a micro-batch unfit to be used, if anything; runs on the host."""
        return None

    def check_start(self, micro_batches: Sequence[PackedBatch]) -> None:
        """Look at the untrained model before the first update of a run; every rank is here."""
        return

    def prepare(self, micro_batches: Sequence[PackedBatch]) -> list[Counts]:
        """Count every micro-batch of this rank's share of a step; also the place for what needs the whole step."""
        return [self.count(micro_batch) for micro_batch in micro_batches]

    def score_pairs(self, batch: PackedBatch, counts: Counts, record: StepRecord) -> PairScores | None:
        """Run the forward on a held-out micro-batch: record means, return its pairs' scores if the method has any."""
        self._record_parts(self.loss_sums(batch, counts, record), counts, record)
        return None

    @override
    def configure_model(self) -> None:
        """Shard the model where the strategy has a device mesh (FSDP2); anywhere else this does nothing."""
        if self.device_mesh is not None and not is_sharded(self.model):
            sharding = getattr(self.trainer.strategy, "sharding", OVER_ALL)
            shard_model(self.model, self.device_mesh, precision=self._precision, sharding=sharding)

    @override
    def configure_optimizers(self) -> Any:
        optimizer, scheduler = build_optimizer(self.model, self._optim, self._total_steps)
        return {"optimizer": optimizer, "lr_scheduler": scheduler}

    @override
    def training_step(self, batch: StepBatch, batch_idx: int) -> dict[str, Any]:
        record, micro_batches = StepRecord(), self._even(batch.micro_batches)
        self._require_fit(micro_batches)
        if self.trainer.global_step == 0:
            self.check_start(micro_batches)
        # Drawn anew for every step, so that dropout after a resume is what it would have been.
        torch.manual_seed(hash((self._seed, batch.epoch, batch.step, self.global_rank)) & (2**63 - 1))
        counts = self.prepare(micro_batches)
        divisors = self._global_divisors(counts)
        # DDP's own reducer needs every parameter in every backward; the explicit average further down does not.
        with self._strategy_without_sync():
            for micro_batch, own in zip(micro_batches, counts, strict=True):
                self._backward(micro_batch.to(self.device), own.to(self.device), divisors, record)
        norm = self._reduce_gradients()
        self._cuts["truncated_tokens"] += sum(micro.truncated_tokens for micro in batch.micro_batches)
        self._cuts["equal_pairs"] += sum(micro.equal_pairs for micro in batch.micro_batches)
        metrics = record.reduce(self._all_reduce)
        metrics["loss"] = self._total_loss(metrics)
        metrics |= {"gradient_norm": float(norm), "lr": self._update_lr(), "groups": float(batch.num_groups)}
        if not is_finite(metrics):
            self._stop(metrics, batch, list(zip(micro_batches, counts, strict=True)), divisors)
        self._update()
        self.train_metrics = metrics
        self.log_dict({f"train/{name}": value for name, value in metrics.items()}, batch_size=1)
        return {"loss": torch.tensor(metrics["loss"]), "metrics": metrics, "record": record}

    def _require_fit(self, micro_batches: Sequence[PackedBatch]) -> None:
        """Raise a rank's complaint on all of them: one alone would leave the others waiting."""
        own = next((found for batch in micro_batches if (found := self.complaint(batch)) is not None), None)
        if float(self._all_reduce(torch.tensor(float(own is not None), device=self.device), "sum")) > 0:
            raise next(found for found in gather_ranks(own) if found is not None)

    def _even(self, micro_batches: Sequence[PackedBatch]) -> Sequence[PackedBatch]:
        """Fill up with a repetition at weight 0 to as many as any rank has: all ranks meet in a sharded forward."""
        if not is_sharded(self.model):
            return micro_batches
        count = torch.tensor(float(len(micro_batches)), device=self.device)
        smallest = min(micro_batches, key=lambda each: each.num_tokens)
        filler = replace(smallest, group_weight=torch.zeros_like(smallest.group_weight), truncated_tokens=0)
        return [*micro_batches, *[filler] * (int(self._all_reduce(count, "max")) - len(micro_batches))]

    def _backward(
        self, batch: PackedBatch, counts: Counts, divisors: Mapping[str, Tensor], record: StepRecord
    ) -> Tensor:
        """Add a micro-batch's gradients; returns its share of the step's loss, detached."""
        sums = self.loss_sums(batch, counts, record)
        self._record_parts(sums, counts, record)
        loss = torch.stack([weight * sums[name] / divisors[name] for name, weight in self.part_weights.items()]).sum()
        # Ranks' gradients are averaged, but the loss is a sum over ranks: hence the world size.
        self.manual_backward(loss * self.trainer.world_size)
        return loss.detach()

    def _record_parts(self, sums: Mapping[str, Tensor], counts: Counts, record: StepRecord) -> None:
        """Record each part as a mean weighted by its divisor: the mean over micro-batches is then the step's loss."""
        for name in self.part_weights:
            divisor = counts.divisors[name]
            record.add(f"loss_{name}", (sums[name] / divisor.clamp(min=1e-12)).reshape(1), divisor.reshape(1))

    def _total_loss(self, metrics: Mapping[str, float]) -> float:
        return sum(weight * metrics.get(f"loss_{name}", 0.0) for name, weight in self.part_weights.items())

    @property
    def _trainable(self) -> list[nn.Parameter]:
        return [parameter for parameter in self.model.parameters() if parameter.requires_grad]

    def _reduce_gradients(self) -> Tensor:
        """Make the step's gradient out of all ranks' and scale it down; returns its norm before."""
        trainable = self._trainable
        fill_missing_gradients(trainable)
        if self.trainer.world_size > 1:
            average_replicated_gradients(trainable, lambda flat: self._all_reduce(flat, "mean"))
        return clip_gradients(trainable, self._optim.max_grad_norm)

    def _update_lr(self) -> float:
        """The learning rate of the update that is next."""
        scheduler = self.lr_schedulers()
        assert isinstance(scheduler, LambdaLR)
        return float(scheduler.get_last_lr()[0])

    def _update(self) -> None:
        optimizer, scheduler = self.optimizers(), self.lr_schedulers()
        assert not isinstance(optimizer, list) and isinstance(scheduler, LambdaLR)
        optimizer.step()
        optimizer.zero_grad()
        scheduler.step()

    def _stop(
        self,
        metrics: Mapping[str, float],
        step: StepBatch,
        share: Sequence[tuple[PackedBatch, Counts]],
        divisors: Mapping[str, Tensor],
    ) -> None:
        """Find this rank's micro-batches that are not finite by themselves, and stop with all ranks."""
        culprits: list[str] = []
        for batch, counts in share:
            self.model.zero_grad()
            record = StepRecord()
            with self._strategy_without_sync():
                loss = self._backward(batch.to(self.device), counts.to(self.device), divisors, record)
            if not (loss.isfinite() and finite_gradients(self.model)):
                culprits += batch.keys
        self.model.zero_grad()
        step_keys = [key for batch, _ in share for key in batch.keys]
        stop(metrics, f"stage {self.stage}, step {step.step}", culprits, step_keys)

    def _global_divisors(self, counts: Sequence[Counts]) -> dict[str, Tensor]:
        """The step's divisors over all ranks; a part that nothing in the step feeds is divided by 1, not by 0."""
        own = [torch.stack([each.divisors[name].float() for each in counts]).sum() for name in self.part_weights]
        total = self._all_reduce(torch.stack(own).to(self.device), "sum")
        return dict(zip(self.part_weights, torch.where(total > 0, total, 1.0), strict=True))

    def _all_reduce(self, tensor: Tensor, operation: str) -> Tensor:
        return self.trainer.strategy.reduce(tensor, reduce_op=operation)

    def _strategy_without_sync(self) -> Any:
        block = getattr(self.trainer.strategy, "block_backward_sync", None)
        return block() if block is not None else nullcontext()

    @override
    def on_validation_epoch_start(self) -> None:
        self._validation = Validation(self.device)

    @override
    def validation_step(self, batch: StepBatch, batch_idx: int) -> None:
        micro_batches = self._even(batch.micro_batches)
        self._require_fit(micro_batches)
        for micro_batch, counts in zip(micro_batches, self.prepare(micro_batches), strict=True):
            scores = self.score_pairs(micro_batch.to(self.device), counts.to(self.device), self._validation.record)
            if scores is not None:
                self._validation.add(scores)

    @override
    def on_validation_epoch_end(self) -> None:
        self.validation_metrics = self._validation.metrics(self._all_reduce)
        self.validation_metrics["loss"] = self._total_loss(self.validation_metrics)
        self.log_dict(
            {f"val/{name}": value for name, value in self.validation_metrics.items()}, batch_size=1, sync_dist=True
        )
        self.heldout_scores = self._validation.scores()
        require_finite_validation(
            self.validation_metrics,
            self.heldout_scores,
            f"stage {self.stage}, validation at step {self.trainer.global_step}",
        )
        self.validated_step = self.trainer.global_step

    def cuts(self) -> dict[str, int]:
        """Response tokens cut off, and pairs made equal by it, over all ranks and resumes; asked by every rank."""
        found = gather_ranks(dict(self._cuts))
        return {name: sum(own.get(name, 0) for own in found) for name in ("truncated_tokens", "equal_pairs")}

    @override
    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        checkpoint["cuts"] = self.cuts()
        checkpoint["train_metrics"] = dict(self.train_metrics)
        self._base.leave_out(checkpoint)

    @override
    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        self.train_metrics = dict(checkpoint["train_metrics"])
        # a sharded model's strategy has loaded what trains
        self._base.put_back(checkpoint, loaded=is_sharded(self.model))
        # The stored counts are sums over ranks, so one rank carries them on.
        self._cuts = Counter(checkpoint["cuts"] if self.trainer.is_global_zero else {})
