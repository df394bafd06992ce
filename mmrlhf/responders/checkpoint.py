"""A checkpoint on this machine as whoever answers queries, in windows that a stopped run does not repeat."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from mmrlhf.endpoints.completions import CUT, EMPTY, Answer, Use
from mmrlhf.feed.preflight import look_ahead
from mmrlhf.feed.selection import usable
from mmrlhf.inference.made_by import describe_pass, describe_source
from mmrlhf.inference.passes import BATCHES_PER_WINDOW, CACHE_PER_BUDGET, decode_text, encoded_batches
from mmrlhf.inference.policy import Policy
from mmrlhf.inference.settings import PassSettings
from mmrlhf.inference.tables import share_quarantine
from mmrlhf.models.decoding import generate
from mmrlhf.parts import Parts
from mmrlhf.responders.asking import Answers, Asked
from mmrlhf.responders.spending import Purse
from mmrlhf.summaries.responses import AskingEstimate
from mmrlhf.terminal.progress import track


@dataclass(frozen=True)
class CheckpointAnswerer:
    """A checkpoint folder or hub id; several processes share the windows of queries.

    Args:
        policy: the checkpoint.
        passes: how the model runs.
    """

    policy: Path | str
    passes: PassSettings

    @property
    def kind(self) -> str:
        return "local"

    def describe(self) -> Mapping[str, Any]:
        return {"policy": describe_source(self.policy)}

    def estimate(self, asked: Asked) -> AskingEstimate:
        parts, windows = self._parts(asked), self._windows(asked)
        done = sum(len(windows[n]) for n in range(len(windows)) if parts.read(_name(n)) is not None)
        samples = asked.how.num_samples
        return AskingEstimate(len(asked.rows) * samples, done * samples, None, None, None, None, None, None)

    def answers(self, asked: Asked, purse: Purse) -> Answers:
        parts, windows = self._parts(asked), self._windows(asked)
        own = [int(number) for number in asked.ranks.share(np.arange(len(windows)))]
        missing = {number: windows[number] for number in own if parts.read(_name(number)) is None}
        if missing:
            self._answer_windows(parts, asked, missing)
        for number in own:
            asked.quarantine.update(_finished(parts, number)["left_out"])
        share_quarantine(asked.quarantine, asked.ranks)
        if not asked.ranks.leads:
            return {}
        finished = (_finished(parts, number) for number in range(len(windows)))
        said = {key: each for part in finished for key, each in part["said"].items()}
        model = describe_source(self.policy)
        return {asked.key(row): [_answer(model, *one) for one in said[asked.key(row)]] for row in asked.usable()}

    def _windows(self, asked: Asked) -> list[np.ndarray]:
        size = self.passes.groups_per_batch * BATCHES_PER_WINDOW
        return [asked.rows[start : start + size] for start in range(0, len(asked.rows), size)]

    def _parts(self, asked: Asked) -> Parts:
        how = asked.how
        made_by = {
            **describe_pass(asked.index, asked.rows, self.passes), **self.describe(),
            "num_samples": how.num_samples, "temperature": how.temperature, "max_new_tokens": how.max_new_tokens,
            "seed": how.seed, "queries_per_part": self.passes.groups_per_batch * BATCHES_PER_WINDOW,
        }  # fmt: skip
        return Parts(asked.work, made_by, what="a round of answers")

    def _answer_windows(self, parts: Parts, asked: Asked, windows: Mapping[int, np.ndarray]) -> None:
        """Answer the queries of each window and leave a part under the window's number."""
        index, runtime, quarantine = asked.index, asked.runtime, asked.quarantine
        policy = Policy.from_pretrained(
            self.policy, self.passes, room=asked.how.max_new_tokens + 1, device=asked.ranks.device
        )
        every = np.concatenate([*windows.values(), np.zeros(0, dtype=np.int64)])
        look_ahead(index, every, policy.encoder, with_answer=False).settle(quarantine, runtime.preflight)
        bar = track(windows.items(), f"answering ({asked.name}, windows)", len(windows), enabled=runtime.progress)
        for number, rows in bar:
            batches = encoded_batches(
                index, usable(index, rows, quarantine), policy.encoder, policy.encoder.context,
                groups_per_batch=self.passes.groups_per_batch, quarantine=quarantine, num_workers=runtime.num_workers,
            )  # fmt: skip
            said: dict[str, list[list[Any]]] = {}
            for batch in batches:
                said |= self._answer_batch(policy, batch, asked)
            keys = {asked.key(row) for row in rows}
            left_out = {key: why for key, why in quarantine.reasons.items() if key in keys}
            parts.write(_name(number), {"said": said, "left_out": left_out})

    def _answer_batch(self, policy: Policy, batch: Sequence[Any], asked: Asked) -> dict[str, list[list[Any]]]:
        """key -> (text, tokens read, tokens written, whether it was cut) of each answer."""
        how, encoder = asked.how, policy.encoder
        written = generate(
            policy.model, [context for _, context in batch], end_tokens=encoder.end_tokens,
            num_samples=how.num_samples, temperature=how.temperature, max_new_tokens=how.max_new_tokens, seed=how.seed,
            cache_tokens=CACHE_PER_BUDGET * self.passes.token_budget,
        )  # fmt: skip
        return {
            group.key: [
                [decode_text(encoder.processor, one.ids), context.num_tokens, len(one.ids), one.cut] for one in each
            ]
            for (group, context), each in zip(batch, written, strict=True)
        }


def _answer(model: str, text: str, read: int, written: int, cut: bool) -> Answer:
    use = Use(model, "length" if cut else "stop", read, written)
    return Answer(text, CUT if cut else "" if text.strip() else EMPTY, use=use)


def _name(number: int) -> str:
    return f"{number:06d}"


def _finished(parts: Parts, number: int) -> dict[str, dict[str, Any]]:
    """A window's answers (`said`) and the queries that could not be asked (`left_out`, with why)."""
    part = parts.read(_name(number))
    assert part is not None, f"window {number} was answered by its rank"
    return part
