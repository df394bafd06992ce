"""Multimodal preference alignment: ranked data, a critique-based reward model, and MM-DPO (arXiv 2502.10391).

    from mmrlhf import Policy, RewardModel, load_shards

    group = load_shards("packed")[0]
    answer = Policy.from_pretrained("policy").answer("picture.jpg", group.prompt)
    judge = RewardModel.from_pretrained("reward_model")
    [(reward, critique)] = judge.score("picture.jpg", group.prompt, [answer])

The names load when they are first used, so that `import mmrlhf` costs nothing.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from mmrlhf.inference.policy import Policy
    from mmrlhf.inference.reward_model import RewardModel
    from mmrlhf.shards.index import load_shards
    from mmrlhf.types import PreferenceGroup, Response

    __version__: str

__all__ = ["Policy", "PreferenceGroup", "Response", "RewardModel", "__version__", "load_shards"]

_HOMES = {
    "Policy": "mmrlhf.inference.policy",
    "PreferenceGroup": "mmrlhf.types",
    "Response": "mmrlhf.types",
    "RewardModel": "mmrlhf.inference.reward_model",
    "load_shards": "mmrlhf.shards.index",
}


def __getattr__(name: str) -> Any:
    if name == "__version__":
        return _version()
    if name not in _HOMES:
        raise AttributeError(f"module 'mmrlhf' has no attribute {name!r}")
    return getattr(importlib.import_module(_HOMES[name]), name)


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})


def _version() -> str:
    from importlib import metadata

    try:
        return metadata.version("mmrlhf")
    except metadata.PackageNotFoundError:
        return "unknown"  # a checkout that was not installed
