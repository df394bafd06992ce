"""A packed row holds every group's tokens once and says where each label is predicted."""

from __future__ import annotations

from dataclasses import fields, replace
from random import Random

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from mmrlhf.tensors import Branch, EncodedGroup
from mmrlhf.tokens.packing import pack_groups, select_responses


def encoded(key: str, prefix: int, branches: list[list[bool]], start: int = 0, weight: float = 1.0) -> EncodedGroup:
    """A group with distinct token ids; `branches` are label masks."""
    counter = start
    ids = torch.arange(counter, counter + prefix)
    counter += prefix
    made = []
    for labels in branches:
        made.append(
            Branch(
                torch.arange(counter, counter + len(labels)),
                torch.arange(prefix, prefix + len(labels))[None],
                torch.tensor(labels, dtype=torch.bool),
                f"{key}-{len(made)}",
            )
        )
        counter += len(labels)
    pairs = tuple((i, j) for i in range(len(made)) for j in range(i + 1, len(made)))
    columns = {"rank": torch.arange(len(made)).float()}
    return EncodedGroup(key, ids, torch.arange(prefix)[None], tuple(made), {}, 0, 0, pairs, columns, weight)


group_shapes = st.lists(
    st.tuples(st.integers(1, 5), st.lists(st.lists(st.booleans(), min_size=1, max_size=5), min_size=1, max_size=4)),
    min_size=1,
    max_size=4,
)


@given(group_shapes)
def test_layout_laws(shapes: list[tuple[int, list[list[bool]]]]) -> None:
    """Every token once and in order; each label's predictor is the token before it in its own sequence."""
    groups, start = [], 0
    for number, (prefix, branches) in enumerate(shapes):
        groups.append(encoded(f"g{number}", prefix, branches, start))
        start += groups[-1].num_tokens
    batch = pack_groups(groups)
    assert batch.input_ids.tolist() == list(range(start))
    response = 0
    labels = iter(zip(batch.label_ids.tolist(), batch.predict_at.tolist(), batch.label_response.tolist(), strict=True))
    for number, group in enumerate(groups):
        for branch in group.branches:
            sequence = torch.cat([group.prefix_ids, branch.ids])
            for offset in branch.labels.nonzero()[:, 0].tolist():
                place = len(group.prefix_ids) + offset
                assert next(labels) == (sequence[place].item(), sequence[place - 1].item(), response)
            assert batch.last_token[response] == branch.ids[-1] and batch.group_of_response[response] == number
            response += 1
    assert next(labels, None) is None and batch.num_responses == response
    assert len(batch.pairs) == sum(len(group.pairs) for group in groups)
    assert all(batch.group_of_response[a] == batch.group_of_response[b] for a, b in batch.pairs)


def test_columns_weights_and_keys_follow_the_responses() -> None:
    """Per-response and per-group values keep their order."""
    batch = pack_groups([encoded("a", 2, [[True], [True, False]]), encoded("b", 1, [[True]], weight=0.0)])
    assert batch.columns["rank"].tolist() == [0, 1, 0]
    assert batch.group_weight.tolist() == [1, 0] and batch.keys == ("a", "b")
    assert batch.response_hashes == ("a-0", "a-1", "b-0")


def test_unlike_columns_are_refused() -> None:
    """A row in which only some responses have a reward would silently pair the wrong ones."""
    plain, scored = encoded("a", 1, [[True]]), encoded("b", 1, [[True]])
    scored.columns["reward"] = torch.zeros(1)  # type: ignore[index]
    with pytest.raises(ValueError, match="same columns"):
        pack_groups([plain, scored])


def test_nothing_to_pack() -> None:
    """An empty row is a mistake of ours, not a batch."""
    with pytest.raises(ValueError, match="at least one"):
        pack_groups([])


@given(group_shapes, st.randoms())
def test_selected_responses_are_packed_as_if_there_were_no_others(shapes: list, random: Random) -> None:
    groups, start, keep = [], 0, []
    for number, (prefix, branches) in enumerate(shapes):
        groups.append(encoded(f"g{number}", prefix, branches, start))
        start += groups[-1].num_tokens
        own = [random.random() < 0.5 for _ in branches]
        own[random.randrange(len(own))] = True
        keep.append(own)
    fewer = []
    for group, own in zip(groups, keep, strict=True):
        kept = [i for i, wanted in enumerate(own) if wanted]
        pairs = tuple((kept.index(i), kept.index(j)) for i, j in group.pairs if i in kept and j in kept)
        branches, columns = tuple(group.branches[i] for i in kept), {"rank": group.columns["rank"][kept]}
        fewer.append(replace(group, branches=branches, pairs=pairs, columns=columns))
    found = select_responses(pack_groups(groups), torch.tensor([one for own in keep for one in own]))
    expected = pack_groups(fewer)
    for item in fields(found):
        one, other = getattr(found, item.name), getattr(expected, item.name)
        if isinstance(one, torch.Tensor):
            assert torch.equal(one, other), item.name
        elif item.name == "columns":
            assert torch.equal(one["rank"], other["rank"])
        else:
            assert one == other, item.name
