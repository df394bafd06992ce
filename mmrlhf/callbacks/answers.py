"""Held-out answers while training: at every validation the policy answers a few queries, beside its reference.

The policy of step 0 is the reference, so its answers are taken before the first step and kept in a file, where a
resumed run finds them. Every rank generates, because a sharded model's forward needs all of them; rank 0 scores and
writes.
"""

from __future__ import annotations

import json
import logging
import math
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import lightning as L
from torch import nn
from typing_extensions import override

from mmrlhf.callbacks.samples import log_samples
from mmrlhf.files import write_bytes, write_json

logger = logging.getLogger(__name__)

REFERENCE_FILE = "reference.json"
Measures = Mapping[str, Sequence[float]]


class HeldOutAnswers(L.Callback):
    """Writes `step-N.jsonl` (one row a query), logs means as `heldout/NAME`, and sends a table with pictures to W&B.

    `heldout/NAME_gain` is the mean difference to the reference's answers. A query without a number (nan) is in no mean.

    Args:
        folder: where the files go.
        samples: what is shown of each query: key, category, prompt, image or frames (see `callbacks.samples`).
        answer: model -> one answer for each query; called on every rank.
        measure: answers -> measures of each, such as reward and true quality; called on rank 0.
    """

    def __init__(
        self,
        folder: Path,
        samples: Sequence[Mapping[str, Any]],
        *,
        answer: Callable[[nn.Module], list[str]],
        measure: Callable[[Sequence[str]], Measures],
    ) -> None:
        super().__init__()
        self._folder, self._samples = Path(folder), list(samples)
        self._answer, self._measure = answer, measure
        self._reference: dict[str, Any] | None = None

    @override
    def on_train_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        path = self._folder / REFERENCE_FILE
        # rank 0's look at the disk counts: a rank that is late would find what rank 0 has written by then
        if trainer.strategy.broadcast(path.is_file()):
            if trainer.is_global_zero:
                self._reference = json.loads(path.read_text(encoding="utf-8"))
        elif trainer.global_step > 0:
            logger.warning("%s is missing, so answers are shown without the reference's", path)
        else:
            answers = self._write_answers(pl_module)
            if trainer.is_global_zero:
                self._reference = {"answers": list(answers), "measures": _plain(self._measure(answers))}
                self._folder.mkdir(parents=True, exist_ok=True)
                write_json(path, self._reference)
            trainer.strategy.barrier("reference answers")

    @override
    def on_validation_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        if trainer.sanity_checking:
            return
        answers = self._write_answers(pl_module)
        if trainer.is_global_zero:
            self._report(trainer, answers, _plain(self._measure(answers)))
        trainer.strategy.barrier("held-out answers")

    def _write_answers(self, pl_module: L.LightningModule) -> list[str]:
        model: Any = pl_module.model
        was_training = model.training
        answers = self._answer(model)
        model.train(was_training)
        return answers

    def _report(self, trainer: L.Trainer, answers: Sequence[str], measures: Mapping[str, list[float]]) -> None:
        before = self._reference or {"answers": [None] * len(answers), "measures": {}}
        rows = []
        for place, (sample, text) in enumerate(zip(self._samples, answers, strict=True)):
            row = {name: sample[name] for name in ("key", "category", "prompt")}
            row |= {"reference": before["answers"][place], "answer": text}
            row |= {f"{name}_reference": values[place] for name, values in before["measures"].items()}
            rows.append(row | {name: values[place] for name, values in measures.items()})
        step = trainer.global_step
        self._folder.mkdir(parents=True, exist_ok=True)
        path = self._folder / f"step-{step:08d}.jsonl"
        write_bytes(path, "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows).encode())
        means = {f"heldout/{name}": _mean(values) for name, values in measures.items()}
        for name, values in before["measures"].items():
            gains = [now - then for now, then in zip(measures[name], values, strict=True)]
            means[f"heldout/{name}_gain"] = _mean(gains)
        means = {name: mean for name, mean in means.items() if not math.isnan(mean)}
        for target in trainer.loggers:
            target.log_metrics(means, step=step)
        log_samples(trainer.loggers, [self._shown(*both) for both in zip(self._samples, rows, strict=True)],
                    name="heldout/answers", step=step)  # fmt: skip

    def _shown(self, sample: Mapping[str, Any], row: Mapping[str, Any]) -> dict[str, Any]:
        answer = {"text": row["answer"], "reward": row.get("reward"), "quality": row.get("quality")}
        both = {"generation_before": row["reference"], "generation_after": row["answer"]}
        return {**sample, "responses": [answer], **both}


def _plain(measures: Measures) -> dict[str, list[float]]:
    return {name: [float(value) for value in values] for name, values in measures.items()}


def _mean(values: Sequence[float]) -> float:
    """The mean of the queries that have a number; nan where none has."""
    known = [value for value in values if not math.isnan(value)]
    return sum(known) / len(known) if known else math.nan
