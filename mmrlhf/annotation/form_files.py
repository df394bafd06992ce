"""Forms from what annotators leave: JSON lines of forms, the page's database, Label Studio's exports, or a folder."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path

from mmrlhf.annotation.filled_forms import Form, Refuse, form_of
from mmrlhf.annotation.form_store import SUFFIX, submitted_forms
from mmrlhf.annotation.label_studio_export import label_studio_forms
from mmrlhf.errors import DataError

FORMS = "annotations.jsonl"
PROJECTS = "label_studio"
BROKEN = "not a filled form"
EXPECTED = f"{FORMS}, the page's database (*{SUFFIX}), Label Studio's JSON export, or a folder of such files"


def read_forms(place: Path, refuse: Refuse) -> list[Form]:
    """Every form of a file, or of the files of a folder, in their order.

    Args:
        refuse: is told (place, reason) of everything that cannot be used.

    Raises:
        DataError: no such file, or of none of these kinds, or an export of another project.
    """
    files = _files(place)
    return [form for file in files for form in _forms_of(file, refuse)]


def _files(place: Path) -> list[Path]:
    if not place.is_dir():
        return [place]
    if (place / FORMS).is_file():
        return [place / FORMS]
    found = sorted(path for path in place.iterdir() if path.suffix in (".json", ".jsonl", SUFFIX))
    found = [path for path in found if path.name != "metrics.json"]
    if found:
        return found
    if (place / PROJECTS).is_dir():
        raise DataError(
            "nothing is annotated yet: these are projects for Label Studio", where=place / PROJECTS, expected=EXPECTED,
            fix="annotate them there (README.txt says how), then inputs.annotations=FOLDER_OF_EXPORTS",
        )  # fmt: skip
    raise DataError("no annotations in this folder", where=place, expected=EXPECTED)


def _forms_of(file: Path, refuse: Refuse) -> Iterator[Form]:
    if file.suffix == SUFFIX:
        yield from submitted_forms(file)
        return
    try:
        text = file.read_text(encoding="utf-8")
        tasks = json.loads(text) if file.suffix == ".json" else None
    except (OSError, ValueError, RecursionError) as error:
        raise DataError("annotations cannot be read", where=file, given=error, expected=EXPECTED) from error
    if tasks is not None:
        yield from label_studio_forms(tasks, file.name, refuse)
        return
    for number, line in enumerate(text.split("\n"), start=1):
        if not line.strip():
            continue
        where = f"{file.name}: line {number}"
        try:
            yield form_of(json.loads(line), where=where)
        except DataError as error:
            refuse(str(error.where), f"{BROKEN}: expected {error.expected}")
        except (ValueError, RecursionError):
            refuse(where, f"{BROKEN}: no JSON")
