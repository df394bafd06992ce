"""What every recipe of a tiny model shares: sizes, the tokenizer, the language model's settings, chat templates."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field, replace
from typing import Any

from tokenizers.processors import TemplateProcessing
from transformers import PreTrainedConfig, ProcessorMixin, Qwen2Tokenizer

from mmrlhf.ranges import Count, check_fields


@dataclass(frozen=True)
class TinySize:
    """Sizes of a tiny model.

    Args:
        hidden: width of the language model.
        layers: its layers.
        heads: its attention heads.
        vision_hidden: width of the vision tower.
        vision_layers: its layers.
        image: pixels of a picture's side.
        patch: pixels of a patch's side.
        vocabulary: tokens that the tokenizer learns.
        max_positions: longest sequence that the language model can take.
        crops: let families that cut pictures make up to 2 x 2 crops of one.
        published: pictures cost what they cost a published checkpoint of the family: its own image, patch, crops and
            limits of pixels (`Recipe.published`) take the place of these three, whatever the widths.
    """

    hidden: Count = 64
    layers: Count = 2
    heads: Count = 4
    vision_hidden: Count = 32
    vision_layers: Count = 2
    image: Count = 56
    patch: Count = 14
    vocabulary: Count = 600
    max_positions: Count = 4096
    crops: bool = True
    published: bool = False

    def __post_init__(self) -> None:
        check_fields(self)

    @property
    def vision_heads(self) -> int:
        """Attention heads of the vision tower, 16 channels each."""
        return max(1, self.vision_hidden // 16)


Build = Callable[[TinySize, Qwen2Tokenizer], tuple[PreTrainedConfig, ProcessorMixin]]


@dataclass(frozen=True)
class Recipe:
    """How a family's tiny model is made.

    Args:
        build: sizes and tokenizer -> the family's configuration and processor.
        special: attribute of the tokenizer (`image_token`, ...) -> its token.
        turns: tokens that the chat template writes.
        end: end-of-sequence token; end_of_turn: the token behind an assistant turn where it is another one.
        begin: token that the tokenizer puts before every text, as Llama's and Gemma's do.
        needs: package that the family's processor imports and transformers does not require.
        published: `image` and `patch` of published checkpoints, for `TinySize.published`.
        tower: name that published checkpoints of the family put between `vision_tower` and its tensors.
    """

    build: Build
    special: Mapping[str, str] = field(default_factory=dict)
    turns: tuple[str, ...] = ("<|im_start|>", "<|im_end|>")
    end: str = "<|im_end|>"
    end_of_turn: str | None = None
    begin: str | None = None
    needs: str | None = None
    published: Mapping[str, int] = field(default_factory=dict)
    tower: str = ""

    def sized(self, size: TinySize) -> TinySize:
        """The sizes that the family's parts are built in."""
        if not size.published:
            return size
        return replace(size, image=self.published["image"], patch=self.published["patch"])

    def end_ids(self, tokenizer: Qwen2Tokenizer) -> list[int]:
        """Token ids that end a generation."""
        tokens = [token for token in (self.end, self.end_of_turn) if token]
        return [token_id(tokenizer, token) for token in tokens]


def train_tokenizer(texts: Iterable[str], vocabulary: int, recipe: Recipe) -> Qwen2Tokenizer:
    """A byte-level BPE of Qwen's class, which can spell any text, with the family's special tokens."""
    special = [token for token in (recipe.begin, recipe.end, *recipe.turns, *recipe.special.values()) if token]
    trained = Qwen2Tokenizer().train_new_from_iterator(
        texts, vocab_size=vocabulary, new_special_tokens=list(dict.fromkeys(special)), show_progress=False
    )
    backend = trained.backend_tokenizer
    if recipe.begin:
        begin = backend.token_to_id(recipe.begin)
        backend.post_processor = TemplateProcessing(single=f"{recipe.begin} $A", special_tokens=[(recipe.begin, begin)])
    tokenizer = Qwen2Tokenizer(tokenizer_object=backend, extra_special_tokens=dict(recipe.special))
    tokenizer.eos_token = recipe.end
    tokenizer.bos_token = recipe.begin
    tokenizer.pad_token = "<|endoftext|>"
    return tokenizer


def text_settings(size: TinySize, tokenizer: Qwen2Tokenizer) -> dict[str, Any]:
    """Settings that every language model's configuration takes."""
    return {
        "vocab_size": len(tokenizer),
        "hidden_size": size.hidden,
        "intermediate_size": 2 * size.hidden,
        "num_hidden_layers": size.layers,
        "num_attention_heads": size.heads,
        "num_key_value_heads": size.heads,
        "max_position_embeddings": size.max_positions,
        "tie_word_embeddings": True,
        # The usual 0.02 suits widths of thousands; a narrow model starts learning sooner with unit-variance outputs.
        "initializer_range": size.hidden**-0.5,
        "bos_token_id": tokenizer.bos_token_id,
        "eos_token_id": tokenizer.eos_token_id,
        "pad_token_id": tokenizer.pad_token_id,
    }


def token_id(tokenizer: Qwen2Tokenizer, token: str) -> int:
    """The id of one token."""
    found = tokenizer.convert_tokens_to_ids(token)
    assert isinstance(found, int)
    return found


def chat_template(image: str, video: str) -> str:
    """ChatML as most families write it: one line per turn, its parts in their order, closed by <|im_end|>."""
    return (
        "{% for message in messages %}{{ '<|im_start|>' + message['role'] + '\n' }}"
        "{% for part in message['content'] %}{% if part['type'] == 'image' %}{{ '" + image + "' }}"
        "{% elif part['type'] == 'video' %}{{ '" + video + "' }}"
        "{% elif part['type'] == 'text' %}{{ part['text'] }}{% endif %}{% endfor %}"
        "{{ '<|im_end|>\n' }}{% endfor %}"
        "{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}"
    )
