"""What a policy says to held-out queries, and what models say of that: log-probabilities, rewards."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np

from mmrlhf.chain.runtime import Runtime
from mmrlhf.errors import DataError
from mmrlhf.feed.selection import usable
from mmrlhf.inference.passes import (
    CACHE_PER_BUDGET,
    decode_text,
    encode_usable,
    encoded_batches,
    forward_groups,
    with_continuations,
    with_responses,
)
from mmrlhf.inference.policy import Policy
from mmrlhf.inference.reward_model import RewardModel
from mmrlhf.inference.settings import CritiqueSettings, PassSettings
from mmrlhf.inference.sharing import pick_device
from mmrlhf.models.decoding import generate
from mmrlhf.models.decoding_rows import Continuation
from mmrlhf.records.quarantine import Quarantine
from mmrlhf.responders.asking import AnswerSettings, Asked, text_of, tokens_written
from mmrlhf.responders.endpoint import EndpointAnswerer
from mmrlhf.responders.spending import Purse
from mmrlhf.shards.index import Index
from mmrlhf.tensors import EncodedGroup
from mmrlhf.terminal.progress import track
from mmrlhf.types import PreferenceGroup

# query key -> what was found out about its answers, a list of each
Said = dict[str, dict[str, Any]]
Encoded = tuple[PreferenceGroup, EncodedGroup]


class EvaluationPasses:
    """The passes over held-out queries, one model each; one at a time is on the device.

    Args:
        index, rows: the queries.
        passes: how models are asked.
        quarantine: takes queries that a pass cannot use; later passes leave them out.
        room: tokens that stay free behind a context, for an answer and its end.
    """

    def __init__(
        self, index: Index, rows: np.ndarray, passes: PassSettings, runtime: Runtime, quarantine: Quarantine, room: int
    ) -> None:
        self.index, self.rows, self.passes, self.runtime = index, rows, passes, runtime
        self.quarantine, self.room = quarantine, room

    def answers(self, path: Path | str | EndpointAnswerer, how: AnswerSettings) -> Said:
        """Let a policy answer, and take its log-probabilities of its answers and of the annotated responses."""
        if isinstance(path, EndpointAnswerer):
            return self._endpoint_answers(path, how)
        policy = Policy.from_pretrained(path, self.passes, room=self.room, device=pick_device(self.runtime))
        said: Said = {}
        for batch in self._batches(policy, policy.encoder.context, "answering (batches)"):
            written = generate(
                policy.model, [context for _, context in batch], end_tokens=policy.encoder.end_tokens,
                cache_tokens=CACHE_PER_BUDGET * self.passes.token_budget, **asdict(how),
            )  # fmt: skip
            for place, scores in self._score(policy, batch, written).items():
                answers = written[place]
                said[batch[place][0].key] = {
                    "texts": [decode_text(policy.encoder.processor, answer.ids) for answer in answers],
                    "ids": [answer.ids for answer in answers],
                    "ends": [answer.end for answer in answers],
                    "num_tokens": [len(answer.ids) for answer in answers],
                    **scores,
                }
        return said

    def _endpoint_answers(self, policy: EndpointAnswerer, how: AnswerSettings) -> Said:
        """What an endpoint answers; a query to which some answer did not come is left out."""
        asked = Asked(self.index, self.rows, how, Path(), self.runtime, self.quarantine)
        result: Said = {}
        for key, answers in policy.answers(asked, Purse()).items():
            failed = next((answer.problem for answer in answers if answer.failed), None)
            if failed is not None:
                self.quarantine.add(key, DataError("the endpoint did not answer", where=f"key {key}", given=failed))
                continue
            result[key] = {
                "texts": [text_of(answer) for answer in answers],
                "num_tokens": [tokens_written(answer, how.max_new_tokens) for answer in answers],
                "problems": [answer.reason for answer in answers],
            }
        self.quarantine.check("what an endpoint answers")
        return result

    def logprobs(self, path: Path | str, said: Said) -> Said:
        """Take another policy's log-probabilities of what the first one said, and of the annotated responses."""
        policy = Policy.from_pretrained(path, self.passes, room=self.room, device=pick_device(self.runtime))
        result: Said = {}
        for batch in self._batches(policy, policy.encoder.context, "asking the reference (batches)"):
            written = [_continuations(said[group.key]) for group, _ in batch]
            result |= {batch[place][0].key: scores for place, scores in self._score(policy, batch, written).items()}
        return result

    def rewards(self, path: Path, said: Said, critiques: CritiqueSettings) -> Said:
        """Let a reward model criticise and score the answers."""
        judge = RewardModel.from_pretrained(path, self.passes, critiques, device=pick_device(self.runtime))
        rows = self._usable()
        groups = [with_responses(self.index.read(int(row)), said[self._key(row)]["texts"]) for row in rows]
        size = self.passes.groups_per_batch
        batches = [groups[start : start + size] for start in range(0, len(groups), size)]
        result: Said = {}
        for batch in track(batches, "scoring answers (batches)", enabled=self.runtime.progress):
            # a policy is measured by what each answer is worth alone, and not beside its own other answers
            found = judge.score_alone(batch, quarantine=self.quarantine)
            for group, verdicts in zip(batch, found, strict=True):
                if not verdicts:
                    continue
                result[group.key] = {
                    "reward": [verdict.reward for verdict in verdicts],
                    "critique": [verdict.critique for verdict in verdicts],
                }
        return result

    def _batches(self, policy: Policy, encode: Any, description: str) -> Any:
        rows = self._usable()
        batches = encoded_batches(
            self.index, rows, policy.encoder, encode, groups_per_batch=self.passes.groups_per_batch,
            quarantine=self.quarantine, num_workers=self.runtime.num_workers, preflight=self.runtime.preflight,
        )  # fmt: skip
        total = -(-len(rows) // self.passes.groups_per_batch)
        return track(batches, description, total, enabled=self.runtime.progress)

    def _score(
        self, policy: Policy, batch: Sequence[Encoded], written: Sequence[Sequence[Continuation]]
    ) -> dict[int, dict[str, list[float]]]:
        """Log-probabilities of the very tokens that were written, and of the annotated responses, by place.

        An answer that was cut has no end token, so none is counted.
        """
        responses = encode_usable({n: group for n, (group, _) in enumerate(batch)}, policy.encoder, self.quarantine)
        places = list(responses)
        answers = [with_continuations(batch[place][1], written[place]) for place in places]
        both = forward_groups(policy.model, [*answers, *responses.values()], token_budget=self.passes.token_budget)
        return {
            place: {
                "logprob": answered.logprob.tolist(),
                "response_logprob": annotated.logprob.tolist(),
                "response_tokens": annotated.num_tokens.tolist(),
            }
            for place, answered, annotated in zip(places, both, both[len(places) :], strict=False)
        }

    def _usable(self) -> np.ndarray:
        """The rows that no pass has left out so far."""
        return usable(self.index, self.rows, self.quarantine)

    def _key(self, row: Any) -> str:
        return self.index.entries[int(row)].key


def _continuations(said: Mapping[str, Any]) -> list[Continuation]:
    """One query's answers as tokens."""
    return [Continuation(ids, end) for ids, end in zip(said["ids"], said["ends"], strict=True)]
