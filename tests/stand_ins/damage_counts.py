"""What becomes of damaged files, and of packed sets that are damaged afterwards: counted, and written as tables."""

from __future__ import annotations

import hashlib
import random
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from contextlib import closing
from pathlib import Path

import numpy as np
from stand_ins.damaged_files import KINDS, Damaged, corpus, originals
from stand_ins.sample_groups import make_group

from mmrlhf.errors import DataError
from mmrlhf.media.images import decode_image, image_size
from mmrlhf.media.isolation import ProcessDied, map_isolated
from mmrlhf.media.video import Backend, decode_video, probe_video
from mmrlhf.shards.index import Index
from mmrlhf.shards.writer import write_shards
from mmrlhf.types import Media, PreferenceGroup

VERDICTS, NOTICED = ("refused", "right", "wrong", "died"), ("start", "read", "same")
FILES = ("shard-00000.tar", "manifest.json", "index.parquet")
TRIES = 12
BEGIN, END = "<!-- damage tables: begin -->", "<!-- damage tables: end -->"
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


SUFFIX = {"jpeg": "jpg"}


def groups() -> list[PreferenceGroup]:
    """One group per format of media, and one with two pictures."""
    files = {fmt: (SUFFIX.get(fmt, fmt), data) for fmt, data in originals().items()}
    made = []
    for fmt, (suffix, data) in files.items():
        video = fmt in ("mp4", "mkv")
        item = Media("video", (suffix,), (data,)) if video else Media("image", (f"0.{suffix}",), (data,))
        made.append(make_group(fmt, media=(item,)))
    return [*made, make_group("two", num_images=2)]


def write_packed(folder: Path) -> Path:
    """All groups in two shards."""
    write_shards(groups(), folder, max_groups_per_shard=4)
    return folder


def outcome(folder: Path, sound: Index, expected: list[PreferenceGroup]) -> str:
    """Load a set and read it in full; "start", "read" or "same" says where damage was noticed."""
    try:
        index = Index.load(folder)
        assert list(index.entries) == list(sound.entries)
    except DataError as error:
        assert any(name in str(error) for name in ("shard-0000", "index.parquet", "manifest", str(folder)))
        return "start"
    noticed = "same"
    for row, group in enumerate(expected):
        try:
            assert index.read(row) == group
        except DataError as error:
            assert "shard-0000" in str(error) and group.key in str(error)
            noticed = "read"
    return noticed


def damage_packed(packed: Path, work: Path, kind: str, name: str) -> Counter[str]:
    """Damage one file of a packed set in one way, `TRIES` times, in a copy; count where it is noticed."""
    index = Index.load(packed)
    expected = [index.read(row) for row in range(len(index))]
    for path in packed.iterdir():
        (work / path.name).write_bytes(path.read_bytes())
    sound, seen = (packed / name).read_bytes(), Counter[str]()
    for seed in range(TRIES):
        damaged = KINDS[kind](bytearray(sound), random.Random(f"{name} {kind} {seed}"))
        (work / name).write_bytes(damaged)
        seen[outcome(work, index, expected)] += 1
    return seen


def file_rows(counts: Mapping[tuple[str, str], int], label: str) -> list[str]:
    """A line of the table for each format, with how many files had which verdict."""
    formats = dict.fromkeys(fmt for fmt, _ in counts)
    return [_row(f"{fmt}{label}", [counts.get((fmt, verdict), 0) for verdict in VERDICTS]) for fmt in formats]


def packed_rows(work: Path) -> list[str]:
    """A line of the table for each file of a packed set, over all kinds of damage."""
    packed, lines = write_packed(work / "packed"), []
    for name in FILES:
        seen: Counter[str] = Counter()
        for kind in KINDS:
            place = work / f"{name} {kind}"
            place.mkdir()
            seen += damage_packed(packed, place, kind, name)
        lines.append(_row(f"`{name}`", [seen[where] for where in NOTICED]))
    return lines


def damage_tables(work: Path, *, decord: bool) -> list[str]:
    """The lines of docs/data.md between `BEGIN` and `END`; without decord, its lines are missing."""
    files = list(corpus())
    lines = ["| file | refused | right | wrong | decoder died |", "|---|---|---|---|---|", *file_rows(check(files), "")]
    if decord:
        lines += file_rows(check([item for item in files if item.is_video], backend="decord"), ", decord")
    lines += [
        "",
        "| file of a packed set | noticed when it is opened | when the record is read | the very same records |",
    ]
    return [*lines, "|---|---|---|---|", *packed_rows(work)]


def between_marks(text: str) -> list[str]:
    """The lines of a page between the marks."""
    return text[text.index(BEGIN) + len(BEGIN) : text.index(END)].strip("\n").split("\n")


def _row(name: str, numbers: Sequence[int]) -> str:
    return "| " + " | ".join([name, *map(str, numbers)]) + " |"
