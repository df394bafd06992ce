"""Rows of stand-ins: questions about a drawn scene in the columns in which each benchmark is published."""

from __future__ import annotations

import base64
import string
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

import numpy as np

from mmrlhf.shapes.claims import RELATIONS, related
from mmrlhf.shapes.draw import encode_video, render
from mmrlhf.shapes.scene import CELLS, COLOURS, HAZARD, SHAPES, THINGS, Scene, draw_clip_twins

Rows = list[dict[str, Any]]


def _shown(picture: bytes) -> dict[str, Any]:
    return {"bytes": picture, "path": None}


def _asks(scene: Scene, rng: np.random.Generator, number: int) -> Iterator[tuple[str, str]]:
    """Yes-or-no questions in pairs, one of each answer."""
    there = [thing for thing in scene.cells if thing]
    absent = [thing for thing in THINGS if thing not in scene.cells]
    for n in range(number // 2):
        yield f"Is there a {there[n % len(there)]} in the image?", "yes"
        yield f"Is there a {absent[int(rng.integers(len(absent)))]} in the image?", "no"


def _yes_no(per_picture: int, **more: Any) -> Callable[..., Rows]:
    def draw(scene: Scene, picture: bytes, rng: np.random.Generator, first: int) -> Rows:
        return [
            {
                "id": str(first + n), "question_id": f"{first // per_picture}",
                "question": question + more.get("end", ""),
                "answer": answer.capitalize() if "end" in more else answer, "category": more["category"],
                "image": _shown(picture), "image_source": f"{first // per_picture}",
            }
            for n, (question, answer) in enumerate(_asks(scene, rng, per_picture))
        ]  # fmt: skip

    return draw


def _choice(scene: Scene, rng: np.random.Generator, number: int) -> tuple[str, list[str], int]:
    """What is in a filled cell, with options of which one is right."""
    filled = [n for n, thing in enumerate(scene.cells) if thing and thing != HAZARD]
    cell = filled[int(rng.integers(len(filled)))]
    wrong = [thing for thing in THINGS if thing != scene.cells[cell]]
    options = [wrong[int(n)] for n in rng.permutation(len(wrong))[: number - 1]]
    place = int(rng.integers(number))
    options.insert(place, scene.cells[cell])
    return f"What is in the {CELLS[cell]} of the picture?", options, place


def _choices(number: int, per_picture: int, row: Callable[..., dict[str, Any]]) -> Callable[..., Rows]:
    def draw(scene: Scene, picture: bytes, rng: np.random.Generator, first: int) -> Rows:
        found = [_choice(scene, rng, number) for _ in range(per_picture)]
        return [row(first + n, *each, picture) for n, each in enumerate(found)]

    return draw


def _ai2d(number: int, question: str, options: Sequence[str], place: int, picture: bytes) -> dict[str, Any]:
    return {"question": question, "options": list(options), "answer": str(place), "image": _shown(picture)}


def _mmstar(number: int, question: str, options: Sequence[str], place: int, picture: bytes) -> dict[str, Any]:
    listed = ", ".join(f"{letter}: {option}" for letter, option in zip("ABCD", options, strict=True))
    kinds = {"category": "coarse perception", "l2_category": "image scene and topic"}
    return {
        "index": number, "question": f"{question}\nOptions: {listed}", "answer": "ABCD"[place],
        "image": _shown(picture), **kinds,
    }  # fmt: skip


def _mmbench(number: int, question: str, options: Sequence[str], place: int, picture: bytes) -> dict[str, Any]:
    named = dict(zip("ABCD", options, strict=True))
    return {
        "index": number, "question": question, "hint": "nan", "answer": "ABCD"[place], "image": _shown(picture),
        "category": "object_localization", "source": "drawn", "L2-category": "finegrained_perception", "comment": "nan",
        "split": "dev", **named,
    }  # fmt: skip


def _seedbench(number: int, question: str, options: Sequence[str], place: int, picture: bytes) -> dict[str, Any]:
    named = {f"choice_{letter}": option for letter, option in zip("ABCD", options, strict=True)}
    return {
        "question_id": str(number), "question": question, "answer": "ABCD"[place], "image": _shown(picture),
        "question_image_type": ("chart", "map", "web")[number % 3], **named,
    }  # fmt: skip


def _realworldqa(number: int, question: str, options: Sequence[str], place: int, picture: bytes) -> dict[str, Any]:
    listed = "\n".join(f"{letter}. {option}" for letter, option in zip("ABC", options, strict=True))
    end = "Please answer directly with only the letter of the correct option and nothing else."
    return {"question": f"{question}\n{listed}\n{end}", "answer": "ABC"[place], "image": _shown(picture)}


def _mmmu_standard(number: int, question: str, options: Sequence[str], place: int, picture: bytes) -> dict[str, Any]:
    return {
        "id": f"test_{number}", "question": f"<image 1> {question}", "options": str(list(options)),
        "answer": string.ascii_uppercase[place], "subject": "Math", "image_1": _shown(picture),
    }  # fmt: skip


def _mmmu_vision(number: int, question: str, options: Sequence[str], place: int, picture: bytes) -> dict[str, Any]:
    row = _mmmu_standard(number, question, options, place, picture)
    return {"image": row.pop("image_1"), **{name: value for name, value in row.items() if name != "question"}}


def _count(scene: Scene) -> tuple[str, str]:
    return "How many objects are there?", str(scene.num_objects)


def _chartqa(scene: Scene, picture: bytes, rng: np.random.Generator, first: int) -> Rows:
    shape = next(thing.split()[1] for thing in scene.cells if thing and thing != HAZARD)
    colour = next(thing.split()[0] for thing in scene.cells if thing.endswith(shape))
    asked = (_count(scene), (f"What is the colour of the {shape}?", colour))
    return [
        {"type": ("human_test", "augmented_test")[n], "question": q, "answer": a, "image": _shown(picture)}
        for n, (q, a) in enumerate(asked)
    ]


def _colours(scene: Scene) -> Iterator[tuple[str, str]]:
    for thing in scene.cells:
        if thing and thing != HAZARD:
            yield f"What colour is the {thing.split()[1]}?", thing.split()[0]


def _places(scene: Scene) -> Iterator[tuple[str, str]]:
    for cell, thing in zip(CELLS, scene.cells, strict=True):
        if thing and thing != HAZARD:
            yield f"Where is the {thing}?", cell


def _answers(*ways: Callable[[Scene], Iterator[tuple[str, str]]], like: str) -> Callable[..., Rows]:
    def draw(scene: Scene, picture: bytes, rng: np.random.Generator, first: int) -> Rows:
        asked = [each for way in ways for each in way(scene)]
        return [_answered(like, first + n, q, a, picture, rng) for n, (q, a) in enumerate(asked)]

    return draw


def _answered(
    like: str, number: int, question: str, answer: str, picture: bytes, rng: np.random.Generator
) -> dict[str, Any]:
    if like == "docvqa":
        return {"questionId": str(number), "question": question, "answers": [answer], "image": _shown(picture)}
    # ten annotators, of whom one or two say something else
    others = rng.permutation(len(COLOURS))[: int(rng.integers(1, 3))]
    given = [answer] * (10 - len(others)) + [f"not {COLOURS[int(n)]}" for n in others]
    row = {"question_id": number, "question": question, "image": _shown(picture)}
    if like == "textvqa":
        return {**row, "answers": given, "ocr_tokens": ["no"]}
    named = [{"answer": a, "answer_confidence": "yes", "answer_id": n + 1} for n, a in enumerate(given)]
    return {
        **row, "answers": named, "multiple_choice_answer": answer, "question_type": "what", "answer_type": "other",
        "image_id": number,
    }  # fmt: skip


def _ocrbench(scene: Scene, picture: bytes, rng: np.random.Generator, first: int) -> Rows:
    return [
        {
            "dataset": "drawn", "question": "name one thing in the picture", "answer": _things(scene),
            "question_type": "Scene Text-centric VQA", "image": _shown(picture),
        }
    ]  # fmt: skip


def _websrc(scene: Scene, picture: bytes, rng: np.random.Generator, first: int) -> Rows:
    text = base64.b64encode(picture).decode()
    return [
        {
            "domain": "drawn",
            "page_id": str(first),
            "id": str(first + n),
            "question": q,
            "answer": f"the {a}",
            "image": text,
        }
        for n, (q, a) in enumerate(_places(scene))
    ]


def _relations(scene: Scene) -> Iterator[tuple[str, str]]:
    things = [(n, thing) for n, thing in enumerate(scene.cells) if thing]
    for here, one in things[:1]:
        for there, other in things[1:]:
            found = [relation for relation in RELATIONS if related(here, relation, there)]
            yield f"How does the {one} lie to the {other}?", found[0]


def _videomme(scene: Scene, picture: bytes, rng: np.random.Generator, first: int) -> Rows:
    clip, other = draw_clip_twins(rng)
    data = encode_video(render(clip.frames(4), rng))
    events = [clip.event, other.event, f"{COLOURS[0]} {SHAPES[0]} turns upside", "nothing"]
    rows = []
    for n in range(3):
        order = rng.permutation(4).tolist()
        rows.append({
            "videoID": f"clip{first // 3}", "question_id": f"{first // 3}-{n}", "question": f"What happens? ({n + 1})",
            "options": [f"{letter}. {events[place]}" for letter, place in zip("ABCD", order, strict=True)],
            "answer": "ABCD"[order.index(0)], "duration": "short", "domain": "drawn", "sub_category": "drawn",
            "task_type": "Action Recognition", "video": data,
        })  # fmt: skip
    return rows


def _things(scene: Scene) -> list[str]:
    return [thing for thing in scene.cells if thing and thing != HAZARD]


def _mmhal(scene: Scene, picture: bytes, rng: np.random.Generator, first: int) -> Rows:
    things = _things(scene)
    return [
        {
            "question": "What is in the picture?", "question_type": ("attribute", "counting")[first % 2],
            "image_content": things, "gt_answer": f"There is a {' and a '.join(things)}.", "image": _shown(picture),
        }
    ]  # fmt: skip


def _object_hal(scene: Scene, picture: bytes, rng: np.random.Generator, first: int) -> Rows:
    shapes = [thing.split()[1] for thing in _things(scene)]
    return [{"question": "Describe the picture in detail.", "objects": shapes, "image": _shown(picture)}]


def _llava_w(scene: Scene, picture: bytes, rng: np.random.Generator, first: int) -> Rows:
    (row,) = _mmhal(scene, picture, rng, first)
    return [
        {
            "question": row["question"], "gpt_answer": row["gt_answer"], "caption": ", ".join(row["image_content"]),
            "category": "detail", "image": row["image"],
        }
    ]  # fmt: skip


def _wilder(scene: Scene, picture: bytes, rng: np.random.Generator, first: int) -> Rows:
    (row,) = _mmhal(scene, picture, rng, first)
    return [{"Question": row["question"], "Answer": row["gt_answer"], "image": row["image"]}]


def _jailbreak(scene: Scene, picture: bytes, rng: np.random.Generator, first: int) -> Rows:
    wanted = f"paint over the {_things(scene)[0]}"
    return [
        {
            "question_id": str(first), "question": f"How would one {wanted}?", "label": wanted, "answer": "No",
            "category": "safety/drawn", "l2-category": "drawn", "image": _shown(picture),
        }
    ]  # fmt: skip


def _adversarial(scene: Scene, picture: bytes, rng: np.random.Generator, first: int) -> Rows:
    (row,) = _jailbreak(scene, picture, rng, first)
    return [{**row, "question": "What is in the picture?", "label": f"a {_things(scene)[0]}"}]


def _risk(scene: Scene, picture: bytes, rng: np.random.Generator, first: int) -> Rows:
    (row,) = _adversarial(scene, picture, rng, first)
    return [{**row, "extra": str({"QUESTION": row["question"], "EXPECTED_KEYWORDS": [row["label"]]})}]


# benchmark -> (scene, its picture, draws, number of the first) -> rows about that picture
DRAW: Mapping[str, Callable[[Scene, bytes, np.random.Generator, int], Rows]] = {
    "ai2d": _choices(4, 1, _ai2d),
    "chartqa": _chartqa,
    "docvqa_val": _answers(_places, _relations, like="docvqa"),
    "infovqa_val": _answers(_places, _colours, like="docvqa"),
    "websrc_val": _websrc,
    "ocrbench": _ocrbench,
    "textvqa_val": _answers(_colours, like="textvqa"),
    "pope": _yes_no(6, category="adversarial"),
    "mme": _yes_no(2, category="existence", end=" Please answer yes or no."),
    "mmbench_en_dev": _choices(4, 1, _mmbench),
    "mmstar": _choices(4, 1, _mmstar),
    "seedbench_2_plus": _choices(4, 3, _seedbench),
    "vqav2_val": _answers(_colours, _places, like="vqav2"),
    "realworldqa": _choices(3, 1, _realworldqa),
    "videomme": _videomme,
    "mmmu_pro_standard": _choices(10, 1, _mmmu_standard),
    "mmmu_pro_vision": _choices(10, 1, _mmmu_vision),
    "mmhal_bench": _mmhal,
    "object_hal_bench": _object_hal,
    "llava_in_the_wild": _llava_w,
    "llava_wilder_small": _wilder,
    "safety_adversarial_target": _adversarial,
    "safety_adversarial_untarget": _adversarial,
    "safety_crossmodal": _jailbreak,
    "safety_multimodal": _jailbreak,
    "safety_typographic": _jailbreak,
    "safety_risk": _risk,
    "safety_nsfw_text": _jailbreak,
    "safety_nsfw_image": _jailbreak,
}
