"""Continue every branch of many groups at once, computing and storing each prefix (and its media) once.

All branches of a group live in one row of the cache (`decoding_state`), so a prefix's keys and values are held once and
read once a step, however many branches continue it. Branches of a group that are read in turn are shared like the
prefix, each by those behind it; what is written behind one sees the branches up to it. Groups that are finished leave
the batch, and branches that are finished leave the step, in bulk. Groups of like length run together, as many as their
caches have room for (`cache_tokens`).

One policy for what is written, here and where single rows are continued (`decoding_rows`): plain greedy choice or plain
sampling at a temperature; the checkpoint's own generation_config is read for its end tokens and for nothing else
(repetition penalties, top-k, forced or suppressed tokens are not applied); placeholders of media are never written.

What is drawn for a branch depends on (seed, key, response hash, sample) alone, not on what runs beside it.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace

import numpy as np
import torch
from torch import Tensor

from mmrlhf.models.decoding_rows import Continuation, Writing, configured_ends, draw_seed, generate_rows, placeholders
from mmrlhf.models.decoding_state import NOBODY, Decoding, feed_newest, next_logits, prefill
from mmrlhf.models.forward import PackedModel, autocast
from mmrlhf.tensors import EncodedGroup


# Not inference_mode: while training, a sharded model keeps what it gathers here for its next steps.
@torch.no_grad()
def generate(
    model: PackedModel,
    groups: Sequence[EncodedGroup],
    *,
    max_new_tokens: int,
    end_tokens: Sequence[int],
    temperature: float = 0.0,
    num_samples: int = 1,
    seed: int = 0,
    cache_tokens: int | None = None,
) -> list[list[Continuation]]:
    """Continue each branch of each group `num_samples` times.

    Args:
        groups: encoded contexts (`Encoder.context`); every branch is continued.
        end_tokens: ids that end a continuation, beside those of the checkpoint's generation_config.
        temperature: 0 takes the most likely token.
        seed: of what is drawn at a temperature.
        cache_tokens: tokens whose keys and values are held at once, a single group apart; None: all groups at once.

    Returns:
        per group, its branches' continuations, branch by branch, the samples of a branch adjacent.
    """
    parts = [_apart(group) for group in groups]
    alone = [part for each in parts for part in each]
    found: list[list[Continuation]] = [[] for _ in alone]
    how = Writing(
        max_new_tokens, sorted({*end_tokens, *configured_ends(model)}), placeholders(model), temperature, seed
    )
    with _answering(model), autocast(model.settings, model.device):
        for places in _portions(alone, num_samples, max_new_tokens, cache_tokens):
            own = [alone[place] for place in places]
            if model.layout == "rows":
                written = iter(generate_rows(model, own, how, num_samples))
            else:
                state, logits = prefill(model, own, num_samples)
                draws = None if temperature <= 0 else _draws(own, num_samples, max_new_tokens, seed)
                written = iter(_decode(model, state, logits, how, draws))
            for place in places:
                found[place] = [next(written) for _ in range(len(alone[place].branches) * num_samples)]
    continued = iter(found)
    return [[each for _ in part for each in next(continued)] for part in parts]


def _apart(group: EncodedGroup) -> list[EncodedGroup]:
    """The group; or, where branches hold media, one for each, whose prefix is all that the branch reads but one token.

    Media are read with a prefix, not in steps beside other branches.
    """
    if not any(branch.media for branch in group.branches):
        return [group]
    found = []
    for branch in group.branches:
        ids = torch.cat([group.prefix_ids, branch.ids])
        positions = torch.cat([group.prefix_positions, branch.positions], dim=1)
        rest = replace(branch, ids=ids[-1:], positions=positions[:, -1:], labels=branch.labels[-1:], media={})
        shown = {"media": branch.media, "num_images": branch.num_images, "num_videos": branch.num_videos}
        before = {"prefix_ids": ids[:-1], "prefix_positions": positions[:, :-1]}
        found.append(replace(group, branches=(rest,), pairs=(), **before, **shown))
    return found


def cache_size(prefix: int, branches: Sequence[int], num_samples: int, max_new_tokens: int) -> int:
    """Tokens whose keys and values a group holds when all its branches have been written to their longest."""
    return prefix + num_samples * sum(length + max_new_tokens for length in branches)


def _portions(
    groups: Sequence[EncodedGroup], num_samples: int, max_new_tokens: int, cache_tokens: int | None
) -> list[list[int]]:
    """Places of groups that run together: the longest first, each row as long as its portion's first."""
    sizes = [
        cache_size(len(group.prefix_ids), [len(branch.ids) for branch in group.branches], num_samples, max_new_tokens)
        for group in groups
    ]
    portions: list[list[int]] = []
    for place in sorted(range(len(groups)), key=lambda place: -sizes[place]):
        fits = portions and (cache_tokens is None or (len(portions[-1]) + 1) * sizes[portions[-1][0]] <= cache_tokens)
        if fits:
            portions[-1].append(place)
        else:
            portions.append([place])
    return portions


def _draws(groups: Sequence[EncodedGroup], num_samples: int, max_new_tokens: int, seed: int) -> np.ndarray:
    """Uniform numbers in [0, 1) for every token of every continuation (N, max_new_tokens)."""
    rows = [
        np.random.Generator(np.random.Philox(key=draw_seed(seed, group.key, branch.response_hash, sample))).random(
            max_new_tokens
        )
        for group in groups
        for branch in group.branches
        for sample in range(num_samples)
    ]
    return np.stack(rows)


@contextmanager
def _answering(model: PackedModel) -> Iterator[None]:
    """Evaluation mode, and the former mode afterwards."""
    was_training = model.training
    if any(module.training for module in model.modules()):
        model.eval()
    try:
        yield
    finally:
        if was_training:
            model.train()


def _decode(
    model: PackedModel, state: Decoding, logits: Tensor, how: Writing, draws: np.ndarray | None
) -> list[Continuation]:
    """Write on from the logits (G, Q, V) of every branch's end."""
    ends, never = set(how.end_tokens), torch.tensor(how.never, device=logits.device, dtype=torch.int64)
    written: list[list[int]] = [[] for _ in range(int(state.number.max()) + 1)]
    ended_by: dict[int, int] = {}
    alive = state.number != NOBODY
    for step in range(how.max_new_tokens):
        drawn = None if draws is None else torch.from_numpy(draws[state.number.numpy(), step]).to(logits.device)
        state.token = _choose(logits.index_fill_(-1, never, float("-inf")), how.temperature, drawn)
        # the one wait for the device in a step
        chosen = state.token.cpu()
        num_ended = len(ended_by)
        for number, each in zip(state.number[alive].tolist(), chosen[alive].tolist(), strict=True):
            if each in ends:
                ended_by[number] = each
            else:
                written[number].append(each)
        if step + 1 == how.max_new_tokens or len(ended_by) == len(written):
            break
        if len(ended_by) > num_ended:
            alive &= ~torch.isin(chosen, torch.tensor(how.end_tokens))
            # Gathering the cache of other groups costs about as much as a step, so they leave in bulk.
            if int(alive.any(1).sum()) * int(alive.sum(1).max()) < 0.7 * alive.numel():
                state.keep(alive)
                alive = state.number != NOBODY
        logits = next_logits(model, feed_newest(model, state))
    return [Continuation(ids, ended_by.get(number)) for number, ids in enumerate(written)]


def _choose(logits: Tensor, temperature: float, drawn: Tensor | None) -> Tensor:
    """The next token (G, Q) by logits (G, Q, V); at a temperature the one in whose share of [0, 1) the number falls."""
    if drawn is None:
        return logits.argmax(-1)
    reached = (logits.double() / temperature).softmax(-1).cumsum(-1)
    # the last share ends at the sum itself, which rounding may leave below 1
    return torch.searchsorted(reached, (drawn.clamp(min=0) * reached[..., -1])[..., None], right=True)[..., 0]
