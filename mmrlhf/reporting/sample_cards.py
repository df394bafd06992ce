"""Samples for the report page and the W&B table: picture, prompt, ranked responses, their pairs, the answers."""

from __future__ import annotations

import base64
import io
import logging
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from operator import itemgetter
from typing import Any

import numpy as np
from PIL import Image

from mmrlhf.errors import DataError, MissingRowError
from mmrlhf.losses.objective import Objective
from mmrlhf.media.images import decode_image
from mmrlhf.media.video import decode_frames, decode_video
from mmrlhf.reporting.accuracy import true_qualities
from mmrlhf.reporting.inputs import pair_betas, read_group
from mmrlhf.reporting.turn_cards import turn_cards
from mmrlhf.shards.index import Index
from mmrlhf.shards.sidecar import SideCar
from mmrlhf.types import Media, PreferenceGroup

log = logging.getLogger(__name__)

NUM_FRAMES = 4
LARGEST_SIDE = 480
SMALL_SIDE = 128  # drawn with visible pixels up to this size
Answer = Mapping[str, Any]


@dataclass(frozen=True)
class Pictures:
    """What can be shown of media: images, or frames of a video; how many of each, and how many cannot be decoded."""

    images: Sequence[Image.Image] = ()
    is_video: bool = False
    unreadable: int = 0
    counts: Sequence[int] = ()


def choose_rows(index: Index, wanted: Sequence[str], number: int, *, seed: int) -> list[int]:
    """Draw rows of the index, categories in turn, among the keys that are wanted (all, where none is)."""
    keys, categories = index.column("key"), index.column("category")
    allowed = set(wanted)
    rows = [row for row, key in enumerate(keys) if not allowed or key in allowed]
    order = np.random.default_rng(seed).permutation(len(rows))
    by_category: dict[str, list[int]] = {}
    for place in order:
        by_category.setdefault(str(categories[rows[place]]), []).append(rows[place])
    chosen: list[int] = []
    while len(chosen) < min(number, len(rows)):
        for name in sorted(by_category):
            if by_category[name] and len(chosen) < number:
                chosen.append(by_category[name].pop())
    return chosen


def build_sample(
    group: PreferenceGroup,
    *,
    rewards: SideCar | None,
    objective: Objective | None,
    before: Sequence[Answer],
    after: Sequence[Answer],
) -> dict[str, Any]:
    """Put together all that is known about one query; `mmrlhf.callbacks.samples` describes the common fields.

    Beyond those: `pairs` (chosen, rejected: letters of the responses in rank order; margin, beta), the given critique
    of each response, and `answers`: (name, row) of the evaluations, of several before training the first and the best.
    """
    responses = _responses(group, rewards)
    pairs = _pairs(group, responses, objective)
    ordered = sorted(responses, key=lambda item: math.inf if item["rank"] is None else item["rank"])
    for letter, item in enumerate(ordered):
        item["letter"] = response_letter(letter)
    for pair in pairs:
        pair["chosen"], pair["rejected"] = responses[pair["chosen"]]["letter"], responses[pair["rejected"]]["letter"]
    best = ordered[0]["letter"]
    for item in ordered:
        against_best = [pair for pair in pairs if pair["chosen"] == best and pair["rejected"] == item["letter"]]
        item["beta"] = against_best[0]["beta"] if against_best else None
    pictures = read_pictures(group)
    first, last = (rows[0] if rows else {} for rows in (before, after))
    best = max((row for row in before if row.get("reward") is not None), key=itemgetter("reward"), default={})
    chosen = {f"best of {len(before)} before": best} if len(before) > 1 else {}
    return {
        **query_sample(group, pictures),
        "shown": pictures,
        "turns": turn_cards(group.prompt, pictures.counts),
        "responses": ordered,
        "pairs": sorted(pairs, key=lambda pair: (pair["chosen"], pair["rejected"])),
        "answers": [(name, row) for name, row in {"before": first, **chosen, "after": last}.items() if row],
        "generation_before": first.get("generation"),
        "generation_after": last.get("generation"),
    }


def sample_card(sample: Mapping[str, Any]) -> dict[str, Any]:
    """Add to a sample what its card on the page needs: pictures as text, and rewards as lengths of bars."""
    known = [item["reward"] for item in sample["responses"] if item["reward"] is not None]
    low, span = (min(known), (max(known) - min(known)) or 1.0) if known else (0.0, 1.0)
    responses = [
        {
            **item,
            "reward_share": 0 if item["reward"] is None else round(4 + 96 * (item["reward"] - low) / span),
            "own": picture_cards(item["own"])["pictures"],
        }
        for item in sample["responses"]
    ]
    return {**sample, "responses": responses, **picture_cards(sample["shown"])}


def response_letter(place: int) -> str:
    """The name of a response on the page: A to Z, then AA, AB, ..."""
    before = response_letter(place // 26 - 1) if place >= 26 else ""
    return before + chr(ord("A") + place % 26)


def picture_cards(shown: Pictures | None) -> dict[str, Any]:
    """What the page needs of a query's pictures (None: it is not at hand): each as text, and a note on what is not."""
    if shown is None:
        return {"pictures": [], "is_video": False, "note": "picture not at hand"}
    pictures = [{"uri": data_uri(image), "small": max(image.size) <= SMALL_SIDE} for image in shown.images]
    note = f"{shown.unreadable} cannot be read" if shown.unreadable else "" if pictures else "text only"
    return {"pictures": pictures, "is_video": shown.is_video, "note": note}


def find_group(index: Index | None, key: str) -> PreferenceGroup | None:
    """Read the query of a key; None where there are no shards, or they do not have it, or it cannot be read."""
    if index is None:
        return None
    rows = np.flatnonzero(index.column("key") == key)
    return read_group(index, int(rows[0])) if len(rows) else None


def _responses(group: PreferenceGroup, rewards: SideCar | None) -> list[dict[str, Any]]:
    hashes = [response.hash for response in group.responses]
    reward: list[float | None] = [None] * len(hashes)
    critique = [""] * len(hashes)
    if rewards is not None and group.key in rewards:
        try:
            reward = list(rewards.lookup(group.key, hashes)["reward"].tolist())
            critique = rewards.texts(group.key, hashes, "critique") if "critique" in rewards.columns else critique
        except MissingRowError as error:
            log.warning("shown without rewards: %s", error)
    known = true_qualities(group) or [None] * len(hashes)
    return [
        {
            "text": response.text,
            "rank": response.rank,
            "model": response.model,
            "reward": reward[i],
            "critique": critique[i],
            "given_critique": response.critiques.get("full") or response.critiques.get("short") or "",
            "quality": known[i],
            "own": _pictures(response.media, f"{group.shard}:{group.key}"),
        }
        for i, response in enumerate(group.responses)
    ]


def _pairs(
    group: PreferenceGroup, responses: Sequence[Mapping[str, Any]], objective: Objective | None
) -> list[dict[str, Any]]:
    pairs = [{"chosen": chosen, "rejected": rejected} for chosen, rejected in group.ranked_pairs()]
    margins = [_margin(responses[pair["chosen"]], responses[pair["rejected"]]) for pair in pairs]
    known = [margin for margin in margins if margin is not None]
    betas: list[float | None] = [None] * len(pairs)
    # A beta that depends on the whole step's pairs cannot be told from this query's alone.
    if objective is not None and pairs and len(known) == len(pairs) and not objective.uses_call_statistics:
        betas = list(pair_betas(known, objective).tolist())
    return [{**pair, "margin": margin, "beta": beta} for pair, margin, beta in zip(pairs, margins, betas, strict=True)]


def _margin(chosen: Mapping[str, Any], rejected: Mapping[str, Any]) -> float | None:
    if chosen["reward"] is None or rejected["reward"] is None:
        return None
    return float(chosen["reward"] - rejected["reward"])


def query_sample(group: PreferenceGroup, pictures: Pictures) -> dict[str, Any]:
    """What a sample says of its query, in the form of `mmrlhf.callbacks.samples`."""
    images, is_video = pictures.images, pictures.is_video
    return {
        "key": group.key,
        "category": group.category,
        "prompt": group.prompt.transcript,
        "image": images[0] if images and not is_video else None,
        "frames": list(images) if is_video else [],
    }


def read_pictures(group: PreferenceGroup) -> Pictures:
    """Decode a group's images, or four frames of its video; what cannot be decoded is counted, and named in the log."""
    return _pictures(group.media, f"{group.shard}:{group.key}")


def _pictures(shown: Sequence[Media], where: str) -> Pictures:
    images: list[Image.Image] = []
    unreadable, counts = 0, []
    for media in shown:
        before = len(images)
        for decode in _decoders(media, where):
            try:
                images += decode()
            except DataError as error:
                log.warning("not shown: %s", error)
                unreadable += 1
        counts.append(len(images) - before)
    return Pictures(images, any(media.kind != "image" for media in shown), unreadable, counts)


def _decoders(media: Media, where: str) -> list[Callable[[], list[Image.Image]]]:
    """One for each picture, or for the whole clip."""
    if media.kind == "image":
        return [lambda data=data: [decode_image(data, where=where)] for data in media.data]
    return [lambda: _frames(media, where)]


def _frames(media: Media, where: str) -> list[Image.Image]:
    if media.kind == "frames":
        clip = decode_frames(media.data, num_frames=NUM_FRAMES, where=where)
    else:
        clip = decode_video(media.data[0], num_frames=NUM_FRAMES, where=where)
    return [Image.fromarray(frame) for frame in clip.frames]


def data_uri(image: Image.Image) -> str:
    """Encode a picture for the page: small ones exactly, larger ones as JPEG of at most 480 pixels a side."""
    buffer = io.BytesIO()
    if max(image.size) <= SMALL_SIDE:
        image.save(buffer, format="PNG", optimize=True)
        kind = "png"
    else:
        smaller = image.convert("RGB")
        smaller.thumbnail((LARGEST_SIDE, LARGEST_SIDE))
        smaller.save(buffer, format="JPEG", quality=84)
        kind = "jpeg"
    return f"data:image/{kind};base64,{base64.b64encode(buffer.getvalue()).decode()}"
