"""Stage `mmdpo`: preference training on ranked groups with margins from a reward model.

Follows: MM-DPO (arXiv 2502.10391, section 5). Differs in: any pairwise objective fits in; rewards and the reference's
log-probabilities are tables whose fingerprints are checked, so a margin or a reference of another model cannot slip in.
"""

from __future__ import annotations

import logging
from collections.abc import Mapping
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

from mmrlhf.chain.runtime import Runtime
from mmrlhf.errors import ConfigError
from mmrlhf.inference.made_by import describe_source
from mmrlhf.losses.image_conditional import MDPO
from mmrlhf.losses.length_desensitised import LDDPO
from mmrlhf.losses.objective import Objective
from mmrlhf.losses.plackett_luce import PlackettLuce
from mmrlhf.losses.prospect import KTO, KTOByReward
from mmrlhf.media.damage import Damage
from mmrlhf.methods.image_conditional import ImageConditionalModule
from mmrlhf.methods.listwise import RankingModule, require_whole_ranking
from mmrlhf.methods.pairing import (
    DAMAGED_REFERENCE,
    REFERENCE,
    REFERENCE_TOKENS,
    REWARD,
    SHARED_REFERENCE,
    PairScheme,
    shared_column,
)
from mmrlhf.methods.preference import MarginFrom, PreferenceModule, Reference
from mmrlhf.methods.shared_lengths import LengthDesensitisedModule
from mmrlhf.methods.single_responses import SingleResponseModule
from mmrlhf.models.dropout import silence_dropout
from mmrlhf.models.forward import PackedModel
from mmrlhf.models.load import load_backbone
from mmrlhf.models.settings import PARTS, ModelSettings, untrained
from mmrlhf.shards.index import Index
from mmrlhf.shards.sidecar import SideCar
from mmrlhf.shards.sidecar_files import read_meta, require_tables
from mmrlhf.tokens.templates import AnswerTemplate
from mmrlhf.training.fit import MODEL, check_table, finish, need_path, table_facts, train
from mmrlhf.training.heldout_answers import AnswerSettings, answer_callbacks
from mmrlhf.training.model_card import export_policy
from mmrlhf.training.settings import TrainSettings, require_storable, require_trainable
from mmrlhf.training.workbench import Workbench, open_workbench

log = logging.getLogger(__name__)

# the module of an objective that is more than a loss of pairs
METHODS: dict[type[Objective], type[PreferenceModule]] = {
    PlackettLuce: RankingModule,
    MDPO: ImageConditionalModule,
    LDDPO: LengthDesensitisedModule,
    KTO: SingleResponseModule,
    KTOByReward: SingleResponseModule,
}

# another number builds the stage anew, whatever `code` says
VERSION = 2
# what is in a finished artefact; checked before it is published
PROMISES = ("model/config.json", "metrics.json")


def run(
    out: Path,
    *,
    shards: Path,
    policy: Path | str,
    objective: Objective,
    rewards: Path | None = None,
    reward_model: Path | None = None,
    reference: Path | None = None,
    reference_from: Reference = "table",
    margin_from: MarginFrom = "reward",
    pairs: PairScheme | None = None,
    training: TrainSettings | None = None,
    answers: AnswerSettings | None = None,
    base_dropout: bool = False,
    runtime: Runtime,
) -> dict[str, Any]:
    """Train a policy and write `out/model`, a Hugging Face folder.

    Args:
        shards: folder of shards.
        policy: checkpoint folder or hub id to start from; also the reference.
        objective: the loss of a pair.
        rewards: table of rewards (side-car with the column `reward`), for objectives that use a margin.
        reward_model: the reward model whose rewards these must be; None accepts anyone's.
        reference: table of the reference's log-probabilities (column `reference_logprob`).
        reference_from: `table`; `adapter` (LoRA: the policy with its adapters off); `frozen_copy` (a second model in
            memory); `none` for objectives without a reference.
        margin_from: `reward`: margins are differences of `rewards`; `implicit`: of the policy's own implicit rewards.
        pairs: which pairs of a query are compared.
        training: model, media, optimizer and length of the run.
        base_dropout: keep the dropout that the checkpoint brings along. The reference has none, so its noise would
            count as distance from it.
        answers: held-out queries that the policy answers at every validation, in `out/answers`; None: none.

    Raises:
        ConfigError: the objective needs a table that is not given.
        DataError: no pairs of different rank; a table that was made with another policy, reward model, shards or media.
    """
    pairs, training = pairs or PairScheme(), training or TrainSettings()
    _check_adapter(reference_from, training.model)
    facts = table_facts(
        Index.load(shards), policy=policy, template=AnswerTemplate(), media=training.media, model=training.model
    )
    needs_rewards = pairs.needs_margin or (objective.needs_margin and margin_from == "reward")
    tables = _reward_tables(objective, rewards, facts["shards"], reward_model, needed=needs_rewards)
    damage = _damage(objective)
    if objective.needs_reference and reference_from == "table":
        tables += _reference_tables(reference, facts, damage, shared_lengths=objective.needs_shared_lengths)
    bench = open_workbench(
        shards, policy, AnswerTemplate(), training, tables=tables, damage=damage,
        needs_pairs=pairs.rank_by == "annotators" and not isinstance(objective, KTOByReward), runtime=runtime,
    )  # fmt: skip
    if not base_dropout and silence_dropout(bench.model.backbone):
        log.info("the checkpoint's own dropout is off (base_dropout=true keeps it)")
    module = _make_module(bench, objective, pairs, training, policy, reference_from, margin_from)
    if answers is not None:
        taken = answer_callbacks(
            out, answers, bench.index, bench.encoder, training.model, training.schedule, bench.quarantine, runtime
        )
        runtime = replace(runtime, callbacks=[*runtime.callbacks, *taken])
    trainer, summary = train(module, bench, out=out, stage="mmdpo", runtime=runtime)
    summary = replace(summary, objective=type(objective).__name__)
    method = {"objective": type(objective).__name__, **asdict(objective), "pairs": asdict(pairs)}
    about = {"start": policy, "method": method, "training": training, "summary": summary}
    return finish(trainer, module, out, summary, lambda state: export_policy(bench, out / MODEL, **about, state=state))


def _make_module(
    bench: Workbench,
    objective: Objective,
    pairs: PairScheme,
    training: TrainSettings,
    policy: Path | str,
    reference_from: Reference,
    margin_from: MarginFrom,
) -> PreferenceModule:
    return METHODS.get(type(objective), PreferenceModule)(
        bench.model,
        objective,
        pairs,
        training.optim,
        total_steps=bench.data.total_steps,
        reference=reference_from if objective.needs_reference else "none",
        reference_model=_frozen_copy(policy, bench.model) if reference_from == "frozen_copy" else None,
        margin_from=margin_from,
        starts_as_reference=True,
        seed=training.schedule.seed,
        precision=bench.precision,
    )


def check_settings(settings: Mapping[str, Any]) -> None:
    """Refuse pairs that the objective cannot use, margins that nothing gives (ConfigError), and folders without a table
    (DataError), before anything is trained for it."""
    require_trainable(settings, "mmdpo")
    require_storable(settings)
    require_tables({name: settings.get(name) for name in ("rewards", "reference")})
    objective, pairs = settings["objective"], settings.get("pairs") or PairScheme()
    implicit = settings.get("margin_from", "reward") == "implicit"
    if isinstance(objective, PlackettLuce):
        require_whole_ranking(pairs)
    if pairs.needs_margin and settings.get("rewards") is None:
        raise ConfigError(
            "these pairs are chosen by rewards, and there are none",
            where="pairs, inputs.rewards",
            given=f"rank_by={pairs.rank_by}, ties={pairs.ties}, min_margin={pairs.min_margin}"
            + (", margin=implicit: the policy's own rewards exist only while it trains" if implicit else ""),
            expected="a table of rewards",
            fix="margin=reward_model, margin=human or inputs.rewards=FOLDER; or pairs=all",
        )
    if objective.needs_margin and settings.get("rewards") is None and not implicit:
        raise ConfigError(
            f"{type(objective).__name__} needs margins, and nothing gives any",
            argument="rewards",
            given="null",
            expected="a table of rewards",
            fix="margin=reward_model, margin=human or inputs.rewards=FOLDER; or margin=implicit",
        )
    if implicit:
        _check_implicit(objective)


def _check_implicit(objective: Objective) -> None:
    """Refuse objectives that have nothing to go by before the first step, when policy and reference are the same."""
    if isinstance(objective, KTOByReward):
        raise ConfigError(
            "KTOByReward labels responses by their rewards, and the policy's own are all 0 at the first step",
            where="margin, method",
            given="margin=implicit",
            expected="rewards of a reward model or of annotators",
            fix="margin=reward_model or margin=human; or method=kto, which goes by ranks",
        )
    if objective.jumps_at_equal_rewards is not None:
        raise ConfigError(
            f"{type(objective).__name__} cannot take its margins from the policy itself: at the first step "
            "the policy is the reference, all margins are 0 up to rounding, and rounding would decide what is learned",
            where="margin, method",
            given=f"margin=implicit with {objective.jumps_at_equal_rewards}",
            expected="margins of a reward model or of annotators, or a loss that is continuous where margins are 0",
            fix="margin=reward_model or margin=human; or method=mmdpo with margin_scale=raw and "
            "negative_margin=floor or signed",
        )


def _damage(objective: Objective) -> Damage | None:
    """How an objective wants media damaged, if it does."""
    if isinstance(objective, MDPO) and objective.image_weight > 0:
        return Damage(objective.damage, objective.damage_seed)
    return None


def _reward_tables(
    objective: Objective, rewards: Path | None, shards: str, reward_model: Path | None, *, needed: bool
) -> list[SideCar]:
    """The rewards, where they are needed or given (then margins are logged at least)."""
    if not needed and rewards is None:
        return []
    what = f"rewards: {type(objective).__name__} scales with a margin" if objective.needs_margin else "rewards of pairs"
    table = SideCar.load(need_path(rewards, what=what, where="inputs.rewards", stage="score"), columns=[REWARD])
    expected = {"shards": shards} | ({"reward_model": describe_source(reward_model)} if reward_model else {})
    check_table(table, expected, name="rewards", stage="score")
    return [table]


def _reference_tables(
    reference: Path | None, facts: Mapping[str, Any], damage: Damage | None, *, shared_lengths: bool
) -> list[SideCar]:
    folder = need_path(reference, what="the reference's log-probabilities", where="inputs.reference", stage="reference")
    there = read_meta(folder)["columns"]
    counted = [REFERENCE_TOKENS] if REFERENCE_TOKENS in there else []
    # all that are there; the first says that they are missing
    shared = [name for name in there if name.startswith(SHARED_REFERENCE)] or [shared_column(0)]
    wanted = [REFERENCE, *counted, *([DAMAGED_REFERENCE] if damage else []), *(shared if shared_lengths else [])]
    table = SideCar.load(folder, columns=wanted)
    facts = {**facts, **({"damage": asdict(damage)} if damage else {})}
    check_table(table, facts, name="reference log-probabilities", stage="reference")
    return [table]


def _check_adapter(reference_from: str, model: ModelSettings) -> None:
    modes = {part: getattr(model, part) for part in PARTS}
    if reference_from != "adapter" or ("lora" in modes.values() and "full" not in modes.values()):
        return
    raise ConfigError(
        "switching adapters off gives the reference back only if nothing but adapters trains",
        where="reference_from, model.settings",
        given=", ".join(["reference_from=adapter", *(f"{part}={mode}" for part, mode in modes.items())]),
        expected="language=lora, and vision and projector frozen or lora",
        fix="set these, or use reference_from=table",
    )


def _frozen_copy(policy: Path | str, model: PackedModel) -> PackedModel:
    settings = replace(untrained(model.settings), gradient_checkpointing=False, layout=model.layout)
    backbone, _ = load_backbone(policy, settings)
    return PackedModel(backbone, settings)
