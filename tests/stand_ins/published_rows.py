"""A row of every layout, in the fields that it was published with, and folders of such rows."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
from stand_ins.sample_groups import picture

from mmrlhf.records.draft import Draft
from mmrlhf.records.layouts.read import import_layout
from mmrlhf.types import PreferenceGroup

COLUMN = {"bytes": picture(), "path": "0.jpg"}


def human(text: str) -> dict[str, str]:
    return {"from": "human", "value": text}


def gpt(text: str) -> dict[str, str]:
    return {"from": "gpt", "value": text}


def user(text: str) -> dict[str, str]:
    return {"role": "user", "content": text}


def assistant(text: str) -> dict[str, str]:
    return {"role": "assistant", "content": text}


def rated(*ratings: str) -> dict[str, Any]:
    aspects = ("Helpfulness", "Ethical Considerations", "Visual Faithfulness")
    return {a: {"Rating": r, "Rationale": f"{a} {r}"} for a, r in zip(aspects, ratings, strict=True)}


COMPLETIONS = [
    {"annotations": rated("5", "5", "5"), "model": "m1", "response": "good"},
    {"annotations": rated("4", "5", "3"), "model": "m2", "response": "bad"},
    {"annotations": rated("5", "4", "3"), "model": "m3", "response": "as bad"},
    {"annotations": rated("N/A", "5", "5"), "model": "m4", "response": "unrated"},
]
PAIR = {"chosen": "good", "rejected": "bad"}
JUDGED = {
    "brackets": (
        "Look.\nQuestion: [what?]\nThe first response: [bad]\nThe second response: [good]\nASSISTANT:\n",
        "The second is right. The better response: [second]",
    ),
    "numbers": ("Question: [what?]\nResponse 1: [good]\nResponse 2: [bad]\n", "Fine.\nThe better response: [1]"),
    "arena": (
        "<|User Prompt|>\nwhat?\n\n"
        "<|The Start of Assistant A's Answer|>\nbad\n<|The End of Assistant A's Answer|>\n\n"
        "<|The Start of Assistant B's Answer|>\ngood\n<|The End of Assistant B's Answer|>",
        "My verdict: [[B>>A]]",
    ),
    "scores": (
        "[Question]\nwhat?\n\n[Assistant 1]\ngood\n\n[End of Assistant 1]\n\n"
        "[Assistant 2]\nbad\n\n[End of Assistant 2]\n",
        "8 6.5\nThe first sees more.",
    ),
}
# name of the layout -> a row as it was published; each asks "what?" about one picture, and says that "good" beats "bad"
ROWS: dict[str, dict[str, Any]] = {
    "vlfeedback": {
        "id": "svit-0",
        "prompt": "what?",
        "models": ["m1", "m2", "m3", "m4"],
        "completions": COMPLETIONS,
        "image": COLUMN,
    },
    "align_anything": {
        "question": "what?",
        "response_1": "bad",
        "response_2": "good",
        "image": COLUMN,
        "overall_response": 2,
        "overall_textual_feedback": "the second sees it",
        "prompt_source": "x",
        "image_source": "y",
    },
    "wildvision": {
        "question_id": "q0",
        "model_a": "m1",
        "model_b": "m2",
        "conversation_a": [user("what?"), assistant("bad")],
        "conversation_b": [user("what?"), assistant("good")],
        "language": "English",
        "image": COLUMN,
        "turn": 1,
        "anony": True,
        "winner": "model_b",
        "tstamp": 1.5,
        "judge": "arena_user",
    },
    "llava_rlhf": {
        "id": "0",
        "image": "0.jpg",
        "conversations": [human("<image>\nwhat?")],
        "output_1": {"from": "llava", "value": "bad"},
        "output_2": {"from": "llava", "value": "good"},
        "preference": 2,
        "hallucination": False,
    },
    "rlhf_v": {
        "ds_name": "RLHF-V",
        "image": COLUMN,
        "text": json.dumps({"question": "what?", **PAIR}),
        "origin_dataset": "COCO",
        "origin_split": "{}",
        "idx": 7,
        "image_path": "x/0.jpg",
    },
    "llava_critic": {
        "id": "c",
        "source": "vlfeedback",
        "image": COLUMN,
        "conversations": [human("<image>\n" + JUDGED["brackets"][0]), gpt(JUDGED["brackets"][1])],
    },
    "vl_rewardbench": {
        "id": "RLAIF-V-1",
        "query": "what?",
        "response": ["bad", "good"],
        "image": COLUMN,
        "human_ranking": [1, 0],
        "models": ["m1", "m2"],
        "judge": "human",
        "rationale": None,
        "query_source": "COCO",
        "meta": "{}",
        "human_error_analysis": ["x"],
        "ground_truth": None,
    },
    "multimodal_rewardbench": {
        "ID": "nocaps_1",
        "Text": "what?",
        "Image": "0.jpg",
        "Output1": "bad",
        "Output2": "good",
        "Better": "Output2",
        "Category": "vqa",
    },
    "povid": {
        "id": "0",
        "image": "0.jpg",
        "conversations": [human("<image>\nwhat?"), gpt("good")],
        "rejected_conversations": [human("<image>\nwhat?"), gpt("bad")],
    },
    "llava_hound": {
        "id": "v0",
        "video": "v0",
        "prompt": "<video>\nwhat?",
        "answer": "reference",
        **PAIR,
        "chosen_score": 5,
        "rejected_score": 2,
    },
    "rlaif_v": {
        "ds_name": "RLAIF-V",
        "image": COLUMN,
        "question": "what?",
        **PAIR,
        "origin_dataset": "COCO",
        "origin_split": "{}",
        "idx": "0",
        "image_path": "x/0.jpg",
    },
    "spa_vl": {"image": COLUMN, "question": "what?", **PAIR, "image_name": "0.jpg"},
    "internlm_xcomposer": {
        "id": 0,
        "conversations_a": [human("what?"), {"from": "bot", "value": "good"}],
        "conversations_b": [human("what?"), {"from": "bot", "value": "bad"}],
        "image": "./0.jpg",
        "turn": 1,
        "language": "English",
        "model_a": "m1",
        "model_b": "m2",
    },
    "llava_pairs": {
        "id": "a",
        "image": "0.jpg",
        "conversations_a": [human("<image>\nwhat?"), gpt("bad")],
        "conversations_b": [human("<image>\nwhat?"), gpt("good")],
        "preference": "b",
    },
    "ms_swift": {
        "messages": [user("<image>what?"), assistant("good")],
        "images": ["0.jpg"],
        "rejected_response": "bad",
    },
    "internvl": {"image": "0.jpg", "question": "<image>\nwhat?", **PAIR},
    "llama_factory": {
        "conversations": [human("<image>what?")],
        "chosen": gpt("good"),
        "rejected": gpt("bad"),
        "images": [COLUMN],
    },
    "preference_rows": {
        "images": [COLUMN],
        "prompt": [{"role": "user", "content": [{"type": "image", "text": None}, {"type": "text", "text": "what?"}]}],
        "chosen": [{"role": "assistant", "content": [{"type": "text", "text": "good"}]}],
        "rejected": [{"role": "assistant", "content": [{"type": "text", "text": "bad"}]}],
    },
    "mm_rlhf": {
        "id": "a",
        "image": "0.jpg",
        "prompt": "what?",
        "responses": [{"text": "good", "rank": 1}, {"text": "bad", "rank": 2}],
    },
}


def write(root: Path, *rows: dict[str, Any]) -> Path:
    """Rows with a picture inside as Parquet, others as JSON lines beside their picture."""
    (root / "v0").mkdir(parents=True)
    for place in ("0.jpg", "v0/0.jpeg", "v0/1.jpeg"):
        (root / place).write_bytes(picture())
    if b"bytes" in repr(rows).encode():
        pq.write_table(pa.Table.from_pylist(list(rows)), root / "train-00000-of-00001.parquet")
    else:
        (root / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    return root


def groups(root: Path, **options: Any) -> list[PreferenceGroup]:
    """What `import_layout` reads from a folder, without what it rejects."""
    return [item.load() for item in import_layout(root, **options) if isinstance(item, Draft)]
