"""Stage `tiny`: a random tiny model of a family's real architecture, with a tokenizer trained on the data's text.

On the embedded world its vision tower is taught to see (`mmrlhf.shapes.tower`), as published towers have been.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

from transformers import AutoProcessor

from mmrlhf.chain.runtime import Runtime
from mmrlhf.models.promises import check_policy_folder
from mmrlhf.models.random_checkpoints import TinySize, build_tiny
from mmrlhf.models.recipes.recipe import Recipe
from mmrlhf.ranges import Natural
from mmrlhf.shapes.tower import TowerSettings, pretrain_tower
from mmrlhf.shards.index import Index

# More text than this does not change a vocabulary of a few hundred tokens.
_MOST_GROUPS = 2000

# another number builds the stage anew, whatever `code` says
VERSION = 2
# what is in a finished artefact; checked before it is published
PROMISES = ("model/config.json",)


def run(
    out: Path,
    *,
    shards: Path,
    warmup_shards: Path | None = None,
    family: str,
    recipe: Recipe | None = None,
    size: TinySize | None = None,
    tower: TowerSettings | None = None,
    seed: Natural = 0,
    runtime: Runtime,
) -> dict[str, Any]:
    """Write `out/model`, a Hugging Face folder with random weights, all or all but the tower's.

    Args:
        shards, warmup_shards: packed queries whose text the tokenizer learns.
        family: a key of `mmrlhf.models.random_checkpoints.FAMILIES`.
        recipe: how a model of another family is made.
        size: how small.
        tower: how the vision tower is pre-trained; None leaves it random.
        seed: of the weights.

    Raises:
        ConfigError: no tiny recipe for this family.
    """
    texts = [text for folder in (shards, warmup_shards) if folder for text in _texts(Index.load(folder))]
    model = build_tiny(family, out / "model", texts=texts, size=size, seed=seed, recipe=recipe)
    seen = {}
    if tower is not None:
        index = Index.load(warmup_shards or shards)
        groups = [index.read(row) for row in range(min(len(index), _MOST_GROUPS))]
        processor = AutoProcessor.from_pretrained(out / "model")
        seen["tower_accuracy"] = pretrain_tower(model, processor, groups, tower, seed=seed, progress=runtime.progress)
        model.save_pretrained(out / "model")
    check_policy_folder(out / "model")
    return {
        **seen,
        "family": family,
        "parameters": model.num_parameters(),
        "vocabulary": model.config.get_text_config().vocab_size,
    }


def _texts(index: Index) -> Iterator[str]:
    """Prompts, responses and critiques, with the words that chat and critique templates put around them."""
    for row in range(min(len(index), _MOST_GROUPS)):
        group = index.read(row)
        yield from (part for turn in group.prompt.turns for part in turn.parts if isinstance(part, str))
        for response in group.responses:
            yield response.text
            yield from response.critiques.values()
        yield "user assistant [Question]: [LMM Response]: [Evaluation]:"
