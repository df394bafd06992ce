"""Answers that were rated or compared: VLFeedback, WildVision, align-anything, LLaVA-RLHF, RewardBenches."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

from mmrlhf.records.fields import text_field, wrong_type
from mmrlhf.records.json_text import Row
from mmrlhf.records.pair_forms import ranked_pair

# as VLFeedback calls its aspects -> as this project does
_ASPECTS = {
    "Helpfulness": "helpfulness",
    "Visual Faithfulness": "faithfulness",
    "Ethical Considerations": "ethics",
}
_WINNERS = {"model_a": "a", "model_b": "b"}
# VL-RewardBench's own scoring script sorts its sources like this. Papers read the three categories differently: compare
# the overall accuracy.
_VL_CATEGORY = {
    "vlfeedback": "general",
    "wildvision-battle": "general",
    "povid": "hallucination",
    "rlhf-v": "hallucination",
    "rlaif-v": "hallucination",
    "reasoning_tasks": "reasoning",
}
# what ids of the published tables, which have no folders, begin with; any other comes from VLFeedback
_VL_PREFIX = {
    "rlaif-v": "hallucination",
    "rlhf-v": "hallucination",
    "hallucination": "hallucination",
    "mathverse": "reasoning",
    "mmmu": "reasoning",
    "wildvision": "general",
}


def vlfeedback(row: Row, where: str) -> Row:
    """Four answers, each rated from 1 to 5 in three aspects: the mean ranks them, as Silkie did (arXiv 2312.10665).

    An answer that lacks a rating has no rank. The rationales are reasons, and together the short critique.
    """
    left = {name: value for name, value in row.items() if name not in ("completions", "models")}
    responses = []
    for number, item in enumerate(_completions(row, where)):
        place = f"{where}:completions[{number}]"
        said = item.get("annotations")
        said = {} if said is None else said
        if not isinstance(said, Mapping) or not all(isinstance(each, Mapping) for each in said.values()):
            raise wrong_type(place, "annotations", said, "an object of aspects with Rating and Rationale")
        ratings = {aspect: _rating(each.get("Rating")) for aspect, each in said.items()}
        known = [rating for rating in ratings.values() if rating is not None]
        rationales = {aspect: each["Rationale"] for aspect, each in said.items() if each.get("Rationale")}
        responses.append(
            {
                "text": item.get("response"),
                "model": item.get("model"),
                "scores": {_ASPECTS.get(a, a): rating for a, rating in ratings.items() if rating is not None},
                "reasons": {_ASPECTS.get(aspect, aspect): text for aspect, text in rationales.items()},
                "critiques": {"short": "\n".join(f"{a}: {text}" for a, text in rationales.items())}
                if rationales
                else {},
                "mean": sum(known) / len(known) if known and len(known) == len(ratings) else None,
            }
        )
    means = [response.pop("mean") for response in responses]
    for response, mean in zip(responses, means, strict=True):
        response["rank"] = None if mean is None else 1 + sum(other > mean for other in means if other is not None)
    if "img_path" in left:
        left["image"] = left.pop("img_path")
    return {**left, "responses": responses}


def _completions(row: Row, where: str) -> list[Mapping[str, Any]]:
    """The answers, as a list of objects (jsonl) or an object of lists (as `datasets` writes one to Parquet)."""
    value = row.get("completions")
    if isinstance(value, Mapping):
        lists = {name: items for name, items in value.items() if items is not None}
        if lists and all(isinstance(items, list) for items in lists.values()) and len({*map(len, lists.values())}) == 1:
            return [dict(zip(lists, items, strict=True)) for items in zip(*lists.values(), strict=True)]
    elif isinstance(value, list) and all(isinstance(item, Mapping) for item in value):
        return value
    raise wrong_type(where, "completions", value, "a list of answers, or lists of equal length of their parts")


def _rating(value: object) -> float | None:
    try:
        rating = float(str(value))
    except ValueError:
        return None
    return rating if math.isfinite(rating) else None


def wildvision(row: Row, where: str) -> Row:
    """A vote between the answers of two models (arXiv 2406.11069); "tie" and "bothbad" are ties.

    Battles whose models have answered earlier turns differently have no common prompt, and are refused.
    """
    winner = str(row.get("winner")).lower()
    choice = _WINNERS.get(winner, "tie" if "tie" in winner or "bothbad" in winner.replace(" ", "") else None)
    if choice is None:
        raise wrong_type(where, "winner", row.get("winner"), "model_a, model_b, tie or bothbad")
    left = {name: value for name, value in row.items() if name not in ("winner", "model_a", "model_b")}
    left |= {f"conversations_{side}": left.pop(f"conversation_{side}", None) for side in ("a", "b")}
    sides = ("b", "a") if choice == "b" else ("a", "b")
    models = {
        f"{name}_model": row.get(f"model_{side}") for name, side in zip(("chosen", "rejected"), sides, strict=True)
    }
    return ranked_pair({**left, **models, "preference": choice}, where)


def align_anything(row: Row, where: str) -> Row:
    """Two answers, of which `overall_response` names the better (arXiv 2412.15838); the feedback is in `meta`."""
    better = _one_or_two(row, "overall_response", where)
    consumed = ("response_1", "response_2", "overall_response", "overall_textual_feedback")
    left = {name: value for name, value in row.items() if name not in consumed}
    feedback = row.get("overall_textual_feedback")
    pair = {"chosen": row.get(f"response_{better}"), "rejected": row.get(f"response_{3 - better}")}
    return ranked_pair({**left, **pair, **({"meta": {"feedback": feedback}} if feedback else {})}, where)


def llava_rlhf(row: Row, where: str) -> Row:
    """LLaVA-RLHF's 10K (arXiv 2309.14525): `preference` says which of `output_1` and `output_2` people liked more."""
    better = _one_or_two(row, "preference", where)
    left = {name: value for name, value in row.items() if name not in ("output_1", "output_2", "preference")}
    chosen, rejected = (_said(row, f"output_{number}", where) for number in (better, 3 - better))
    return ranked_pair({**left, "chosen": chosen, "rejected": rejected}, where)


def _said(row: Row, name: str, where: str) -> str:
    """The text of a message whose sender is the name of a model."""
    value = row.get(name)
    return (
        text_field(value, ("value",), f"{where}:{name}") if isinstance(value, dict) else text_field(row, (name,), where)
    )


def _one_or_two(row: Row, name: str, where: str) -> int:
    value = row.get(name)
    if value not in (1, 2) or isinstance(value, bool):
        raise wrong_type(where, name, value, "1 or 2")
    return int(value)


def vl_rewardbench(row: Row, where: str) -> Row:
    """VL-RewardBench (arXiv 2411.17451): `human_ranking` holds the rank of each response, or a copy says it as a pair.

    [0, 1] prefers the first, [1, 0] the second.
    """
    record_id = text_field(row, ("id",), where)
    path = row.get("image_path")
    left = {name: value for name, value in row.items() if name not in ("response", "human_ranking", "models")}
    # what the benchmark says of itself is no part of a question or an answer
    left |= {"category": _vl_category(record_id, path), "meta": None}
    if "human_ranking" not in row and "chosen" in row:
        return ranked_pair(left, where)
    texts, ranking = row.get("response"), row.get("human_ranking")
    if not isinstance(texts, list) or len(texts) != 2:
        raise wrong_type(where, "response", texts, "a list of two responses")
    if ranking not in ([0, 1], [1, 0]):
        raise wrong_type(where, "human_ranking", ranking, "[0, 1] or [1, 0]")
    pair = {"chosen": texts[ranking.index(0)], "rejected": texts[ranking.index(1)]}
    models = row.get("models")
    if isinstance(models, list) and len(models) == 2:
        pair |= {"chosen_model": models[ranking.index(0)], "rejected_model": models[ranking.index(1)]}
    return ranked_pair({**left, **pair}, where)


def _vl_category(record_id: str, path: Any) -> str:
    folders = path.split("/")[:-1] if isinstance(path, str) else []
    for folder in folders:
        if folder.lower() in _VL_CATEGORY:
            return _VL_CATEGORY[folder.lower()]
    found = [category for prefix, category in _VL_PREFIX.items() if record_id.lower().startswith(prefix)]
    return found[0] if found else "general"


def multimodal_rewardbench(row: Row, where: str) -> Row:
    """Multimodal RewardBench (arXiv 2502.14191): `Better` names the better of `Output1` and `Output2`."""
    better = row.get("Better")
    if better not in ("Output1", "Output2"):
        raise wrong_type(where, "Better", better, "Output1 or Output2")
    worse = "Output1" if better == "Output2" else "Output2"
    record_id = text_field(row, ("ID",), where)
    consumed = ("ID", "Text", "Image", "Output1", "Output2", "Better", "Category")
    return ranked_pair(
        {
            **{name: value for name, value in row.items() if name not in consumed},
            "id": record_id,
            "prompt": text_field(row, ("Text",), where),
            "image": row.get("Image"),
            "chosen": text_field(row, (better,), where),
            "rejected": text_field(row, (worse,), where),
            "category": _multimodal_category(record_id, text_field(row, ("Category",), where)),
        },
        where,
    )


def _multimodal_category(record_id: str, category: str) -> str:
    """Safety and reasoning in the two halves that the benchmark's own scoring script reports."""
    if category == "safety":
        return "safety/bias" if record_id.lower().startswith("pairs") else "safety/toxicity"
    if category == "reasoning":
        return "reasoning/math" if record_id.lower().startswith("math") else "reasoning/coding"
    return category
