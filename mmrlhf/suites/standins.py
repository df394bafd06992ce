"""Stand-ins of benchmarks: the published columns, over pictures and clips that we draw; no download, and no real score.

They have what makes real ones hard to measure: several questions about a picture, few or many options, answers of ten
annotators, numbers, phrases, clips.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from mmrlhf.files import written
from mmrlhf.shapes.draw import encode_image, render
from mmrlhf.shapes.scene import Scene, draw_twins
from mmrlhf.suites.columns import COLUMNS
from mmrlhf.suites.own_benchmarks import OWN
from mmrlhf.suites.standin_rows import DRAW, Rows

STANDINS = tuple(DRAW)


def write_standin(task: str, folder: Path, *, documents: int, seed: int) -> Path:
    """Draw one benchmark into a folder, as Parquet with pictures as the `datasets` library keeps them."""
    rng = np.random.default_rng([seed, sum(map(ord, task))])
    drawn = _drawn(task, rng, documents)
    folder.mkdir(parents=True, exist_ok=True)
    for row in drawn:
        if isinstance(clip := row.pop("video", None), bytes):
            (folder / "videos").mkdir(exist_ok=True)
            (folder / "videos" / f"{row['videoID']}.mp4").write_bytes(clip)
    columns = {**COLUMNS, **OWN}[task]
    place = folder / columns.subset if columns.subset else folder
    place.mkdir(exist_ok=True)
    with written(place / f"{columns.split}-00000-of-00001.parquet") as part:
        pq.write_table(_table(drawn), part)
    return folder


def _drawn(task: str, rng: np.random.Generator, documents: int) -> Rows:
    rows: Rows = []
    while len(rows) < documents:
        scene, _ = draw_twins(rng)
        rows += DRAW[task](scene, _picture(scene, rng), rng, len(rows))
    return rows[:documents]


def _picture(scene: Scene, rng: np.random.Generator) -> bytes:
    return encode_image(render([scene.cells], rng)[0])


def _table(rows: Rows) -> pa.Table:
    """Rows as a table whose pictures the `datasets` library knows as such."""
    table = pa.Table.from_pylist(rows)
    pictures = [name for name in table.column_names if pa.types.is_struct(table.schema.field(name).type)]
    stored = pa.struct({"bytes": pa.binary(), "path": pa.string()})
    table = table.cast(pa.schema([pa.field(f.name, stored if f.name in pictures else f.type) for f in table.schema]))
    kinds: dict[str, Any] = {name: _kind(table.schema.field(name).type) for name in table.column_names}
    kinds |= {name: {"_type": "Image"} for name in pictures}
    return table.replace_schema_metadata({"huggingface": json.dumps({"info": {"features": kinds}})})


def _kind(kind: pa.DataType) -> Any:
    if pa.types.is_list(kind):
        return {"feature": _kind(kind.value_type), "_type": "List"}
    if pa.types.is_struct(kind):
        return {field.name: _kind(field.type) for field in kind}
    return {"dtype": str(kind), "_type": "Value"}
