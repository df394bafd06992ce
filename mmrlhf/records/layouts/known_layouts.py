"""Every layout that is read by name: what it is, how its rows are known, and the function that reads one."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from mmrlhf.records.json_text import Row
from mmrlhf.records.layouts import judgements, published_pairs, ratings
from mmrlhf.records.ranked_rows import GroupBy

Convert = Callable[[Row, str], Row]


def _whole(row: Row, where: str) -> Row:
    """A row that is in the full layout already."""
    return row


@dataclass(frozen=True)
class Layout:
    """A layout of rows.

    Args:
        title: whose it is.
        convert: row as published, place -> row of the full layout; raises DataError.
        fields: a row has all of these.
        either: and one of these, if any are named.
        without: and none of these.
        fits: and this holds, for what names of fields do not say.
        media_folder: below the tables, where the publisher's own media lie that rows name by their file names.
        group_by: how rows of one query are told, where several rows may be of one; None where each row is a query.
        repo_id: on the Hugging Face hub.
        licence: of the published data, as its card says.
        size: of the published data.
    """

    title: str
    convert: Convert
    fields: tuple[str, ...]
    either: tuple[str, ...] = ()
    without: tuple[str, ...] = ()
    fits: Callable[[Mapping[str, Any]], bool] = lambda row: True
    media_folder: str = ""
    group_by: GroupBy | None = "query"
    repo_id: str = ""
    licence: str = ""
    size: str = ""

    def knows(self, row: Mapping[str, Any]) -> bool:
        """Say whether a row has what rows of this layout have."""
        filled = {name for name, value in row.items() if value is not None}
        either = not self.either or any(name in filled for name in self.either)
        return filled.issuperset(self.fields) and either and not filled & {*self.without} and self.fits(row)


def _has_annotations(row: Mapping[str, Any]) -> bool:
    value = row["completions"]
    first = value[0] if isinstance(value, list) and value else value
    return isinstance(first, dict) and "annotations" in first


def _has_chosen(row: Mapping[str, Any]) -> bool:
    value = row["text"]
    try:
        said = json.loads(value) if isinstance(value, str) else value
    except ValueError:
        return False
    return isinstance(said, dict) and "chosen" in said


def _compares(row: Mapping[str, Any]) -> bool:
    """Two messages, of which the first asks a judge for a verdict."""
    value = row["conversations"]
    first = value[0] if isinstance(value, list) and len(value) == 2 else None
    text = first.get("value") if isinstance(first, dict) else None
    return isinstance(text, str) and any(mark in text for mark in ("esponse", "Assistant A", "[Assistant 1]"))


# The first that knows a row is meant, so the more particular come first.
LAYOUTS: Mapping[str, Layout] = {
    "vlfeedback": Layout(
        "VLFeedback, of Silkie (arXiv 2312.10665)", ratings.vlfeedback, ("prompt", "completions"),
        fits=_has_annotations, media_folder="merged_images", group_by=None,
        repo_id="MMInstruction/VLFeedback", licence="see its card", size="80,258 queries of 4 answers",
    ),
    "align_anything": Layout(
        "align-anything, text-image-to-text (arXiv 2412.15838)", ratings.align_anything,
        ("question", "response_1", "response_2", "overall_response"),
        repo_id="PKU-Alignment/align-anything", licence="CC BY-NC 4.0", size="40,000 pairs",
    ),
    "wildvision": Layout(
        "WildVision battles (arXiv 2406.11069)", ratings.wildvision, ("conversation_a", "conversation_b", "winner"),
        repo_id="WildVision/wildvision-battle", licence="ODC-BY", size="10,000 to 100,000 votes",
    ),
    "llava_rlhf": Layout(
        "LLaVA-RLHF's human preferences, 10K (arXiv 2309.14525)", ratings.llava_rlhf,
        ("conversations", "output_1", "output_2", "preference"),
        repo_id="zhiqings/LLaVA-Human-Preference-10K", licence="Apache-2.0", size="9,422 pairs",
    ),
    "rlhf_v": Layout(
        "RLHF-V (arXiv 2312.00849)", published_pairs.rlhf_v, ("text",), fits=_has_chosen,
        repo_id="openbmb/RLHF-V-Dataset", licence="CC BY-NC 4.0", size="5,733 pairs",
    ),
    "llava_critic": Layout(
        "LLaVA-Critic-113k, pairwise (arXiv 2410.02712)", judgements.llava_critic, ("conversations",),
        without=("chosen", "rejected", "rejected_conversations", "rejected_response"), fits=_compares,
        repo_id="lmms-lab/llava-critic-113k", licence="Apache-2.0", size="40,154 pairs (and 72,782 single answers)",
    ),
    "vl_rewardbench": Layout(
        "VL-RewardBench (arXiv 2411.17451)", ratings.vl_rewardbench, ("id", "query", "response", "human_ranking"),
        group_by="id", repo_id="MMInstruction/VL-RewardBench", licence="MIT", size="1,250 pairs",
    ),
    "multimodal_rewardbench": Layout(
        "Multimodal RewardBench (arXiv 2502.14191)", ratings.multimodal_rewardbench,
        ("ID", "Text", "Output1", "Output2", "Better", "Category"),
        group_by="id", repo_id="", licence="see its repository", size="5,211 pairs",
    ),
    "povid": Layout(
        "POVID (arXiv 2402.11411)", published_pairs.pair, ("conversations", "rejected_conversations"),
        repo_id="YiyangAiLab/POVID_preference_data_for_VLLMs", licence="CC BY 4.0", size="17,000 pairs",
    ),
    "llava_hound": Layout(
        "LLaVA-Hound-DPO, ShareGPTVideo (arXiv 2404.01258)", published_pairs.llava_hound,
        ("video", "prompt", "chosen", "rejected", "chosen_score", "rejected_score"),
        repo_id="ShareGPTVideo/train_video_and_instruction", licence="Apache-2.0", size="17,000 pairs",
    ),
    "rlaif_v": Layout(
        "RLAIF-V (arXiv 2405.17220)", published_pairs.pair,
        ("question", "chosen", "rejected", "image", "origin_dataset"),
        repo_id="openbmb/RLAIF-V-Dataset", licence="CC BY-NC 4.0", size="83,132 pairs",
    ),
    "spa_vl": Layout(
        "SPA-VL (arXiv 2406.12030)", published_pairs.pair, ("image", "question", "chosen", "rejected", "image_name"),
        repo_id="sqrti/SPA-VL", licence="CC BY 4.0", size="93,258 pairs",
    ),
    "internlm_xcomposer": Layout(
        "InternLM-XComposer-2.5-Reward (arXiv 2501.12368)", published_pairs.internlm_xcomposer,
        ("conversations_a", "conversations_b"), without=("preference",),
        repo_id="ChrisDing1105/MMIF-23k", licence="see its card", size="23,000 pairs",
    ),
    "llava_pairs": Layout(
        "two conversations and a preference, in LLaVA's way", published_pairs.pair,
        ("conversations_a", "conversations_b", "preference"),
    ),
    "ms_swift": Layout(
        "ms-swift", published_pairs.pair, ("messages",),
        either=("rejected_response", "rejected_messages", "rejected_images", "rejected_videos"), without=("chosen",),
    ),
    "internvl": Layout(
        "InternVL's MPO, one file of MMPR (arXiv 2411.10442)", published_pairs.internvl,
        ("question", "chosen", "rejected"),
        either=("image", "video"), without=("images", "videos", "prompt"),
    ),
    "llama_factory": Layout(
        "LLaMA-Factory's pairs, Alpaca or ShareGPT, without their dataset_info.json", published_pairs.pair,
        ("chosen", "rejected"), either=("instruction", "conversations"),
    ),
    "preference_rows": Layout("TRL, and pairs of the Hugging Face hub", published_pairs.pair, ("chosen", "rejected")),
    "mm_rlhf": Layout(
        "MM-RLHF (arXiv 2502.10391), ranked records", _whole, ("prompt", "responses"), group_by=None,
        repo_id="yifanzhang114/MM-RLHF", licence="see its card", size="16,342 queries, 120,000 pairs",
    ),
}  # fmt: skip


def known_by(row: Mapping[str, Any]) -> Iterator[str]:
    """Names of the layouts whose rows look like this one, the most particular first."""
    return (name for name, layout in LAYOUTS.items() if layout.knows(row))
