"""Stage `sft`: supervised training on responses; the start of every later model."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any, Literal

from mmrlhf.chain.runtime import Runtime
from mmrlhf.methods.sft import SFTModule
from mmrlhf.tokens.templates import AnswerTemplate
from mmrlhf.training.fit import MODEL, finish, train
from mmrlhf.training.model_card import export_policy
from mmrlhf.training.settings import TrainSettings, require_storable, require_trainable
from mmrlhf.training.workbench import open_workbench

# another number builds the stage anew, whatever `code` says
VERSION = 1
# what is in a finished artefact; checked before it is published
PROMISES = ("model/config.json", "metrics.json")


def run(
    out: Path,
    *,
    shards: Path,
    policy: Path | str,
    training: TrainSettings | None = None,
    responses: Literal["best", "all"] = "best",
    runtime: Runtime,
) -> dict[str, Any]:
    """Train on responses and write `out/model`, a Hugging Face folder.

    Args:
        shards: folder of shards.
        policy: checkpoint folder or hub id to start from.
        training: model, media, optimizer and length of the run.
        responses: learn from the `best` ranked ones of each query, or from `all`.
    """
    training = training or TrainSettings()
    bench = open_workbench(shards, policy, AnswerTemplate(), training, needs_pairs=False, runtime=runtime)
    module = SFTModule(
        bench.model,
        training.optim,
        total_steps=bench.data.total_steps,
        responses=responses,
        seed=training.schedule.seed,
        precision=bench.precision,
    )
    trainer, summary = train(module, bench, out=out, stage="sft", runtime=runtime)
    method = {"stage": "supervised training", "responses": responses}
    about = {"start": policy, "method": method, "training": training, "summary": summary}
    return finish(trainer, module, out, summary, lambda state: export_policy(bench, out / MODEL, **about, state=state))


def check_settings(settings: Mapping[str, Any]) -> None:
    """Refuse a model of which nothing trains, or not as it is stored (ConfigError), before data are prepared for it."""
    require_trainable(settings, "sft")
    require_storable(settings)
