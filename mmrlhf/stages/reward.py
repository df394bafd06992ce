"""Stage `reward`: trains the critique-based reward model.

Follows: MM-RLHF (arXiv 2502.10391), section 4. Differs in: which critique is learned is an option, with `none` as the
plain scalar reward model that every claim about critiques has to be compared with.
"""

from __future__ import annotations

import logging
from collections.abc import Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any, Literal

from mmrlhf.data.index import Index
from mmrlhf.data.templates import EVALUATOR_INSTRUCTION, CritiqueTemplate
from mmrlhf.methods.critique_reward import CritiqueRewardModule, RewardWeights
from mmrlhf.methods.pairing import PairScheme
from mmrlhf.models.export import save_reward_model
from mmrlhf.models.heads import build_head
from mmrlhf.stages.runtime import Runtime
from mmrlhf.stages.settings import TrainSettings
from mmrlhf.stages.training import MODEL, finish, open_workbench, train

log = logging.getLogger(__name__)

Critique = Literal["full", "short", "evidence", "none"]


def run(
    out: Path,
    *,
    shards: Path,
    policy: Path | str,
    training: TrainSettings | None = None,
    critique: Critique = "full",
    instruction: str | None = None,
    head: str = "tanh2",
    head_dropout: float = 0.0,
    weights: RewardWeights | None = None,
    pairs: PairScheme | None = None,
    runtime: Runtime,
) -> dict[str, Any]:
    """Train a reward model and write `out/model`: a Hugging Face folder with a score head and a card.

    Args:
        shards: folder of shards.
        policy: checkpoint folder or hub id to start from.
        training: model, media, optimizer and length of the run.
        critique: which annotated critique it learns to write; `none`: scores at the end of the response, which is also
            what happens, with a warning, where the data hold no critique of any kind.
        instruction: of the evaluator's prompt; None: the evaluator instruction, "": none.
        head: `linear`, `tanh2` or `silu2`; head_dropout: inside it.
        weights: of the loss's parts.
        pairs: which pairs of a query are compared.

    Raises:
        DataError: no pairs of different rank, or a response without the wanted critique.
    """
    training, weights = training or TrainSettings(), weights or RewardWeights()
    critique = _available(critique, shards)
    template = CritiqueTemplate(critique, EVALUATOR_INSTRUCTION if instruction is None else instruction)
    bench = open_workbench(
        shards,
        policy,
        template,
        training,
        make_head=lambda width: build_head(head, width, head_dropout),
        needs_pairs=True,
        runtime=runtime,
    )
    module = CritiqueRewardModule(
        bench.model,
        weights.without_critique() if critique == "none" else weights,
        training.optim,
        total_steps=bench.data.total_steps,
        pairs=pairs,
        seed=training.schedule.seed,
        precision=bench.precision,
    )
    trainer, summary = train(module, bench, out=out, stage="reward", runtime=runtime)
    card = {"critique": template.critique, "instruction": template.instruction, "media": asdict(training.media)}
    return finish(
        trainer,
        module,
        out,
        {**summary, "critique": critique, "head": head},
        lambda state: save_reward_model(bench.model, bench.processor, out / MODEL, card=card, state=state),
    )


def check_settings(settings: Mapping[str, Any]) -> None:
    """Refuse an unknown kind of critique (ConfigError) before data are prepared for it."""
    CritiqueTemplate(settings.get("critique", "full"))


def _available(wanted: Critique, shards: Path) -> Critique:
    """The wanted critique, or none of it where nobody wrote any."""
    if wanted == "none" or int(Index.load(shards).column("critique_chars").sum()) > 0:
        return wanted
    log.warning("%s holds no critiques, so the reward model learns scores only (as with data.critique=none)", shards)
    return "none"
