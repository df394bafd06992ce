"""Whether a checkpoint's weights are exactly those of its model; if not, which are not, and what wrote them.

transformers draws random numbers for tensors that a checkpoint lacks, and drops those it does not know. Here both are
errors: what was asked for is a trained model.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

from mmrlhf.errors import ModelError
from mmrlhf.models.weight_files import some


@dataclass(frozen=True)
class Dialect:
    """How another tool writes names: pattern of a tensor's name, what it is, what to do."""

    pattern: str
    written_by: str
    fix: str


DIALECTS = (
    Dialect(
        r"\.lora_(A|B|embedding_A|embedding_B|magnitude_vector)\b|\.base_layer\.|\.modules_to_save\.|^base_model\.model\.",
        "adapters of peft that were not merged into the model",
        "merge them: PeftModel.merge_and_unload().save_pretrained(NEW); give NEW",
    ),
    Dialect(
        r"(^|\.)module\.",
        "the prefix `module.` that torch's DataParallel, DDP and DeepSpeed add",
        "save again from the model inside: wrapped.module.save_pretrained(NEW); give NEW",
    ),
    Dialect(
        r"(^|\.)(_orig_mod|_forward_module|_fsdp_wrapped_module|_checkpoint_wrapped_module)\.",
        "a wrapper of torch.compile, FSDP or Lightning, which put its own name into these",
        "save again from the model inside the wrapper with save_pretrained(NEW); give NEW",
    ),
    Dialect(
        r"(^|\.)(qweight|qzeros|scales|g_idx|weight_packed|weight_scale|absmax|quant_map|SCB)$|\.(absmax|quant_state)\b",
        "quantised weights",
        "give the checkpoint that was quantised: it is trained and asked in its own precision",
    ),
    Dialect(
        r"^model\.(mm_projector|vision_tower\.vision_tower)\.|^rm_head\.",
        "the original LLaVA code",
        "for MM-RLHF-Reward-7B run stage=import_reward; for other models give the release whose name ends in -hf",
    ),
    Dialect(
        r"^(backbone|score_head|policy|pretrained_model|v_head|state_dict|net|actor)\.",
        "a training framework's own checkpoint, which holds more than the model or under another name",
        "export the model from it with save_pretrained(NEW); give NEW",
    ),
)


def check_loading(info: Mapping[str, Any], *, total: int, model: str, where: object) -> None:
    """Refuse a checkpoint whose tensors are not the model's; tied ones may be left out.

    Args:
        info: `output_loading_info` of transformers' `from_pretrained`, with mismatched sizes let through.
        total: tensors of the model.
        model: name of its class.
        where: folder or hub id.

    Raises:
        ModelError: names what is missing, unknown or of another shape, with numbers, and what has written it if known.
    """
    missing, unexpected = sorted(info["missing_keys"]), sorted(info["unexpected_keys"])
    mismatched = sorted(info["mismatched_keys"])
    if not missing and not unexpected and not mismatched:
        return
    shapes = [f"{name} is {tuple(stored)} and not {tuple(wanted)}" for name, stored, wanted in mismatched]
    found = [
        f"{len(missing)} of {total} missing{_parts(missing)}: {some(missing)}" if missing else "",
        f"{len(unexpected)} unknown: {some(unexpected)}" if unexpected else "",
        f"{len(shapes)} of another shape: {some(shapes)}" if shapes else "",
    ]
    dialect = find_dialect(unexpected)
    raise ModelError(
        "the weights of this checkpoint are not those of its model"
        + (f": they are from {dialect.written_by}" if dialect else ""),
        where=where,
        given="; ".join(each for each in found if each),
        expected=f"the tensors of {model} as config.json describes it, no more and no fewer; none is drawn at random",
        fix=dialect.fix if dialect else _fix(missing, unexpected, shapes),
    )


def find_dialect(names: Iterable[str]) -> Dialect | None:
    """The tool that has written tensors under such names, if it is one that is known here."""
    listed = list(names)
    return next((each for each in DIALECTS if any(re.search(each.pattern, name) for name in listed)), None)


def _parts(names: list[str]) -> str:
    """Say in which part of the model names lie, where all lie in one: `, all in model.vision_tower`."""
    parts = Counter(".".join(name.split(".")[:2]) for name in names)
    return f", all in {next(iter(parts))}" if len(parts) == 1 and len(names) > 1 else ""


def _fix(missing: list[str], unexpected: list[str], shapes: list[str]) -> str:
    if shapes and not missing and not unexpected:
        return "give the config.json that these weights were saved with"
    if unexpected and not missing:
        return "if these are not needed, load and save the model once with transformers; give the new folder"
    return "copy or download the checkpoint again; if it was saved in parts, save the whole model"
