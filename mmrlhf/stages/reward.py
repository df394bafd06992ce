"""Stage `reward`: trains the critique-based reward model.

Follows: MM-RLHF (arXiv 2502.10391), section 4. Differs in: which critique is learned is an option, with `none` as the
plain scalar reward model that every claim about critiques has to be compared with, `self` as CLoud (arXiv 2408.11791)
found better, and `shuffled` as the control. With `reading=in_turn` it reads each response with those before it, as the
multi-response reward model does (arXiv 2604.10966).
"""

from __future__ import annotations

import logging
from collections.abc import Mapping
from dataclasses import asdict, replace
from functools import partial
from pathlib import Path
from typing import Any

from mmrlhf.callbacks.critiques import HeldOutCritiques
from mmrlhf.chain.runtime import Runtime
from mmrlhf.errors import ConfigError
from mmrlhf.inference.cards import trained_reading
from mmrlhf.inference.settings import CritiqueSettings
from mmrlhf.methods.critique_reward import CritiqueRewardModule, RewardWeights
from mmrlhf.methods.pairing import PairScheme
from mmrlhf.models.attention import require_in_turn
from mmrlhf.models.heads import HeadSettings
from mmrlhf.models.hub import file_beside
from mmrlhf.models.promises import CARD_FILE, HEAD_FILE, read_card
from mmrlhf.models.reward_folder import save_reward_model, starting_head
from mmrlhf.ranges import Count, Natural
from mmrlhf.shards.index import Index
from mmrlhf.summaries.validation_files import CRITIQUES
from mmrlhf.tokens.in_turn import Reading
from mmrlhf.training.critique_samples import critique_samples
from mmrlhf.training.fit import MODEL, finish, train
from mmrlhf.training.model_card import base_model, exported, write_card
from mmrlhf.training.reward_inputs import CritiqueChoice, check_dimensions
from mmrlhf.training.settings import TrainSettings, require_storable
from mmrlhf.training.workbench import Workbench, open_workbench

log = logging.getLogger(__name__)

# another number builds the stage anew, whatever `code` says
VERSION = 2
# what is in a finished artefact; checked before it is published
PROMISES = ("model/config.json", f"{MODEL}/{CARD_FILE}", f"{MODEL}/{HEAD_FILE}", "metrics.json")


def run(
    out: Path,
    *,
    shards: Path,
    policy: Path | str,
    training: TrainSettings | None = None,
    critique: CritiqueChoice | None = None,
    head: HeadSettings | None = None,
    weights: RewardWeights | None = None,
    pairs: PairScheme | None = None,
    reading: Reading = "apart",
    num_samples: Natural = 4,
    max_critique_tokens: Count = 512,
    runtime: Runtime,
) -> dict[str, Any]:
    """Train a reward model and write `out/model`: a Hugging Face folder with a score head and a card.

    Args:
        shards: folder of shards.
        policy: checkpoint folder or hub id to start from.
        training: model, media, optimizer and length of the run.
        critique: which critique it learns; none at all, with a warning, where the data hold none of any kind.
        head: what reads the score.
        weights: of the loss's parts.
        pairs: which pairs of a query are compared.
        reading: how it reads a query's responses: `apart`, each by itself, or `in_turn`: each with the query and the
            responses before it, in an order that is drawn anew for every step. It is asked as it was trained.
        num_samples: held-out queries that are judged at validations, for `out/critiques`, the report and W&B.
        max_critique_tokens: longest of their critiques.

    Raises:
        ModelError: the checkpoint has a score head of another kind.
        DataError: no pairs of different rank, responses without the wanted critique, no scores on a dimension.
    """
    training, head, weights = training or TrainSettings(), head or HeadSettings(), weights or RewardWeights()
    index, schedule = Index.load(shards), training.schedule
    require_in_turn(reading, training.model)
    _say_reading(policy, reading)
    critique = _available(critique or CritiqueChoice(), index)
    critique.check(index, schedule)
    check_dimensions(index, schedule, head.dimensions)
    bench = open_workbench(
        shards, policy, critique.template, training, prepare=critique.prepare(shards, schedule.seed),
        make_head=partial(starting_head, head, policy), dimensions=head.dimensions, reading=reading, needs_pairs=True,
        runtime=runtime,
    )  # fmt: skip
    module = CritiqueRewardModule(
        bench.model, weights.without_critique() if critique.kind == "none" else weights, training.optim,
        total_steps=bench.data.total_steps, pairs=pairs, dimensions=head.dimensions, seed=schedule.seed,
        precision=bench.precision,
    )  # fmt: skip
    asking = CritiqueSettings(max_tokens=max_critique_tokens)
    shown = critique_samples(bench, critique.template, training, number=num_samples, critiques=asking)
    runtime = replace(runtime, callbacks=[*runtime.callbacks, HeldOutCritiques(out / CRITIQUES, shown)])
    trainer, summary = train(module, bench, out=out, stage="reward", runtime=runtime)
    summary = replace(summary, **_facts(critique))
    method = {
        "stage": "critique-based reward model",
        **_facts(critique),
        "reading": reading,
        "head": asdict(head),
        "weights": asdict(weights),
    }
    about = {"start": policy, "method": method, "training": training, "summary": summary}

    def save(state: Any) -> None:
        for place, as_adapters in exported(out / MODEL, training):
            _save(bench, place, critique, training, state, start=policy, as_adapters=as_adapters)
            write_card(place, "reward model", bench, **about)

    return finish(trainer, module, out, summary, save)


def check_settings(settings: Mapping[str, Any]) -> None:
    """Refuse combinations that cannot work (ConfigError) before data are prepared for them."""
    require_storable(settings)
    require_in_turn(settings.get("reading", "apart"), (settings.get("training") or TrainSettings()).model)
    weights: RewardWeights = settings.get("weights") or RewardWeights()
    critique: CritiqueChoice = settings.get("critique") or CritiqueChoice()
    dimensions = (settings.get("head") or HeadSettings()).dimensions
    if bool(dimensions) != (weights.dimensions > 0):
        raise ConfigError(
            "dimensions are learned where they are named and have a weight",
            where="stages.reward.head.dimensions, stages.reward.weights.dimensions",
            given=f"dimensions={list(dimensions)}, weight {weights.dimensions}",
            expected="both or neither",
        )
    if weights.score <= 0 and (critique.kind == "none" or weights.critique <= 0):
        raise ConfigError(
            "nothing is left of the reward model's loss",
            where="stages.reward.weights",
            given=f"score={weights.score}, critique={weights.critique}, critiques: {critique.kind}",
            expected="a weight above 0 on the score, or on critiques that are learned",
        )


def _say_reading(policy: Path | str, reading: Reading) -> None:
    """Warn where a reward model that reads responses in another way is trained further: its head has to learn anew."""
    if file_beside(policy, CARD_FILE) is not None:
        before = trained_reading(read_card(policy), policy)
        if before != reading:
            log.warning("%s reads responses %s, and is trained further with reading=%s", policy, before, reading)


def _available(wanted: CritiqueChoice, index: Index) -> CritiqueChoice:
    """The wanted critique, or none of it where nobody wrote any."""
    if wanted.kind == "none" or wanted.source == "self" or int(index.column("critique_chars").sum()) > 0:
        return wanted
    log.warning(
        "%s holds no critiques, so the reward model learns scores only (as with data.critique=none)", index.folder
    )
    return replace(wanted, kind="none")


def _facts(critique: CritiqueChoice) -> dict[str, str]:
    return {"critique": critique.kind, "critique_source": critique.source if critique.kind != "none" else "none"}


def _save(
    bench: Workbench,
    folder: Path,
    critique: CritiqueChoice,
    training: TrainSettings,
    state: Any,
    *,
    start: str | Path,
    as_adapters: bool,
) -> None:
    template = critique.template
    asked = {"instruction": template.instruction, "request": template.request, "closing": template.closing}
    asked |= {"reading": bench.encoder.reading}
    how = {"media": asdict(training.media), "precision": training.model.precision, "base": base_model(start)}
    card = {**_facts(critique), **asked, **how}
    save_reward_model(
        bench.model, bench.processor, folder, card=card, state=state, dtype=bench.dtype, base=start,
        as_adapters=as_adapters,
    )  # fmt: skip
