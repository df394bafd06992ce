"""Benchmarks that the harness lacks, or whose judge it loses, in their published columns.

MMHal-Bench, Object HalBench, the eight sets of MM-RLHF-SafetyBench, LLaVA-in-the-Wild and LLaVA-Wilder.
"""

from __future__ import annotations

import ast
from collections.abc import Callable, Mapping

from mmrlhf.suites.columns import HALLUCINATION, Asked, Columns, Row, image

CONVERSATION, SAFETY = "conversation", "safety"


def _mmhal(row: Row) -> Asked:
    truth = {
        "form": "mmhal", "contents": [str(each) for each in row["image_content"]], "reference": row["gt_answer"],
        "part": row.get("question_type"),
    }  # fmt: skip
    return Asked(row["question"], (image(row["image"]),), truth)


def _objects(row: Row) -> Asked:
    truth = {"form": "objects", "present": [str(each) for each in row["objects"]]}
    return Asked(row["question"], (image(row["image"]),), truth)


def _jailbreak(row: Row) -> Asked:
    truth = {"form": "safety", "behaviour": str(row.get("label") or row["question"]), "detector": "phrases"}
    return Asked(row["question"], (image(row["image"]),), truth)


def _vlguard(row: Row) -> Asked:
    truth = {"form": "safety", "behaviour": row["question"], "detector": "vlguard"}
    return Asked(row["question"], (image(row["image"]),), truth)


def _adversarial(good: bool) -> Callable[[Row], Asked]:
    """A picture was changed so that what is there is no longer seen (untargeted), or something else is (targeted)."""

    def ask(row: Row) -> Asked:
        label = str(row["label"]).rpartition("->")[2].strip()
        return Asked(row["question"], (image(row["image"]),), {"form": "mentions", "wanted": label, "good": good})

    return ask


def _risk(row: Row) -> Asked:
    extra = row["extra"]
    extra = ast.literal_eval(extra) if isinstance(extra, str) else extra
    wanted = extra["EXPECTED_KEYWORDS"]
    wanted = ", ".join(map(str, wanted)) if isinstance(wanted, list) else str(wanted)
    return Asked(row["question"], (image(row["image"]),), {"form": "mentions", "wanted": wanted, "good": True})


def _llava_w(row: Row) -> Asked:
    known = row["caption"] if isinstance(row["caption"], str) else "\n".join(row["caption"])
    truth = {"form": "pair", "reference": row["gpt_answer"], "contents": known, "part": row.get("category")}
    return Asked(row["question"], (image(row["image"]),), truth)


def _wilder(row: Row) -> Asked:
    return Asked(row["Question"], (image(row["image"]),), {"form": "pair", "reference": row["Answer"], "shown": True})


def _safety(title: str, name: str, ask: Callable[[Row], Asked], *more: str) -> Columns:
    return Columns(f"Safety, {title}", SAFETY, f"kirito011024/{name}", "train", ("question", "image", *more), ask, 2048)


OWN: Mapping[str, Columns] = {
    "mmhal_bench": Columns(
        "MMHal-Bench", HALLUCINATION, "DogNeverSleep/MMHal-Bench", "train",
        ("question", "image", "image_content", "gt_answer"), _mmhal, 1024,
    ),
    "object_hal_bench": Columns(
        "Object HalBench", HALLUCINATION, "DogNeverSleep/Hallucination_COCO", "train", ("question", "image", "objects"),
        _objects, 1024,
    ),
    "llava_in_the_wild": Columns(
        "LLaVA-in-the-Wild", CONVERSATION, "lmms-lab-encoder/llava-bench-in-the-wild", "train",
        ("question", "image", "gpt_answer", "caption"), _llava_w, 1024,
    ),
    "llava_wilder_small": Columns(
        "LLaVA-Wilder", CONVERSATION, "lmms-lab-encoder/LLaVA-Bench-Wilder", "test", ("Question", "image", "Answer"),
        _wilder, 4096,
    ),
    "safety_adversarial_target": _safety(
        "adversarial, targeted", "safety_adversarial_target", _adversarial(False), "label"
    ),
    "safety_adversarial_untarget": _safety(
        "adversarial, untargeted", "safety_adversarial_untarget", _adversarial(True), "label"
    ),
    "safety_crossmodal": _safety("cross-modal jailbreak", "safety_corssmodel_jailbreaking", _jailbreak),
    "safety_multimodal": _safety("multimodal jailbreak", "safety_multimodal_jailbreaking", _jailbreak),
    "safety_typographic": _safety("typographic jailbreak", "safety_typographic_jailbreaking", _jailbreak),
    "safety_risk": _safety("risk identification", "safety_risk_identification", _risk, "extra"),
    "safety_nsfw_text": _safety("unsafe text", "vlguard_safe_unsafes", _vlguard),
    "safety_nsfw_image": _safety("unsafe picture", "vlguard_unsafes", _vlguard),
}  # fmt: skip
