"""Benchmarks of reward models in their own layouts: VL-RewardBench and Multimodal RewardBench.

Each row compares two responses; it is brought into the layout of pairs, and rows of one id and query become one group.
MM-RLHF-RewardBench, and pairs of your own, come in the released layout (`released.py`).
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

from mmrlhf.records.converted import convert_rows
from mmrlhf.records.draft import Drafts
from mmrlhf.records.fields import text_field, wrong_type
from mmrlhf.records.json_text import Row
from mmrlhf.records.pair_rows import import_pairs
from mmrlhf.records.sources import OnBadLine, files_source, find_file, find_tables

VL_LAYOUT = (
    'Parquet files, or data.jsonl, with rows {"id", "query", "image" or "image_path", "response", "human_ranking"}'
)
MULTIMODAL_LAYOUT = 'all_data.json with rows {"ID", "Text", "Image", "Output1", "Output2", "Better", "Category"}'
# The benchmark's own scoring script sorts its sources like this. Papers read the three categories differently: compare
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


def import_vl_rewardbench(
    root: Path | str,
    *,
    file: str | None = None,
    on_bad_line: OnBadLine = "error",
    media: bool = True,
    source: str = "VL-RewardBench",
    licence: str = "",
) -> Drafts:
    """Read VL-RewardBench (arXiv 2411.17451): 1,250 pairs, as Parquet from the hub or data.jsonl from its repository.

    Args:
        root: folder with the tables; media paths in data.jsonl are relative to it.
        file: name or pattern of the tables; by default the Parquet files, else data.jsonl.
        on_bad_line: "error" stops at the first bad row, "reject" lists it in the report.
        media: false reads the records as text only.
        source: of the data; kept in every group.
        licence: kept in every group that does not name its own.

    Raises:
        DataError: no such folder or file, bad rows (unless rejected), no records.
    """
    root = Path(root)
    rows = files_source(find_tables(root, file, VL_LAYOUT), root if root.is_dir() else root.parent)
    return import_pairs(
        convert_rows(rows, _vl_pair), on_bad_line=on_bad_line, media=media, source=source, licence=licence
    )


def import_multimodal_rewardbench(
    root: Path | str,
    *,
    file: str | None = None,
    on_bad_line: OnBadLine = "error",
    media: bool = True,
    source: str = "Multimodal RewardBench",
    licence: str = "",
) -> Drafts:
    """Read Multimodal RewardBench (arXiv 2502.14191): its repository's `data` folder with all_data.json and images/.

    Args:
        root: the folder; media paths are relative to it.
        file: the file of records below root; by default all_data.json.
        on_bad_line: "error" stops at the first bad row, "reject" lists it in the report.
        media: false reads the records as text only.
        source: of the data; kept in every group.
        licence: kept in every group that does not name its own.

    Raises: as `import_vl_rewardbench`.
    """
    path = find_file(Path(root), file, ("all_data.json",), MULTIMODAL_LAYOUT)
    rows = files_source([path], Path(root))
    return import_pairs(
        convert_rows(rows, _multimodal_pair), on_bad_line=on_bad_line, media=media, source=source, licence=licence
    )


def _vl_pair(row: Row, where: str) -> Row:
    """`human_ranking` holds the rank of each response: [0, 1] prefers the first, [1, 0] the second."""
    texts, ranking = row.get("response"), row.get("human_ranking")
    if not isinstance(texts, list) or len(texts) != 2:
        raise wrong_type(where, "response", texts, "a list of two responses")
    if ranking not in ([0, 1], [1, 0]):
        raise wrong_type(where, "human_ranking", ranking, "[0, 1] or [1, 0]")
    record_id, path = text_field(row, ("id",), where), row.get("image_path")
    image: Any = row.get("image") if path is None else path
    return {
        "id": record_id,
        "prompt": text_field(row, ("query",), where),
        "image": image,
        "chosen": texts[ranking.index(0)],
        "rejected": texts[ranking.index(1)],
        "category": _vl_category(record_id, path),
    }


def _vl_category(record_id: str, path: Any) -> str:
    folders = path.split("/")[:-1] if isinstance(path, str) else []
    for folder in folders:
        if folder.lower() in _VL_CATEGORY:
            return _VL_CATEGORY[folder.lower()]
    found = [category for prefix, category in _VL_PREFIX.items() if record_id.lower().startswith(prefix)]
    return found[0] if found else "general"


def _multimodal_pair(row: Row, where: str) -> Row:
    better = row.get("Better")
    if better not in ("Output1", "Output2"):
        raise wrong_type(where, "Better", better, "Output1 or Output2")
    worse = "Output1" if better == "Output2" else "Output2"
    record_id = text_field(row, ("ID",), where)
    return {
        "id": record_id,
        "prompt": text_field(row, ("Text",), where),
        "image": row.get("Image"),
        "chosen": text_field(row, (better,), where),
        "rejected": text_field(row, (worse,), where),
        "category": _multimodal_category(record_id, text_field(row, ("Category",), where)),
    }


def _multimodal_category(record_id: str, category: str) -> str:
    """Safety and reasoning in the two halves that the benchmark's own scoring script reports."""
    if category == "safety":
        return "safety/bias" if record_id.lower().startswith("pairs") else "safety/toxicity"
    if category == "reasoning":
        return "reasoning/math" if record_id.lower().startswith("math") else "reasoning/coding"
    return category
