"""A chat template is code of the checkpoint's: it runs in transformers' sandbox, and not for ever."""

from __future__ import annotations

import signal
import time
from pathlib import Path

import pytest
from transformers import AutoProcessor

from mmrlhf.conversation import IMAGE, VIDEO, Conversation, Turn
from mmrlhf.errors import DataError, ModelError
from mmrlhf.models.recipes.recipe import chat_template
from mmrlhf.processes import work_limit
from mmrlhf.tokens import chat

# the sandbox refuses one range of more than 100,000, and not two within each other
LOOP = "{% for i in range(100000) %}{% for j in range(100000) %}{% if i + j < 0 %}x{% endif %}{% endfor %}{% endfor %}"


@pytest.mark.parametrize("where", ["always", "for one text"])
def test_a_template_that_loops_is_refused(
    where: str, tiny_folders: dict[str, Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(chat, "_TEMPLATE_SECONDS", 0.3)
    processor = AutoProcessor.from_pretrained(tiny_folders["qwen2_vl"])
    condition = "{% if 'boo' in messages | string %}" + LOOP + "{% endif %}"
    processor.chat_template += LOOP if where == "always" else condition
    start = time.process_time()
    with pytest.raises(ModelError, match="does not come to an end"):
        chat.Chat(processor).prompt(Conversation.about("boo"))
    assert time.process_time() - start < 20
    assert signal.getsignal(signal.SIGVTALRM) == signal.SIG_DFL


def test_waiting_is_no_work_and_a_limit_ends_with_its_block() -> None:
    with work_limit(0.2):
        time.sleep(0.5)
    with pytest.raises(TimeoutError, match=r"0\.2 s of work"), work_limit(0.2):
        while True:
            pass
    end = time.process_time() + 0.3
    while time.process_time() < end:
        pass


def test_pictures_and_clips_may_share_a_placeholder(tiny_folders: dict[str, Path]) -> None:
    """As in a family whose processor knows pictures alone and whose template writes a clip as one of them."""
    processor = AutoProcessor.from_pretrained(tiny_folders["llava_next"])
    processor.chat_template = chat_template("<image>", "<image>")
    shared = chat.Chat(processor)
    assert shared.prompt(Conversation((Turn("user", ("what", IMAGE)),))).count("<image>") == 1
    assert shared.prompt(Conversation((Turn("user", (IMAGE, "and", VIDEO, IMAGE)),))).count("<image>") == 3
    processor.chat_template = chat_template("<image><image>", "<image>")
    with pytest.raises(DataError, match="writes 0 of 1 images"):
        chat.Chat(processor).prompt(Conversation((Turn("user", ("what", IMAGE)),)))
