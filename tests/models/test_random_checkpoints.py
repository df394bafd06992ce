"""At a published geometry a picture costs a tiny model the tokens that it costs the published checkpoint."""

from __future__ import annotations

import io
from pathlib import Path

import pytest
import torch
from PIL import Image
from stand_ins.tiny_models import AVAILABLE, TEXTS, responses

from mmrlhf.errors import ConfigError
from mmrlhf.models.families import positions_for
from mmrlhf.models.load import load_backbone
from mmrlhf.models.random_checkpoints import FAMILIES, TinySize, build_tiny
from mmrlhf.models.recipes.recipe import Recipe
from mmrlhf.models.settings import ModelSettings
from mmrlhf.tokens.encode import Encoder
from mmrlhf.tokens.templates import AnswerTemplate
from mmrlhf.types import Media, PreferenceGroup

SIZE = TinySize(hidden=16, layers=1, heads=2, vision_hidden=16, vision_layers=1, max_positions=32768, published=True)

# Family -> {(width, height): tokens of the picture}, by the arithmetic that its paper or model card gives.
TOKENS = {
    # 27 x 27 of the whole; crops of 27 x 27 side by side without what pads them, a token at the end of each row. Of
    # 3 x 4 crops 81 columns, 4 on each side are padding; 3 x 3 are the most (anyres_max_9): 6 x 6 are halved
    "llava_onevision": {
        (864, 1296): 27 * 27 + 108 * (73 + 1),
        (384, 384): 27 * 27 + 27 * 28,
        (2304, 2304): 27 * 27 + 81 * 82,
    },
    # 24 x 24 of the whole, 2 x 2 crops of as many, row ends; a small picture gets the smallest grid without its padding
    "llava_next": {(672, 672): 24 * 24 + 48 * 49, (336, 336): 24 * 24 + 24 * 25},
    # one for 28 x 28 pixels, at most 16,384; 12 megapixels of a telephone cost 15,552
    "qwen2_vl": {(3024, 4032): 15552, (1344, 896): 48 * 32, (8000, 6000): 147 * 110},
    "qwen2_5_vl": {(1344, 896): 48 * 32, (840, 1120): 30 * 40},
    # one for 32 x 32, at most 16,384
    "qwen3_vl": {(3024, 4032): 94 * 126, (1344, 896): 42 * 28, (6000, 6000): 128 * 128},
    # 256 for a tile of 448 x 448, at most 12, and for the thumbnail where there are several
    "internvl": {(448, 448): 256, (1344, 896): 7 * 256, (1792, 1344): 13 * 256, (4480, 3360): 13 * 256},
    "gemma3": {(1344, 896): 256, (3024, 4032): 256},
    # 169 for a crop of 364 x 364, at most 4 x 4, and the whole
    "idefics3": {(1456, 1456): 17 * 169, (2912, 1456): 9 * 169},
    # 64 for a crop of 512 x 512, at most 4 x 4, and the whole
    "smolvlm": {(2048, 2048): 17 * 64},
}


def grey(width: int, height: int) -> Media:
    """A picture without content, which is quick to make however large."""
    buffer = io.BytesIO()
    Image.new("RGB", (width, height), "grey").save(buffer, "PNG", compress_level=1)
    return Media("image", ("0.png",), (buffer.getvalue(),))


SEVERAL = ("qwen2_vl", "qwen3_vl")  # large pictures take seconds each


@pytest.mark.parametrize(
    "family", [pytest.param(name, marks=[pytest.mark.slow] if name in SEVERAL else []) for name in AVAILABLE]
)
def test_pictures_cost_what_they_cost_published_checkpoints(family: str, tmp_path: Path) -> None:
    """Encoded, they have the tokens of the stock processor, and as many placeholders as was published."""
    build_tiny(family, tmp_path, texts=TEXTS, size=SIZE)
    backbone, processor = load_backbone(tmp_path, ModelSettings())
    encoder = Encoder(
        processor, template=AnswerTemplate(), positions=positions_for(backbone), max_tokens=SIZE.max_positions
    )
    names = ("image_token_id", "image_token_index")
    placeholder = next(found for name in names if (found := getattr(backbone.config, name, None)) is not None)
    for pixels, expected in TOKENS[family].items():
        group = PreferenceGroup("k", "what ?", responses("a", "b"), (grey(*pixels),))
        encoded = encoder(group)
        stock = encoder.stock_inputs(group, group.responses[0])[0]["input_ids"][0]
        assert torch.equal(torch.cat([encoded.prefix_ids, encoded.branches[0].ids]), stock)
        assert int((encoded.prefix_ids == placeholder).sum()) == expected, pixels


def test_every_family_has_its_published_geometry(tmp_path: Path) -> None:
    assert {*TOKENS} == {*FAMILIES}
    with pytest.raises(ConfigError, match="published"):
        build_tiny("mine", tmp_path, texts=TEXTS, size=SIZE, recipe=Recipe(FAMILIES["qwen3_vl"].build))
