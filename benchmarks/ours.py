"""One optimizer step of DPO on one query, our way: prepare, forward, all pairs, backward, AdamW."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import torch
from transformers import PreTrainedModel

from benchmarks.workload import FRAMES
from mmrlhf.losses.dpo import DPO
from mmrlhf.methods.optim import OptimSettings, build_optimizer
from mmrlhf.methods.pairing import PairScheme, pair_inputs, weighted_pairs
from mmrlhf.models.families import positions_for
from mmrlhf.models.forward import PackedModel, autocast
from mmrlhf.models.load import context_length, load_backbone
from mmrlhf.models.processors import load_processor
from mmrlhf.models.settings import ModelSettings
from mmrlhf.tensors import PackedBatch
from mmrlhf.tokens.encode import Encoder
from mmrlhf.tokens.packing import pack_groups
from mmrlhf.tokens.processing import MediaSettings
from mmrlhf.tokens.templates import AnswerTemplate
from mmrlhf.types import PreferenceGroup

OPTIM = OptimSettings(lr=1e-6, warmup=0.0, schedule="constant")


class OurStep:
    """Trains a policy on queries; the reference is a table (cached) or a frozen copy whose forward is counted.

    Args:
        folder: checkpoint.
        settings: of the model.
        with_reference: also load a frozen copy.
        device: where to train.
        backbone: the model, where it is there already; the folder then has its processor.
    """

    def __init__(
        self,
        folder: str | Path,
        settings: ModelSettings,
        *,
        with_reference: bool = False,
        device: str = "cpu",
        backbone: PreTrainedModel | None = None,
    ) -> None:
        if backbone is None:
            backbone, processor = load_backbone(folder, settings)
        else:
            processor = load_processor(folder)
        self.encoder = Encoder(
            processor,
            template=AnswerTemplate(),
            positions=positions_for(backbone),
            media=MediaSettings(num_frames=FRAMES),
            max_tokens=context_length(settings, backbone.config),
        )
        self.settings, self.device = settings, torch.device(device)
        self.model = PackedModel(backbone, settings).to(self.device).train()
        self.reference: PackedModel | None = None
        if with_reference:
            copy, _ = load_backbone(folder, settings)
            self.reference = PackedModel(copy, settings).to(self.device).requires_grad_(False).eval()
        self.optimizer = build_optimizer(self.model, OPTIM, total_steps=1000)[0]
        self.objective, self.scheme = DPO(beta=0.1), PairScheme()
        self.logprob = torch.zeros(0)

    def prepare(self, query: PreferenceGroup) -> PackedBatch:
        """Encode and pack."""
        return pack_groups([self.encoder(query)])

    def backward(self, batch: PackedBatch, *, count_reference: bool = False) -> None:
        """Forward, compare all pairs, backward."""
        pairs = weighted_pairs(batch, self.scheme)
        batch = batch.to(self.device)
        with autocast(self.settings, self.device):
            if count_reference:
                assert self.reference is not None
                with torch.no_grad():
                    reference = self.reference(batch).logprob
            outputs = self.model(batch)
        if not count_reference:
            # At the first step the policy is the reference; what matters here is that no forward makes it.
            reference = outputs.logprob.detach()
        terms = self.objective(pair_inputs(outputs, reference, None, pairs))
        terms.loss.mean().backward()
        self.logprob = outputs.logprob.detach().cpu()

    def step(self, queries: Sequence[PackedBatch], *, count_reference: bool = False) -> None:
        """One optimizer step over packed batches."""
        for batch in queries:
            self.backward(batch, count_reference=count_reference)
        self.optimizer.step()
        self.optimizer.zero_grad()

    def train(self, *queries: PreferenceGroup, count_reference: bool = False) -> None:
        """Prepare queries, each a row of its own, and take one step on all of them."""
        for query in queries:
            self.backward(self.prepare(query), count_reference=count_reference)
        self.step([])
