"""Tiny random models in the real format: real architecture, processor classes and chat template, random weights.

They stand in for a checkpoint wherever nothing can be downloaded: tests, `scale=tiny`, and the embedded world (whose
model is trained from scratch). Everything is saved with `save_pretrained`, so they are loaded by the same code as a
real one.
"""

from __future__ import annotations

import re
from collections.abc import Iterable
from importlib.util import find_spec
from pathlib import Path

import torch
from safetensors.torch import load_file, save_file
from transformers import AutoModelForImageTextToText, GenerationConfig, PreTrainedModel

from mmrlhf.errors import ConfigError
from mmrlhf.models.recipes import gemma, idefics, internvl, llava, qwen
from mmrlhf.models.recipes.recipe import Recipe, TinySize, train_tokenizer
from mmrlhf.models.weight_files import WEIGHTS

FAMILIES: dict[str, Recipe] = {
    **llava.RECIPES,
    **qwen.RECIPES,
    **internvl.RECIPES,
    **gemma.RECIPES,
    **idefics.RECIPES,
}


def build_tiny(
    family: str,
    folder: str | Path,
    *,
    texts: Iterable[str],
    size: TinySize | None = None,
    seed: int = 0,
    recipe: Recipe | None = None,
) -> PreTrainedModel:
    """Write a random model of a stock family with its processor to a folder, and return the model.

    Args:
        family: a key of `FAMILIES` (the checkpoint's `model_type`).
        recipe: of a family that is not in `FAMILIES`.
        texts: what the byte-level BPE tokenizer is trained on.

    Raises:
        ConfigError: for a family without a tiny recipe or, where asked for, a published geometry; or whose processor
            needs a package that is not installed.
    """
    recipe, size = recipe or FAMILIES.get(family), size or TinySize()
    if recipe is None:
        raise ConfigError(
            "no tiny model of this family",
            where="model.family",
            given=family,
            expected=f"one of {', '.join(FAMILIES)}",
            fix="a recipe for a family of yours goes under model.recipe (docs/extending.md)",
        )
    if not _has_what_it_needs(recipe):
        raise ConfigError(
            "this family's processor needs another package",
            where="model.family",
            given=family,
            expected=f"the package {recipe.needs}",
            fix=f"pip install {recipe.needs}",
        )
    if size.published and not recipe.published:
        raise ConfigError(
            "what pictures cost a published checkpoint of this family is not known",
            where="model.size.published",
            given=family,
            expected=f"one of {', '.join(FAMILIES)}, or a recipe that says `published`",
            fix="model.size.published=false, or give your recipe the image and patch of published checkpoints",
        )
    size = recipe.sized(size)
    tokenizer = train_tokenizer(texts, size.vocabulary, recipe)
    config, processor = recipe.build(size, tokenizer)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        model = AutoModelForImageTextToText.from_config(config)
    model.generation_config = GenerationConfig(
        eos_token_id=recipe.end_ids(tokenizer), pad_token_id=tokenizer.pad_token_id
    )
    model.save_pretrained(folder)
    processor.save_pretrained(folder)
    if not recipe.tower:
        return model
    _name_tower(Path(folder) / WEIGHTS, recipe.tower)
    # as loaded, so that it keeps these names when it is saved again
    return AutoModelForImageTextToText.from_pretrained(folder, dtype=torch.float32).train()


def _name_tower(file: Path, name: str) -> None:
    """Give the vision tower's tensors the names of published checkpoints, which a fresh model may not write."""
    # older transformers have the module that newer ones leave out
    unnamed = re.compile(rf"^((?:model\.)?vision_tower\.)(?!{name}\.)")
    tensors = {unnamed.sub(rf"\1{name}.", each): value for each, value in load_file(file).items()}
    save_file(tensors, file, metadata={"format": "pt"})


def is_available(family: str) -> bool:
    """Whether everything that a family's processor needs is installed."""
    return _has_what_it_needs(FAMILIES[family])


def _has_what_it_needs(recipe: Recipe) -> bool:
    return recipe.needs is None or find_spec(recipe.needs) is not None
