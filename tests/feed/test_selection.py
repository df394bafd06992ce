"""Filters: what passes is exactly what the records say, everything left out is counted, and sides never change."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st
from stand_ins.sample_groups import make_group

from mmrlhf.errors import ConfigError, DataError
from mmrlhf.feed.selection import Queries, Selection, select
from mmrlhf.shards.index import Index
from mmrlhf.shards.writer import write_shards
from mmrlhf.types import Media, PreferenceGroup, Response

CATEGORIES = ("long", "short", "mcq")


def draw(number: int) -> PreferenceGroup:
    """Query `number`: its category, images, responses and ranks go round at different speeds."""
    ranks = [1 + (place * (1 + number % 3)) // 2 for place in range(2 + number % 4)]
    responses = tuple(Response(f"{'word ' * (number % 7)}{place}", rank=rank) for place, rank in enumerate(ranks))
    group = make_group(f"key-{number}", num_images=number % 3, category=CATEGORIES[number % len(CATEGORIES)])
    frames = Media("frames", ("f000.jpg",), group.media[0].data) if number % 5 == 1 and group.media else None
    media = (frames,) if frames else group.media
    return PreferenceGroup(group.key, group.prompt.question, responses, media=media, category=group.category)


GROUPS = [draw(number) for number in range(60)]


@pytest.fixture(scope="session")
def index(tmp_path_factory: pytest.TempPathFactory) -> Index:
    folder = tmp_path_factory.mktemp("sixty")
    write_shards(GROUPS, folder, max_groups_per_shard=16)
    return Index.load(folder)


def modality(group: PreferenceGroup) -> str:
    if any(media.kind != "image" for media in group.media):
        return "video"
    return ("text", "image")[len(group.media)] if len(group.media) < 2 else "images"


def inside(value: float, limits) -> bool:
    low, high = limits
    return (low is None or value >= low) and (high is None or value <= high)


def passes(group: PreferenceGroup, selection: Selection) -> bool:
    """The same question, asked of the record itself."""
    ranks = [response.rank or 0 for response in group.responses]
    chars = group.prompt.num_chars + sum(len(response.text) for response in group.responses)
    return (
        (not selection.categories or group.category in selection.categories)
        and group.category not in selection.without_categories
        and (not selection.modalities or modality(group) in selection.modalities)
        and inside(len(group.responses), selection.responses)
        and inside(len(group.ranked_pairs()), selection.pairs)
        and inside(max(ranks) - min(ranks), selection.rank_range)
        and inside(sum(media.kind == "image" for media in group.media), selection.images)
        and inside(chars, selection.text_chars)
    )


def ranges(largest: int):
    ends = st.tuples(st.none() | st.integers(0, largest), st.none() | st.integers(0, largest))
    return ends.map(lambda pair: tuple(sorted(pair)) if None not in pair else pair)


SELECTIONS = st.builds(
    Selection,
    categories=st.sets(st.sampled_from(CATEGORIES)).map(sorted),
    without_categories=st.sets(st.sampled_from(CATEGORIES), max_size=1).map(sorted),
    modalities=st.sets(st.sampled_from(["text", "image", "images", "video"])).map(sorted),
    responses=ranges(6),
    pairs=ranges(10),
    rank_range=ranges(5),
    images=ranges(2),
    text_chars=ranges(250),
)


@given(selection=SELECTIONS, holdout=st.floats(0.1, 0.9), limit=st.none() | st.integers(1, 40))
def test_filters_say_what_the_records_say(index: Index, selection: Selection, holdout: float, limit: int | None):
    """Every query is either selected or counted once, and no filter moves one to the other side of the split."""
    for side in ("train", "heldout"):
        wanted = [row for row in index.split(side, holdout).tolist() if passes(GROUPS[row], selection)]
        if not wanted:
            with pytest.raises(DataError, match="filters leave no query"):
                select(index, side, holdout=holdout, limit=limit, selection=selection)
            continue
        found = select(index, side, holdout=holdout, limit=limit, selection=selection)
        assert len(found.rows) + sum(found.excluded.values()) == len(index)
        assert 0 not in found.excluded.values()
        assert set(found.rows.tolist()) <= set(wanted) and len(found.rows) == min(len(wanted), limit or 60)


def test_each_query_is_counted_under_the_first_filter_that_it_fails(index: Index):
    """20 of 60 are long; of these, those with 0 images are rows 0, 3, 6 ... with 3 | row: all 20."""
    selection = Selection(categories=["long"], images=(1, None))
    with pytest.raises(DataError, match="categories: 40 left out, images: 20 left out"):
        select(index, "all", holdout=0.0, selection=selection)


def test_no_filter_is_the_split(index: Index):
    found = select(index, "train", holdout=0.3)
    assert found.rows.tolist() == index.split("train", 0.3).tolist()
    assert found.excluded == {"other side of the split": 60 - len(found.rows)}


@pytest.mark.parametrize(
    "settings", [{"modalities": ["sound"]}, {"responses": (3, 2)}, {"pairs": (1,)}, {"images": (None, 1, 2)}]
)
def test_impossible_filters_are_refused(settings):
    with pytest.raises(ConfigError):
        Selection(**settings)


def test_a_category_that_nobody_has_is_a_typo(index: Index):
    with pytest.raises(ConfigError, match="did you mean long"):
        select(index, "train", holdout=0.1, selection=Selection(categories=["lonk"]))


def test_queries_are_the_two_sides_limited_alike(index: Index) -> None:
    """What a stage works on is what `select` says of each side; held out first."""
    queries = Queries(0.4, limit=2, val_limit=1)
    sides = [select(index, "heldout", holdout=0.4, limit=1).rows, select(index, "train", holdout=0.4, limit=2).rows]
    assert queries.heldout(index).rows.tolist() == sides[0].tolist()
    assert queries.train(index).rows.tolist() == sides[1].tolist()
    assert queries.rows(index).tolist() == [*sides[0], *sides[1]]
