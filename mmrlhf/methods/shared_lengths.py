"""LD-DPO: preference training that knows how likely responses are up to the length of each other response.

Follows: LD-DPO (arXiv 2409.06411). Differs in: a query's responses are compared in all pairs, so a response has one
shared length for each other response; all come out of the one forward.
"""

from __future__ import annotations

from dataclasses import replace

import torch
from torch import Tensor
from typing_extensions import override

from mmrlhf.errors import ConfigError
from mmrlhf.losses.objective import PairInputs
from mmrlhf.methods.counts import Counts
from mmrlhf.methods.pairing import shared_column
from mmrlhf.methods.preference import PreferenceModule, Responses
from mmrlhf.tensors import PackedBatch, PairIndex


class LengthDesensitisedModule(PreferenceModule):
    """Trains a policy with LD-DPO.

    Args: as for `PreferenceModule`, with an `LDDPO` objective.
    """

    @override
    def count(self, batch: PackedBatch) -> Counts:
        if self._needs_table:
            _require_columns(batch)
        return super().count(batch)

    @override
    def _pair(self, batch: PackedBatch, responses: Responses, pairs: PairIndex) -> PairInputs:
        tokens = responses.outputs.num_tokens.long()
        shared = torch.minimum(tokens[pairs.chosen], tokens[pairs.rejected])
        own = responses.outputs.token_logprob.float()
        sides = ((pairs.chosen, pairs.rejected), (pairs.rejected, pairs.chosen))
        policy = [first_tokens(own, tokens, side, shared) for side, _ in sides]
        if responses.reference_token_logprob is not None:
            said = responses.reference_token_logprob.float()
            reference = [first_tokens(said, tokens, side, shared) for side, _ in sides]
        else:
            reference = [_tabled(batch, side, other) for side, other in sides]
        return replace(
            super()._pair(batch, responses, pairs),
            chosen_shared=policy[0],
            rejected_shared=policy[1],
            reference_chosen_shared=reference[0],
            reference_rejected_shared=reference[1],
        )


def first_tokens(token_logprob: Tensor, num_tokens: Tensor, response: Tensor, count: Tensor) -> Tensor:
    """Sum the first tokens of responses (P,).

    token_logprob: (N,), response after response; num_tokens (R,): of each; response, count (P,): whose, and how many.
    """
    begin = (num_tokens.cumsum(0) - num_tokens)[response]
    pair = torch.repeat_interleave(torch.arange(len(count), device=count.device), count)
    place = torch.arange(len(pair), device=count.device) - (count.cumsum(0) - count)[pair]
    return token_logprob.new_zeros(len(count)).index_add(0, pair, token_logprob[begin[pair] + place])


def _tabled(batch: PackedBatch, response: Tensor, other: Tensor) -> Tensor:
    """The table's log-probabilities (P,) of responses up to the length of the other one."""
    sizes = torch.bincount(batch.group_of_response)
    number = other - (sizes.cumsum(0) - sizes)[batch.group_of_response[other]]
    columns = torch.stack([batch.columns[shared_column(each)] for each in range(int(sizes.max()))])
    return columns[number, response]


def _require_columns(batch: PackedBatch) -> None:
    largest = int(torch.bincount(batch.group_of_response).max())
    if shared_column(largest - 1) in batch.columns:
        return
    raise ConfigError(
        "LDDPO needs the reference's log-probabilities up to the length of each other response, and the table lacks "
        f"those of {largest} responses",
        where="stage mmdpo, input of the stage `reference`",
        given=f"columns: {', '.join(sorted(batch.columns)) or 'none'}",
        expected=f"the columns {shared_column(0)} to {shared_column(largest - 1)}",
        fix="set the input back to `stage:reference`, or stages.reference.shared_lengths=true",
    )
