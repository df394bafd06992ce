"""Benchmarks in the columns in which they are published: rows -> documents, with the harness's prompts.

Follows: lmms-eval 0.7.3's prompts and answer lengths of its default model. The same columns are what stand-ins are
drawn in, and what a folder of the user's has.
"""

from __future__ import annotations

import ast
import base64
import re
import string
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from mmrlhf.errors import DataError
from mmrlhf.types import Media

Row = Mapping[str, Any]
PHRASE = "\nAnswer the question using a single word or phrase."
LETTER = "Answer with the option's letter from the given choices directly."


@dataclass(frozen=True)
class Asked:
    """A row as a question: prompt, its media, and what scoring needs."""

    prompt: str
    media: tuple[Media, ...]
    truth: Mapping[str, Any]


@dataclass(frozen=True)
class Columns:
    """How a benchmark's rows are asked.

    Args:
        title, dimension: for the table.
        repo, subset, split: where it is published.
        needs: columns that it cannot do without.
        ask: row -> question.
        max_new_tokens: longest answer.
    """

    title: str
    dimension: str
    repo: str
    split: str
    needs: tuple[str, ...]
    ask: Callable[[Row], Asked]
    max_new_tokens: int = 16
    subset: str | None = None

    def read(self, row: Row, where: str) -> Asked:
        """One row; raises DataError for a column that is not there or holds something else."""
        missing = [name for name in self.needs if row.get(name) is None]
        if missing:
            raise DataError(
                "a benchmark's row lacks columns",
                where=where, given=f"no {', '.join(missing)}; it has {', '.join(row)}", expected=", ".join(self.needs),
            )  # fmt: skip
        try:
            return self.ask(row)
        except (KeyError, ValueError, TypeError, IndexError, SyntaxError, AttributeError) as error:
            raise DataError("a benchmark's row cannot be read", where=where, given=f"{error!r:.120}") from error


def image(value: Any, name: str = "image") -> Media:
    """A picture column: encoded bytes, the mapping that `datasets` writes ({bytes, path}), or base64 text."""
    if isinstance(value, Mapping):
        value = value["bytes"]
    if isinstance(value, str):
        value = base64.b64decode(value, validate=True)
    if not isinstance(value, bytes) or not value:
        raise ValueError(f"no picture in {name}")
    return Media("image", (f"{name}.img",), (value,))


def options_text(options: Sequence[str]) -> str:
    """`A. first` and so on, one a line."""
    return "\n".join(f"{letter}. {option}" for letter, option in zip(string.ascii_uppercase, options, strict=False))


def _pope(row: Row) -> Asked:
    truth = {"form": "yes_no", "answer": row["answer"].strip().lower(), "strict": "exact"}
    return Asked(row["question"].strip() + PHRASE, (image(row["image"]),), truth)


def _mme(row: Row) -> Asked:
    question = row["question"].strip().replace(" Please answer yes or no.", "")
    truth = {"form": "yes_no", "answer": row["answer"].strip().lower(), "part": row["category"]}
    return Asked(question + PHRASE, (image(row["image"]),), truth)


def _ai2d(row: Row) -> Asked:
    options = [str(option) for option in row["options"]]
    truth = {"form": "letter", "answer": string.ascii_uppercase[int(row["answer"])], "options": options}
    return Asked(f"{row['question']}\n{options_text(options)}\n{LETTER}", (image(row["image"]),), truth)


def _chartqa(row: Row) -> Asked:
    prompt = f"{row['question']}\nAnswer the question with a single word."
    return Asked(prompt, (image(row["image"]),), {"form": "relaxed", "answer": str(row["answer"])})


def _phrases(form: str, *, capital: bool = False) -> Callable[[Row], Asked]:
    def ask(row: Row) -> Asked:
        given = [each["answer"] if isinstance(each, Mapping) else str(each) for each in row["answers"]]
        question = row["question"].capitalize() if capital else row["question"]
        return Asked(question + PHRASE, (image(row["image"]),), {"form": form, "answers": given})

    return ask


def _ocrbench(row: Row) -> Asked:
    given = [row["answer"]] if isinstance(row["answer"], str) else list(row["answer"])
    return Asked(row["question"].strip(), (image(row["image"]),), {"form": "contains", "answers": given})


def _websrc(row: Row) -> Asked:
    prompt = f"{PHRASE.strip()}\n{row['question']}"
    return Asked(prompt, (image(row["image"]),), {"form": "f1", "answer": row["answer"]})


def _mmstar(row: Row) -> Asked:
    """The options stand in the question: `... Options: A: one, B: two`, or lines `(A) one`."""
    answer, options = row["answer"].strip().upper(), _split_options(row["question"])
    # an option that nothing marks is one all the same: a model that names its letter is right
    options += [""] * (string.ascii_uppercase.find(answer) + 1 - len(options))
    truth = {"form": "letter", "answer": answer, "options": options}
    return Asked(f"{row['question'].strip()}\n{LETTER.rstrip('.')}", (image(row["image"]),), truth)


def _split_options(question: str) -> list[str]:
    """Options in a question, by the letters A, B and so on in their order; four blanks where there are none."""
    text = re.split("(?:Options|Choices):", question)[-1]
    in_brackets = re.search(r"(?:^|\s)\(A\)", text) is not None
    mark = r"(?:^|\s)\({}\)" if in_brackets else r"(?:^|[\n,])[^\S\n]*{}:"
    places: list[re.Match[str]] = []
    for letter in string.ascii_uppercase:
        place = re.compile(mark.format(letter)).search(text, places[-1].end() if places else 0)
        if place is None:
            break
        places.append(place)
    ends = [place.start() for place in places[1:]] + [len(text)]
    found = [text[place.end() : end].strip().rstrip(",").strip() for place, end in zip(places, ends, strict=False)]
    return found or [""] * 4


def _mmbench(row: Row) -> Asked:
    given = {letter: row.get(letter) for letter in "ABCDE"}
    options = [str(text) for text in given.values() if text not in (None, "", "nan")]
    there = "There are several options:"
    hint = f"{row['hint']} " if row.get("hint") not in (None, "", "nan") else ""
    prompt = f"{hint}{row['question']} {there}\n{options_text(options)}\n\n{LETTER}"
    return Asked(prompt, (image(row["image"]),), {"form": "letter", "answer": row["answer"], "options": options})


def _seedbench(row: Row) -> Asked:
    options = [str(row[f"choice_{letter}"]) for letter in "ABCD"]
    prompt = f"{row['question']}\n{options_text(options)}\n{LETTER}"
    truth = {"form": "letter", "answer": row["answer"], "options": options, "strict": "first"}
    return Asked(prompt, (image(row["image"]),), truth)


def _realworldqa(row: Row) -> Asked:
    answer, question = row["answer"].strip(), row["question"].strip()
    options = [line[2:].strip() for line in question.split("\n") if line[:2] in ("A.", "B.", "C.", "D.")]
    is_letter = len(options) > 1 and answer.upper() in string.ascii_uppercase[: len(options)]
    truth = {"form": "letter", "answer": answer.upper(), "options": options}
    return Asked(question, (image(row["image"]),), truth if is_letter else {"form": "exact", "answer": answer})


def _mmmu_pro(row: Row) -> Asked:
    options = [str(option) for option in ast.literal_eval(row["options"])]
    truth = {"form": "letter", "answer": row["answer"], "options": options}
    truth |= {} if "question" in row else {"strict": "exact"}
    post = "Answer with the option letter from the given choices directly."
    if "question" not in row:
        return Asked(post, (image(row["image"]),), truth)
    prompt = f"{row['question']}\n{options_text(options)}\n\n{post}"
    shown = [n for n in range(1, 8) if f"<image {n}>" in prompt]
    media = tuple(image(row[f"image_{n}"], f"image_{n}") for n in shown)
    return Asked(prompt, media, truth)


def _videomme(row: Row) -> Asked:
    options = [str(option).partition(". ")[2] or str(option) for option in row["options"]]
    prompt = (
        "Select the best answer to the following multiple-choice question based on the video. Respond with only the "
        f"letter (A, B, C, or D) of the correct option.\n{row['question']}\n{options_text(options)}\n"
        "Answer with the option's letter from the given choices directly."
    )
    clip = row["video"]
    data = clip["bytes"] if isinstance(clip, Mapping) else clip
    media = Media("video", (f"{row['videoID']}.mp4",), (data,))
    return Asked(prompt, (media,), {"form": "letter", "answer": row["answer"], "options": options})


CHART, OCR, GENERAL = "chart and document", "OCR", "general"
HALLUCINATION, WORLD, VIDEO, IMAGES = "hallucination", "real world", "video", "multi-image"
_QA = ("question", "answer", "image")

_PHRASES = ("question", "answers", "image")
COLUMNS: Mapping[str, Columns] = {
    "ai2d": Columns("AI2D", CHART, "lmms-lab-encoder/ai2d", "test", (*_QA, "options"), _ai2d),
    "chartqa": Columns("ChartQA", CHART, "lmms-lab-encoder/ChartQA", "test", _QA, _chartqa),
    "docvqa_val": Columns(
        "DocVQA", CHART, "lmms-lab-encoder/DocVQA", "validation", _PHRASES, _phrases("anls"), 32, "DocVQA"
    ),
    "infovqa_val": Columns(
        "InfoVQA", CHART, "lmms-lab-encoder/DocVQA", "validation", _PHRASES, _phrases("anls"), 32, "InfographicVQA"
    ),
    "websrc_val": Columns("WebSRC", OCR, "rootsautomation/websrc", "dev", _QA, _websrc),
    "ocrbench": Columns("OCRBench", OCR, "echo840/OCRBench", "test", _QA, _ocrbench, 128),
    "textvqa_val": Columns(
        "TextVQA", OCR, "lmms-lab-encoder/textvqa", "validation", _PHRASES, _phrases("vqa", capital=True)
    ),
    "pope": Columns("POPE", HALLUCINATION, "lmms-lab-encoder/POPE", "test", _QA, _pope, 128),
    "mme": Columns("MME", GENERAL, "lmms-lab-encoder/MME", "test", (*_QA, "category"), _mme),
    "mmbench_en_dev": Columns(
        "MMBench", GENERAL, "lmms-lab-encoder/MMBench", "dev", (*_QA, "A", "B"), _mmbench, 256, "en"
    ),
    "mmstar": Columns("MMStar", GENERAL, "Lin-Chen/MMStar", "val", _QA, _mmstar, 256),
    "seedbench_2_plus": Columns(
        "SeedBench2-Plus", GENERAL, "doolayer/SEED-Bench-2-Plus", "test", (*_QA, "choice_A"), _seedbench
    ),
    "vqav2_val": Columns("VQAv2", GENERAL, "lmms-lab-encoder/VQAv2", "validation", _PHRASES, _phrases("vqa")),
    "realworldqa": Columns("RealWorldQA", WORLD, "lmms-lab-encoder/RealWorldQA", "test", _QA, _realworldqa),
    "videomme": Columns(
        "Video-MME", VIDEO, "lmms-eval/Video-MME", "test", ("question", "options", "answer", "videoID", "video"),
        _videomme,
    ),
    "mmmu_pro_standard": Columns(
        "MMMU-Pro, standard", IMAGES, "MMMU/MMMU_Pro", "test", ("question", "options", "answer", "image_1"), _mmmu_pro,
        256, "standard (10 options)",
    ),
    "mmmu_pro_vision": Columns(
        "MMMU-Pro, vision", IMAGES, "MMMU/MMMU_Pro", "test", ("options", "answer", "image"), _mmmu_pro, 256, "vision"
    ),
}  # fmt: skip
