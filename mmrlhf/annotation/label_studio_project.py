"""Label Studio projects from queries: a page (config.xml) for every medium and number of answers, tasks, media.

Label Studio cannot show different numbers of answers on one page, so each (medium, K) is a project of its own. The page
is written out in full: a Repeater passes the server and then fails the check of the SDK.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping, Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import IO, Any

from mmrlhf.annotation.assignments import shown_order
from mmrlhf.annotation.browser_media import Shown, shown_media
from mmrlhf.annotation.filled_forms import DIMENSIONS, LEVELS, Form, Refuse
from mmrlhf.errors import DataError
from mmrlhf.files import write_bytes
from mmrlhf.reporting.sample_cards import response_letter
from mmrlhf.types import PreferenceGroup, response_hash

CONFIG, TASKS, MEDIA, README = "config.xml", "tasks.json", "media", "README.txt"
PROBLEM, PROBLEM_TEXT, RANKING = "problem", "problem_text", "ranking"
OWN_MEDIA = "answers with media of their own, which the page has no place for"
_IMAGE, _VIDEO = 'Image maxWidth="640px"', "Video"
_STEPS = """\
Each folder beside this file is one Label Studio project; its name says the media and the number of answers.

1. Start Label Studio with this folder as the root of its local files:
     export LABEL_STUDIO_LOCAL_FILES_SERVING_ENABLED=true
     export LABEL_STUDIO_LOCAL_FILES_DOCUMENT_ROOT={folder}
     label-studio start
2. Make a project of each folder: paste config.xml under Labeling Setup > Code, and add a source storage "Local files"
   with the path {folder}/media. Without one, pictures and clips answer 404; it need not be synchronised.
3. Import tasks.json. Keep a project below about 100,000 tasks.
4. When it is annotated: Export > JSON (not JSON-MIN). Put the exports of all projects into one folder, and run
     stage=annotated inputs.annotations=FOLDER
   with the same inputs.shards.
"""


def write_projects(
    folder: Path, groups: Iterable[PreferenceGroup], refuse: Refuse, proposals: Mapping[str, Form] | None = None
) -> dict[str, int]:
    """Write one folder for each (medium, K) into `folder`, media beside them; returns how many tasks each has.

    Args:
        groups: queries with answers; one whose media cannot be decoded, or whose answers have media of their own, is
            refused.
        refuse: is told (key, reason).
        proposals: key -> what a model says, which annotators see filled in.
    """
    counts: dict[str, int] = {}
    (folder / MEDIA).mkdir(parents=True, exist_ok=True)
    with ExitStack() as stack:
        files: dict[str, IO[str]] = {}
        for group in groups:
            if group.has_own_media:
                refuse(group.key, OWN_MEDIA)
                continue
            try:
                shown = shown_media(group)
            except DataError as error:
                refuse(group.key, error.problem)
                continue
            name = _project_name(shown, len(group.responses))
            if name not in files:
                (folder / name).mkdir(exist_ok=True)
                write_bytes(folder / name / CONFIG, page_config(shown, len(group.responses)).encode())
                files[name] = stack.enter_context((folder / name / TASKS).open("w", encoding="utf-8"))
            task = _task(folder, group, shown, (proposals or {}).get(group.key))
            files[name].write(("[\n" if name not in counts else ",\n") + json.dumps(task))
            counts[name] = counts.get(name, 0) + 1
        for file in files.values():
            file.write("\n]\n")
    write_bytes(folder / README, _STEPS.format(folder=folder.resolve()).encode())
    return counts


def page_config(shown: Sequence[Shown], num_responses: int) -> str:
    """The labelling page: what is shown, per answer three ratings with reasons, a ranking with buckets, a problem flag.

    Ties are native: a bucket takes several answers. The server does not check buckets, so there is one for each rank.
    """
    lines = ['<Header value="Question"/>', '<Text name="prompt" value="$prompt"/>']
    lines += [
        f'<{_VIDEO if each.is_video else _IMAGE} name="media_{number}" value="$media_{number}"/>'
        for number, each in enumerate(shown)
    ]
    answers = [
        f'<View style="flex: 1; min-width: 16rem">{"".join(_answer(number))}</View>' for number in range(num_responses)
    ]
    lines.append(f'<View style="display: flex; flex-wrap: wrap; gap: 1rem">{"".join(answers)}</View>')
    buckets = "".join(
        f'<Bucket name="rank_{rank}" title="{rank}{" (best)" if rank == 1 else ""}"/>'
        for rank in range(1, num_responses + 1)
    )
    lines += [
        '<Header value="Ranking: drag each answer into a place; equal ones share one"/>',
        '<List name="items" value="$items" title="Answers"/>',
        f'<Ranker name="{RANKING}" toName="items">{buckets}</Ranker>',
        '<Header value="Something is wrong with this query"/>',
        f'<Choices name="{PROBLEM}" toName="prompt" choice="multiple"><Choice value="{PROBLEM}"/></Choices>',
        f'<TextArea name="{PROBLEM_TEXT}" toName="prompt" placeholder="what is wrong" rows="1" maxSubmissions="1"/>',
    ]
    return "<View>\n  " + "\n  ".join(lines) + "\n</View>\n"


def _answer(number: int) -> list[str]:
    name = f"response_{number}"
    lines = [
        f'<Header value="Answer {response_letter(number)}"/>',
        f'<Text name="{name}" value="${name}"/>',
    ]
    for dimension in DIMENSIONS:
        lines += [
            f'<Header value="{dimension.capitalize()}" size="5"/>',
            f'<Rating name="{dimension}_{number}" toName="{name}" maxRating="{LEVELS}"/>',
            f'<TextArea name="{dimension}_reason_{number}" toName="{name}" placeholder="reason" rows="1"'
            ' maxSubmissions="1"/>',
        ]
    return lines


def _project_name(shown: Sequence[Shown], num_responses: int) -> str:
    clips = sum(each.is_video for each in shown)
    parts = [f"{number}-{name}" for number, name in ((len(shown) - clips, "images"), (clips, "clips")) if number]
    return "-".join([*(parts or ["text"]), str(num_responses), "answers"])


def _task(folder: Path, group: PreferenceGroup, shown: Sequence[Shown], proposal: Form | None) -> dict[str, Any]:
    hashes = [response.hash for response in group.responses]
    order = shown_order(group.key, hashes)
    texts = [group.responses[place].text for place in order]
    prompt = group.prompt.transcript
    data: dict[str, Any] = {
        "key": group.key,
        "category": group.category,
        "prompt": prompt,
        "prompt_hash": response_hash(prompt),
        "hashes": hashes,
        "order": list(order),
        "items": [
            {"id": response_letter(number), "title": f"Answer {response_letter(number)}", "body": text}
            for number, text in enumerate(texts)
        ],
        **{f"response_{number}": text for number, text in enumerate(texts)},
    }
    for number, each in enumerate(shown):
        name = f"{group.key}.{number}.{each.suffix}"
        write_bytes(folder / MEDIA / name, each.data)
        data[f"media_{number}"] = f"/data/local-files/?d={MEDIA}/{name}"
    return {"data": data, **({"predictions": [_prediction(proposal, order)]} if proposal else {})}


def _prediction(form: Form, order: Sequence[int]) -> dict[str, Any]:
    """A model's form as Label Studio's prediction."""
    result: list[dict[str, Any]] = []
    for number, place in enumerate(order):
        for dimension, scores in form.scores.items():
            score = scores[place]
            if score is not None:
                value = {"rating": int(min(LEVELS, max(1, round(score))))}
                result.append(_result(f"{dimension}_{number}", f"response_{number}", "rating", value))
    buckets: dict[str, list[str]] = {"_": []}
    for number, place in enumerate(order):
        rank = form.ranks[place]
        buckets.setdefault("_" if rank is None else f"rank_{rank}", []).append(response_letter(number))
    result.append(_result(RANKING, "items", "ranker", {"ranker": buckets}))
    return {"model_version": form.annotator, "result": result}


def _result(name: str, to: str, kind: str, value: Mapping[str, Any]) -> dict[str, Any]:
    return {"from_name": name, "to_name": to, "type": kind, "value": dict(value)}
