"""Made-up artefacts of every stage, for the tests of the report and for looking at its page."""

from __future__ import annotations

import io
import json
import math
from dataclasses import fields
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image, ImageDraw

from mmrlhf.callbacks.curves import CurveLogger
from mmrlhf.reporting.reward_details import judge_report
from mmrlhf.shards.sidecar import SideCar, SideCarWriter
from mmrlhf.shards.writer import write_shards
from mmrlhf.summaries.datasets import PackSummary
from mmrlhf.summaries.evaluations import CategoryMeasure, EvaluateSummary, Measure
from mmrlhf.summaries.left_out import Quarantined
from mmrlhf.summaries.rankings import Ranking, Tables
from mmrlhf.summaries.scores import ScoreSummary
from mmrlhf.summaries.trainings import TrainingData, TrainingSummary
from mmrlhf.types import Media, PreferenceGroup, Response

NONE_LEFT_OUT = Quarantined(0, 60, 1, [])

CATEGORIES = ("long", "short", "mcq", "safety", "video")
SURPRISES = 6  # pairs of the made-up scores that are wrong by most, each with a card
CRITIQUED = 2  # queries whose critiques were kept while the reward model trained
CLAIMS = ("three objects", "a red circle", "the square is left of the circle", "a green triangle", "two blue squares")


def draw(rng: np.random.Generator, shift: int = 0) -> bytes:
    """A 48 x 48 picture of a few shapes, as PNG."""
    image = Image.new("RGB", (48, 48), (244, 244, 240))
    pen = ImageDraw.Draw(image)
    for _ in range(int(rng.integers(3, 6))):
        x, y = (int(value) for value in rng.integers(2, 34, 2))
        colour = [(206, 60, 60), (60, 110, 206), (50, 150, 90), (220, 170, 40)][int(rng.integers(4))]
        [pen.ellipse, pen.rectangle][int(rng.integers(2))]((x + shift, y, x + shift + 11, y + 11), fill=colour)
    buffer = io.BytesIO()
    image.save(buffer, format="PNG")
    return buffer.getvalue()


def rate(rng: np.random.Generator, qualities: np.ndarray, annotators: int) -> list[list[int]]:
    """Levels 1 to 5 of several annotators, one per response."""
    noise = rng.normal(0, 0.8, (annotators, len(qualities)))
    return np.clip(np.rint(1 + 4 * qualities / 3 + noise), 1, 5).astype(int).tolist()


def make_groups(number: int, seed: int = 0) -> list[PreferenceGroup]:
    """Ranked queries over five categories; the last one is a video given as frames, one has markup in its text."""
    rng = np.random.default_rng(seed)
    groups = []
    for i in range(number):
        category = CATEGORIES[i % 5]
        qualities = rng.permutation(4)[: int(rng.integers(2, 5))]
        responses = tuple(
            Response(
                text=f"There are {', '.join(CLAIMS[: 1 + int(q)])} (variant {q}).",
                rank=1 + int((qualities > q).sum()),
                critiques={"full": f"Claim by claim: {int(q)} of 3 hold. " + "The relation was checked. " * int(q)},
            )
            for q in qualities
        )
        if category == "video":
            frames = tuple(draw(np.random.default_rng(i), 3 * n) for n in range(4))
            media = (Media("frames", tuple(f"f{n:03d}.png" for n in range(4)), frames),)
        else:
            media = (Media("image", ("0.png",), (draw(rng),)),)
        groups.append(
            PreferenceGroup(
                key=f"{category}-{i:04d}",
                prompt="Describe what is drawn. How many objects are there, & is <b>one</b> red?",
                responses=responses,
                media=media,
                category=category,
                meta={
                    "quality": [int(q) for q in qualities],
                    "annotations": {name: rate(rng, qualities, 3) for name in ("helpfulness", "overall")},
                    "model_annotations": {"overall": rate(rng, qualities, 1)},
                },
            )
        )
    return groups


def record(folder: Path, stage: str, seconds: float, settings: dict[str, Any], summary: dict[str, Any]) -> None:
    """Write what the store writes beside an artefact."""
    content = {
        "stage": stage, "fingerprint": "f" * 64, "settings": settings, "inputs": {}, "seconds": seconds,
        "versions": {"python": "3.11.9", "torch": "2.11.0", "lightning": "2.6.6", "transformers": "5.23.0"},
        "git": {"commit": "0123456789abcdef", "edited": False}, "summary": summary,
    }  # fmt: skip
    (folder / "artifact.json").write_text(json.dumps(content))


def interval(mean: float, width: float = 0.04) -> CategoryMeasure:
    """A mean with a made-up interval."""
    return CategoryMeasure(mean, mean - width, mean + width, 100)


def make_scores(folder: Path, groups: list[PreferenceGroup], accuracy: Tables) -> None:
    """A score stage: a side-car with rewards that follow quality with noise, and a report."""
    rng = np.random.default_rng(1)
    with SideCarWriter(folder / "rewards", columns=("reward", "critique"), fingerprint={"made_by": "test"}) as writer:
        for group in groups:
            for response, quality in zip(group.responses, group.meta["quality"], strict=True):
                reward = 0.9 * quality - 1.2 + rng.normal(0, 0.7)
                critique = f"The response makes three claims; {quality} of them are in the picture. <i>Checked</i>."
                writer.add(group.key, response.hash, {"reward": float(reward), "critique": critique})
    scores = SideCar.load(folder / "rewards")
    rewards = [scores.lookup(group.key, [r.hash for r in group.responses])["reward"].tolist() for group in groups]
    summary = scored(Ranking(60, accuracy, {}, {}, judge_report(groups, rewards))).write(folder)
    record(folder, "score", 48.3, {"temperature": 0.0}, summary)


def scored(ranking: Ranking) -> ScoreSummary:
    """What the score stage says of held-out and of training queries."""
    return ScoreSummary(True, "generate", 60, 180, 2.0, 6.0, 90.0, 0, 0, NONE_LEFT_OUT, ranking, ranking)


def make_evaluation(folder: Path, groups: list[PreferenceGroup], *, trained: bool) -> None:
    """An evaluate stage: samples.jsonl and metrics.json in which training helps."""
    folder.mkdir(parents=True)
    rng = np.random.default_rng(2 + trained)
    rows = []
    for group in groups:
        quality = float(
            rng.choice([0, 1 / 3, 2 / 3, 1], p=[0.05, 0.15, 0.4, 0.4] if trained else [0.2, 0.35, 0.3, 0.15])
        )
        rows.append({
            "key": group.key, "sample": 0, "category": group.category, "prompt": group.prompt.question,
            "generation": f"There are {', '.join(CLAIMS[: 1 + round(3 * quality)])}.",
            "num_tokens": int(rng.integers(9, 24)),
            "quality": quality, "reward": 1.6 * quality - 0.8 + float(rng.normal(0, 0.5)), "critique": "",
            "logprob": -7.5, "reference_logprob": -7.5 - (float(rng.gamma(3, 0.6)) if trained else 0.0),
        })  # fmt: skip
    (folder / "samples.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))

    def measure(value: Any) -> Measure:
        by_name = {name: [value(row) for row in rows if row["category"] == name] for name in CATEGORIES}
        parts = {name: interval(float(np.mean(found)), 0.08) for name, found in by_name.items() if found}
        return Measure(**vars(interval(float(np.mean([value(row) for row in rows])))), categories=parts)

    summary = EvaluateSummary(
        queries=len(rows),
        num_cut_off=0,
        quality=measure(lambda row: row["quality"]),
        reward=measure(lambda row: row["reward"]),
        kl=measure(lambda row: row["logprob"] - row["reference_logprob"]),
        kl_k3=None,
        length=measure(lambda row: row["num_tokens"]),
        cut_off=measure(lambda row: 0.0),
        preference={},
        temperature=0.0,
        max_new_tokens=64,
        quarantined=NONE_LEFT_OUT,
    )
    record(folder, "evaluate", 31.0, {"max_new_tokens": 64}, summary.write(folder))


def make_training(folder: Path, stage: str, seconds: float, curves: dict[str, Any], steps: int) -> None:
    """A training stage: curves and a summary."""
    rng = np.random.default_rng(steps)
    logger = CurveLogger(folder)
    for step in range(steps):
        share = step / steps
        logger.log_metrics(
            {f"train/{name}": value(share) * (1 + 0.08 * rng.normal()) for name, value in curves.items()}, step
        )
        if step % (steps // 5) == steps // 5 - 1:
            logger.log_metrics({"val/loss": curves["loss"](share) * 1.04}, step)
    logger.finalize("success")
    summary = TrainingSummary(
        steps=steps,
        groups_per_step=8,
        seconds=seconds,
        groups_per_second=8 * steps / seconds,
        train={"loss": curves["loss"](1.0)},
        validation={},
        heldout=None,
        truncated_tokens=0,
        equal_pairs=0,
        quarantined=NONE_LEFT_OUT,
        data=TrainingData(groups_per_epoch=64, steps_per_epoch=8, padded_per_epoch=0, excluded={}, epochs=[]),
    )
    record(folder, stage, seconds, {"optim": {"lr": 1e-3}, "seed": 0}, summary.to_json())


def make_critiques(folder: Path, groups: list[PreferenceGroup]) -> None:
    """What a reward model said of a few queries at two validations."""
    folder.mkdir()
    for step in (100, 300):
        rows = []
        for group in groups:
            said = [
                {"text": r.text, "rank": r.rank, "reward": step / 100 - place, "critique": f"<i>Seen</i> at {step}."}
                for place, r in enumerate(group.responses)
            ]
            rows.append(
                {"key": group.key, "category": group.category, "prompt": group.prompt.question, "responses": said}
            )
        (folder / f"step-{step:08d}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))


FALLING = {
    "loss": lambda t: 2.2 * math.exp(-3 * t) + 0.1,
    "gradient_norm": lambda t: 1.0,
    "lr": lambda t: 1e-3 * (1 - t) + 1e-5,
}
RANKING = {
    "accuracy": lambda t: 0.9 - 0.4 * math.exp(-4 * t),
    "loss_critique": lambda t: math.exp(-3 * t),
    "loss_score": lambda t: 0.7 * math.exp(-t),
}
DRIFTING = {
    "accuracy": RANKING["accuracy"],
    "reward_margin": lambda t: 0.8 * t,
    "reward_chosen": lambda t: 0.2 * t,
    "reward_rejected": lambda t: -0.6 * t,
    "beta": lambda t: 0.118,
    "beta_min": lambda t: 0.1,
    "beta_max": lambda t: 0.149,
    "kl_estimate": lambda t: 1.5 * t,
    "logprob_chosen": lambda t: -9 + t,
    "logprob_rejected": lambda t: -9 - 4 * t,
}


def packed(**changes: Any) -> PackSummary:
    """What the pack stage says, but for the changes."""
    tables = {
        "responses_per_group": {"3": 1},
        "categories": {"long": 1},
        "ignored_fields": {},
        "rejected_by_reason": {},
    }
    numbers = {field.name: 1 for field in fields(PackSummary) if field.name not in tables}
    return PackSummary(**{**numbers, **tables, "digest": "d" * 64, **changes})


def make_run(root: Path, accuracy: Tables, *, number: int = 120, steps: int = 300) -> dict[str, Path]:
    """Every artefact of a run, by the name of the report's argument."""
    groups = make_groups(number)
    shards = root / "pack"
    write_shards(groups, shards, max_groups_per_shard=64, max_megabytes=100)
    reasons = {"image is unreadable": 2, "no response <text>": 1}
    counts = packed(ties=3, images=96, videos=24, rejected=3, rejected_by_reason=reasons)
    record(shards, "pack", 6.2, {"video": "keep"}, counts.to_json())
    make_scores(root / "score", groups, accuracy)
    heldout = groups[: number // 2]
    make_evaluation(root / "before", heldout, trained=False)
    make_evaluation(root / "after", heldout, trained=True)
    make_training(root / "sft", "sft", 61.0, FALLING, steps)
    make_training(root / "reward", "reward", 96.0, {**FALLING, **RANKING}, steps)
    make_critiques(root / "reward" / "critiques", groups[:CRITIQUED])
    make_training(root / "mmdpo", "mmdpo", 83.0, {**FALLING, **DRIFTING}, steps)
    names = ("sft", "reward", "score", "mmdpo", "before", "after")
    return {"shards": shards, "pack": shards, **{name: root / name for name in names}}
