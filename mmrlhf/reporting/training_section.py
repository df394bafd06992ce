"""The section on training: every stage's curves, its pairs' histograms, what was answered and judged meanwhile.

`PANELS` and `HISTOGRAMS` are also what the W&B dashboard shows.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np

from mmrlhf.reporting import plots
from mmrlhf.reporting.critique_section import critiques_while_training
from mmrlhf.reporting.inputs import Curves, StageResult
from mmrlhf.reporting.maps import histogram_map
from mmrlhf.reporting.sample_cards import find_group, picture_cards, read_pictures
from mmrlhf.reporting.sections import Section, missing
from mmrlhf.shards.index import Index
from mmrlhf.summaries.validation_files import ANSWERS, read_steps

SHOWN_QUERIES, SHOWN_STEPS = 4, 4


class Panel(NamedTuple):
    """Curves that share a panel: its title, the last parts of their names, and what comes before these."""

    title: str
    names: tuple[str, ...]
    parts: tuple[str, ...] = ("train", "val")


LOSS_PARTS = ("preference", "sft", "nll", "critique", "score", "ties", "centring", "dimensions", "image", "anchor")
# what is not listed here is in curves.csv only
PANELS = (
    Panel("loss", ("loss",)),
    Panel("parts of the loss", tuple(f"loss_{name}" for name in LOSS_PARTS)),
    Panel("pair accuracy", ("accuracy",)),
    Panel("reward margin, implicit for a policy", ("reward_margin",)),
    Panel("reward of chosen and rejected", ("reward_chosen", "reward_rejected")),
    Panel("beta", ("beta", "beta_min", "beta_max")),
    Panel("reward model's margin", ("margin", "margin_min", "margin_max")),
    Panel("reward", ("reward", "reward_min", "reward_max", "reward_gain"), ("train", "val", "heldout")),
    Panel("true quality of held-out answers", ("quality", "quality_gain"), ("heldout",)),
    Panel("critique, nats a token", ("critique_nll_per_token",)),
    Panel("log-probability of chosen and rejected", ("logprob_chosen", "logprob_rejected")),
    Panel("length of chosen and rejected, tokens", ("length_chosen", "length_rejected")),
    Panel("drift from the reference, nats", ("kl_estimate",)),
    Panel("gradient norm", ("gradient_norm",), ("train",)),
    Panel("learning rate", ("lr",), ("train",)),
    Panel("groups a second", ("groups_per_second",), ("throughput",)),
    Panel("tokens a second", ("tokens_per_second",), ("throughput",)),
    Panel("share of useful tokens; of waiting", ("useful_token_share", "wait_share"), ("throughput",)),
    Panel("peak memory, GiB", ("peak_memory_gib",), ("throughput",)),
)
# title, name in the file of histograms and in W&B
HISTOGRAMS = (
    ("beta of a step's pairs", "train/beta_histogram"),
    ("reward model's margin of a step's pairs", "train/margin_histogram"),
    ("reward margin of a step's pairs", "train/reward_margin_histogram"),
    ("margin of held-out pairs", "val/margin_histogram"),
)


def training_section(stages: Sequence[StageResult[Any] | None], index: Index | None) -> Section:
    """The curves, histograms and held-out answers of every stage that trained; pictures come from the index."""
    shown = []
    for stage in stages:
        if stage is None or not stage.curves:
            continue
        panels = [
            plots.training_curves(found, title=panel.title)
            for panel in PANELS
            if (found := _matching(stage.curves, panel))
        ]
        panels += [histogram_map(stage.histograms[name], title=t) for t, name in HISTOGRAMS if name in stage.histograms]
        if panels:
            steps = max(int(steps[-1]) + 1 for steps, _ in stage.curves.values() if len(steps))
            answers = answers_while_training(stage, index)
            critiques = critiques_while_training(stage, index)
            said = {"answers": answers, "critiques": critiques}
            shown.append({"name": stage.name, "steps": steps, "panels": panels, **said})
    return {"stages": shown} if shown else missing("no stage has left training curves", "python run.py stage=mmdpo")


def _matching(curves: Curves, panel: Panel) -> Curves:
    wanted = [f"{part}/{name}" for name in panel.names for part in panel.parts]
    found = {name: curves[name] for name in wanted if name in curves and len(curves[name][0])}
    if panel.title == "parts of the loss" and len({_last(name) for name in found}) < 2:
        return {}  # one part alone is the loss once more
    prefixes = {name.rsplit("/", 1)[0] for name in found}
    # without several prefixes (train, val) the last part of the name is enough
    return found if len(prefixes) > 1 else {_last(name): value for name, value in found.items()}


def _last(name: str) -> str:
    return name.rsplit("/", 1)[-1]


def answers_while_training(stage: StageResult[Any], index: Index | None) -> list[dict[str, Any]]:
    """A few held-out queries with the reference's answer and those that the policy gave at validations."""
    steps = read_steps(stage.folder / ANSWERS)
    if not steps:
        return []
    places = np.unique(np.linspace(0, len(steps) - 1, SHOWN_STEPS).round().astype(int))
    shown = [steps[place] for place in places]
    return [_query(number, shown, index) for number in range(min(SHOWN_QUERIES, len(shown[-1][1])))]


def _query(number: int, steps: Sequence[tuple[int, Sequence[Mapping[str, Any]]]], index: Index | None) -> Section:
    last = steps[-1][1][number]
    group = find_group(index, last["key"])
    before = {name: last.get(f"{name}_reference") for name in ("quality", "reward")}
    answers = [{"when": "reference", "text": last["reference"], **before}]
    for step, rows in steps:
        row = rows[number]
        measures = {name: row.get(name) for name in ("quality", "reward")}
        answers.append({"when": f"step {step}", "text": row["answer"], **measures})
    pictures = picture_cards(read_pictures(group) if group is not None else None)
    return {**{name: last[name] for name in ("key", "category", "prompt")}, **pictures, "answers": answers}
