"""How much of a text says again what it has said before."""

from __future__ import annotations

import re

# characters of scripts without spaces count as words
_WORDS = re.compile(r"[\u3040-\u30ff\u3400-\u9fff]|[^\W\u3040-\u30ff\u3400-\u9fff]+")


def repeated_share(text: str, *, size: int = 4) -> float:
    """Share of a text's runs of `size` words that occur before in it, in [0, 1); 0 for a text of fewer words."""
    words = _WORDS.findall(text.lower())
    runs = [tuple(words[start : start + size]) for start in range(len(words) - size + 1)]
    return 1 - len(set(runs)) / len(runs) if runs else 0.0
