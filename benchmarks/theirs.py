"""One optimizer step of DPO on one query, TRL's way: its DPOTrainer on every pair, chosen and rejected with the media.

The trainer is used through its collator and its `training_step`; its reference is always a second forward, because it
cannot cache one for images. `matched` trains and recomputes what we do; otherwise TRL's own defaults stay: everything
trains, the vision tower too, and layers are recomputed in backward.
"""

from __future__ import annotations

import tempfile
import warnings
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from pathlib import Path
from typing import Any
from unittest.mock import patch

from benchmarks.workload import open_pictures
from mmrlhf.models.families import parts
from mmrlhf.models.settings import ModelSettings
from mmrlhf.types import PreferenceGroup

# ids of a response's labels, each with its log-probability
Labels = list[tuple[int, float]]


class TheirStep:
    """TRL's DPOTrainer with one pair per forward, as many forwards as a query has pairs, and one optimizer step.

    Args:
        folder: checkpoint; the reference is the same.
        settings: which parts train, precision and gradient checkpointing are taken from here.
        query: tells the trainer what records look like. Text-only records are tokenised when the trainer is made, so of
            these it trains on this query alone.
        matched: train the same parts, with the same gradient checkpointing, as `settings` say.
        device: `cpu` or `cuda`.
    """

    def __init__(
        self, folder: str | Path, settings: ModelSettings, query: PreferenceGroup, *, matched: bool, device: str
    ) -> None:
        import torch
        from datasets import Dataset  # pyright: ignore[reportMissingImports]
        from transformers import AutoModelForImageTextToText, AutoProcessor
        from trl.trainer.dpo_config import DPOConfig  # pyright: ignore[reportMissingImports]
        from trl.trainer.dpo_trainer import DPOTrainer  # pyright: ignore[reportMissingImports]

        def load() -> Any:
            return AutoModelForImageTextToText.from_pretrained(folder, dtype=torch.float32, attn_implementation="sdpa")

        model = load()
        for part, parameters in parts(model).items():
            for parameter in parameters:
                parameter.requires_grad_(not matched or getattr(settings, part) == "full")
        config = DPOConfig(
            output_dir=tempfile.mkdtemp(),
            per_device_train_batch_size=1,
            gradient_checkpointing=settings.gradient_checkpointing or not matched,
            bf16=settings.precision == "bf16",
            use_cpu=device == "cpu",
            max_length=None,
            learning_rate=1e-6,
            report_to=[],
        )
        self.trainer: Any = DPOTrainer(
            model=model,
            ref_model=load(),
            args=config,
            train_dataset=Dataset.from_list(pair_records(query)),
            processing_class=AutoProcessor.from_pretrained(folder),
        )
        self.trainer.create_optimizer()

    def train(self, query: PreferenceGroup, *, labels_only: bool = False) -> None:
        """Take one optimizer step on all pairs of a query; `labels_only`: see there."""
        trainer = self.trainer
        records = pair_records(query) if query.media else list(trainer.train_dataset)
        trainer.current_gradient_accumulation_steps = len(records)
        with warnings.catch_warnings(), scoring_labels_only() if labels_only else nullcontext():
            warnings.simplefilter("ignore")
            for record in records:
                trainer.training_step(trainer.model, trainer.data_collator([record]))
        trainer.optimizer.step()
        trainer.optimizer.zero_grad()

    def label_logprobs(self, query: PreferenceGroup) -> list[tuple[Labels, Labels]]:
        """What the reference says of every label of (chosen, rejected) of every pair, to check that we agree."""
        return [self._of_pair(record) for record in pair_records(query)]

    def _of_pair(self, record: dict[str, Any]) -> tuple[Labels, Labels]:
        import torch

        inputs = self.trainer._prepare_inputs(self.trainer.data_collator([record]))
        scored, ids = inputs.pop("completion_mask").bool(), inputs["input_ids"]
        with torch.no_grad():
            labels = ids.masked_fill(~scored, -100)
            logprobs = self.trainer.ref_model(**inputs, labels=labels, use_cache=False, fused_lm_head=True).log_probs
        # the first token is predicted by nothing
        rows = zip(ids[:, 1:], scored[:, 1:], logprobs[:, -ids.shape[1] + 1 :], strict=True)
        chosen, rejected = (list(zip(row[kept].tolist(), own[kept].tolist(), strict=True)) for row, kept, own in rows)
        return chosen, rejected


@contextmanager
def scoring_labels_only() -> Iterator[None]:
    """Have TRL project label positions alone through the head, as it does on a GPU; on a CPU it projects every one.

    TRL 1.16 decides that by a function that says whether the device has Triton, asked once in the forward that it gives
    a model; its kernels ask elsewhere. That answer is replaced, and nothing else: there is no setting for it.

    Raises:
        AttributeError: another version of TRL decides otherwise.
    """
    with patch("trl.trainer.utils._use_triton", lambda device: True):
        yield


def pair_records(query: PreferenceGroup) -> list[dict[str, Any]]:
    """A query as TRL's records, one for each pair."""
    records = []
    for i, j in query.ranked_pairs():
        record: dict[str, Any] = {
            "prompt": [{"role": "user", "content": query.prompt.question}],
            "chosen": [{"role": "assistant", "content": query.responses[i].text}],
            "rejected": [{"role": "assistant", "content": query.responses[j].text}],
        }
        records.append(record | ({"images": open_pictures(query)} if query.media else {}))
    return records
