"""Processors of checkpoints: loaded offline, and tried before anything is prepared with them."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from huggingface_hub.errors import StrictDataclassError
from jinja2 import TemplateError
from safetensors import SafetensorError
from transformers import (
    AutoProcessor,
    ProcessorMixin,
)

from mmrlhf.errors import ModelError
from mmrlhf.text import first_line

# what transformers and the libraries below it raise at files that are not what they should be
UNREADABLE = (
    OSError, ValueError, TypeError, LookupError, AttributeError, RuntimeError, ArithmeticError, AssertionError,
    ImportError, SafetensorError, StrictDataclassError,
)  # fmt: skip
_MEDIA_TOKENS = ("image_token_id", "image_token_index", "video_token_id", "video_token_index")


def load_processor(path: str | Path) -> ProcessorMixin:
    """Load a checkpoint's processor.

    Raises:
        ModelError: none there (or a tokenizer only), a damaged one, one without a chat template.
    """
    try:
        processor = AutoProcessor.from_pretrained(path, trust_remote_code=False)
    except UNREADABLE as error:
        raise _no_processor(path, f"{type(error).__name__}: {first_line(error)}") from error
    if not isinstance(processor, ProcessorMixin):
        raise _no_processor(path, f"only a {type(processor).__name__}")
    _try_tokenizer(getattr(processor, "tokenizer", None), path)
    if not processor.chat_template:
        raise ModelError(
            "this checkpoint has no chat template, so nothing says how a question is put to it",
            where=str(path),
            given="neither chat_template.jinja nor a chat_template in the processor's files",
            expected="the template that the model was trained with",
            fix="take an instruction-tuned checkpoint, or put its chat_template.jinja into the folder",
        )
    _try_template(processor, path)
    return processor


def _try_tokenizer(tokenizer: Any, path: str | Path) -> None:
    """Write and read a word; ModelError where there is none, or one whose settings it fails at."""
    try:
        # Without its files transformers makes an empty tokenizer of the config's class.
        if tokenizer is None or "ab" not in tokenizer.decode(tokenizer("ab", add_special_tokens=False).input_ids):
            raise _no_processor(path, "a tokenizer without a vocabulary")
    except ModelError:
        raise
    except UNREADABLE as error:
        raise _no_processor(path, f"a tokenizer that fails with {type(error).__name__}: {first_line(error)}") from error


def _try_template(processor: ProcessorMixin, path: str | Path) -> None:
    """Render one exchange; ModelError where the template fails or leaves the answer out."""
    texts = {"user": "ask", "assistant": "reply"}
    turns = [{"role": role, "content": [{"type": "text", "text": text}]} for role, text in texts.items()]
    try:
        rendered = processor.apply_chat_template(turns, tokenize=False)
        problem = "" if "reply" in rendered and "ask" in rendered else f"it writes {rendered[:200]!r}"
    except (TemplateError, *UNREADABLE) as error:
        problem = f"{type(error).__name__}: {first_line(error)}"
    if problem:
        raise ModelError(
            "this checkpoint's chat template does not write a question and its answer",
            where=str(path),
            given=problem,
            expected="a template that takes turns whose content is a list of parts, with what both texts say",
            fix="put the chat_template.jinja of the published checkpoint into the folder",
        )


def _no_processor(path: str | Path, given: str) -> ModelError:
    return ModelError(
        "this checkpoint's processor cannot be loaded",
        where=str(path),
        given=given,
        expected="the files that processor.save_pretrained writes: processor_config.json (or "
        "preprocessor_config.json), tokenizer.json, tokenizer_config.json, chat_template.jinja",
        fix="copy them from the checkpoint that this one was made from",
    )


def check_vocabulary(config: Any, processor: Any, num_rows: int, *, where: object) -> None:
    """Compare the tokens that a processor can write with the rows (num_rows) of the model's embedding.

    Raises:
        ModelError: tokens behind the last row; names the highest, and the image token where it is one of them.
    """
    named = {name: getattr(config, name, None) for name in _MEDIA_TOKENS}
    beyond = [f"{name} is {number}" for name, number in named.items() if isinstance(number, int) and number >= num_rows]
    if len(processor.tokenizer) > num_rows:
        beyond.append(f"the tokenizer has {len(processor.tokenizer)} tokens")
    if beyond:
        raise ModelError(
            "this checkpoint's tokenizer has tokens for which its model has no embedding",
            where=str(where),
            given=f"{num_rows} rows of the embedding; {', '.join(beyond)}",
            expected="a row for every token",
            fix="give the processor that was saved with these weights, or resize the embedding "
            "(model.resize_token_embeddings) and save both",
        )
