"""420 damaged files: no crash, no hang, no exception but a DataError, and nothing silently wrong under a checksum."""

from __future__ import annotations

import hashlib
from collections import Counter
from collections.abc import Iterator, Sequence
from contextlib import closing

import numpy as np
import pytest
from stand_ins.damaged_files import KINDS, SEEDS, Damaged, corpus, originals

from mmrlhf.errors import DataError
from mmrlhf.media.decord_reader import has_decord
from mmrlhf.media.images import decode_image, image_size
from mmrlhf.media.isolation import ProcessDied, map_isolated
from mmrlhf.media.video import Backend, decode_video, probe_video

ALL = list(corpus())
# spread over formats, kinds and seeds
SAMPLE = [item for number, item in enumerate(ALL) if item.seed == (number // SEEDS) % SEEDS]
DIED = "the decoder died"


def pixels(item: Damaged, backend: Backend = "auto") -> str | None:
    """Digest of what a file shows, None if it is refused, or that its decoder died."""
    try:
        if item.is_video:
            probe_video(item.data, item.name)
            shown = decode_video(item.data, num_frames=6, backend=backend, where=item.name).frames
        else:
            image_size(item.data, where=item.name)
            shown = np.asarray(decode_image(item.data, where=item.name))
    except DataError as error:
        assert item.name in str(error.where)
        return DIED if "its decoder" in str(error.given) else None
    return hashlib.sha256(shown.tobytes()).hexdigest()


def outcomes(items: Sequence[Damaged], backend: Backend) -> Iterator[tuple[Damaged, str | None]]:
    """Decode them all: videos as ever, in the child that `video` keeps; images in one that would crash for us."""
    yield from ((item, pixels(item, backend)) for item in items if item.is_video)
    images = (item for item in items if not item.is_video)
    with closing(map_isolated(pixels, images, num_processes=1, timeout=60)) as found:
        for item, outcome in found:
            yield item, DIED if isinstance(outcome, ProcessDied) else outcome


def check(items: Sequence[Damaged], backend: Backend = "auto") -> Counter[tuple[str, str]]:
    """Count how many per format were refused, right, wrong, or ended their decoder."""
    sound = {fmt: pixels(Damaged(fmt, "sound", 0, data), backend) for fmt, data in originals().items()}
    assert not {None, DIED} & set(sound.values())
    counts: Counter[tuple[str, str]] = Counter()
    for item, outcome in outcomes(items, backend):
        said = {None: "refused", DIED: "died", sound[item.fmt]: "right"}
        verdict = said.get(outcome, "wrong")
        counts[item.fmt, verdict] += 1
        # every chunk of a PNG has a checksum, so what is still a PNG is refused or shown as it was
        assert verdict != "wrong" or not item.data.startswith(b"\x89PNG\r\n"), item.name
        assert verdict != "died" or backend == "decord", item.name
    return counts


def test_the_corpus_is_large_and_damaged() -> None:
    assert len(ALL) >= 400 and len(SAMPLE) == len(KINDS) * len(originals()) == 42
    same = [item.name for item in ALL if item.data == originals()[item.fmt]]
    assert len(same) < 25, "swapped equal blocks, zeroed zeros and the like"


def test_a_sample_of_damaged_files() -> None:
    counts = check(SAMPLE)
    assert sum(counts.values()) == len(SAMPLE) and sum(n for (_, said), n in counts.items() if said == "refused") > 15


@pytest.mark.slow
def test_all_damaged_files() -> None:
    """What is shown wrong is damage inside picture data that still parses, which only a checksum can tell."""
    counts = check(ALL)
    assert sum(counts.values()) == len(ALL)
    print({key: counts[key] for key in sorted(counts)})


@pytest.mark.slow
@pytest.mark.skipif(not has_decord(), reason="no decord")
def test_all_damaged_videos_with_decord() -> None:
    counts = check([item for item in ALL if item.is_video], backend="decord")
    print({key: counts[key] for key in sorted(counts)})
