"""One training step per query, ours and TRL's DPOTrainer side by side: same weights, same records, same run.

    pip install -e ".[bench]"
    python -m benchmarks.vs_trl                       # about ten minutes on two cores
    python -m benchmarks.vs_trl --shape tiny          # to try it out
    python -m benchmarks.vs_trl --family qwen2_5_vl --responses 3 5     # or internvl
    python -m benchmarks.vs_trl --shape mini --responses 3 5 --decompose   # where the ratio comes from
    python -m benchmarks.vs_trl --shape 0.5b --device cuda --visual 7000 --responses 4

A step goes from the record to the updated weights: processor, forward, reference, backward, AdamW. TRL's reference is
always a second forward; ours is a table that was made before (`ours`) or a second forward (`ours_with_reference`).
TRL runs with its defaults (`trl`: everything trains, layers are recomputed in backward) and with our settings
(`trl_matched`: frozen tower, nothing recomputed). Every way takes a step to warm up; then steps of the ways alternate.
Ratios are medians over rounds, of wall time and of the process's CPU time. Before anything is timed the two sides'
log-probabilities are compared label by label: what TRL scores beyond our labels (on Qwen the line break behind the end
token) is counted and is no difference. Peak memory is taken in fresh processes,
each with one side alone: ours for all pairs of the largest K, TRL's for a single pair.

With `--decompose` three ways more take turns: TRL with our settings that scores label positions only, as it does on a
GPU (`trl_labels`); our own code pair by pair (`pairs`: chosen and rejected of each pair as padded rows, pictures and
prompt with each); and our own code with every response once, in a row of its own (`rows`). All three count the
reference. The ratio of TRL's defaults to ours is then a product: what trains and what is recomputed (`settings`),
positions without a label (`head`), everything else about the other code (`code`), responses read once and not once for
each pair (`responses`), prompt and pictures read once and not once for each response (`prefix`), and the reference from
a table (`reference`).
"""

from __future__ import annotations

import argparse
import json
import tempfile
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from functools import partial
from itertools import zip_longest
from pathlib import Path
from statistics import median
from typing import Any

import torch

from benchmarks.measure import Timing, in_fresh_process, in_turn, median_ratio, peak_memory, report
from benchmarks.ours import OurStep
from benchmarks.theirs import Labels, TheirStep
from benchmarks.workload import SHAPES, VISUALS, build_family, make_query, single_pairs
from mmrlhf.models.settings import ModelSettings
from mmrlhf.types import PreferenceGroup

FAMILIES = ("llava_onevision", "qwen2_5_vl", "internvl")


def settings_for(options: argparse.Namespace) -> ModelSettings:
    """The frozen tower and everything else in full, on both sides."""
    precision = "bf16" if options.device == "cuda" else "float32"
    return ModelSettings(precision=precision, gradient_checkpointing=options.checkpointing, max_tokens=32768)


class Sides:
    """Ours and theirs on the same weights, twice of theirs: with TRL's defaults, and with our settings."""

    def __init__(self, folder: str, options: argparse.Namespace) -> None:
        self.options, settings = options, settings_for(options)
        query = self.query(min(options.responses))
        self.ours = OurStep(folder, settings, with_reference=True, device=options.device)
        self.trl = TheirStep(folder, settings, query, matched=False, device=options.device)
        self.matched = TheirStep(folder, settings, query, matched=True, device=options.device)
        self.rows: OurStep | None = None
        if options.decompose:
            rows = replace(settings, layout="rows")
            self.rows = OurStep(folder, rows, with_reference=True, device=options.device)
        self.difference = compare(self.ours, self.matched, query)
        if options.warm_up:
            for way in self.ways(query).values():
                way()

    def query(self, num_responses: int) -> PreferenceGroup:
        """The query with K responses."""
        return make_query(num_responses, self.options.visual, shape=SHAPES[self.options.shape])

    def ways(self, query: PreferenceGroup) -> dict[str, Callable[[], None]]:
        """One optimizer step on all pairs of a query, every way."""
        return {
            "ours": partial(self.ours.train, query),
            "ours_with_reference": partial(self.ours.train, query, count_reference=True),
            "trl": partial(self.trl.train, query),
            "trl_matched": partial(self.matched.train, query),
        } | self._ways_between(query)

    def _ways_between(self, query: PreferenceGroup) -> dict[str, Callable[[], None]]:
        """Ways that differ from their neighbours in one thing, if the ratio is to be taken apart."""
        if self.rows is None:
            return {}
        return {
            "trl_labels": partial(self.matched.train, query, labels_only=True),
            "pairs": partial(self.rows.train, *single_pairs(query), count_reference=True),
            "rows": partial(self.rows.train, query, count_reference=True),
        }

    def time(self, num_responses: int, rounds: int) -> None:
        """Print one JSON line with times and ratios for one K."""
        query = self.query(num_responses)
        timings = in_turn(self.ways(query), rounds, warm_up=False)
        report(
            benchmark="vs_trl",
            family=self.options.family,
            shape=self.options.shape,
            device=self.options.device,
            threads=torch.get_num_threads(),
            visual_tokens=self.options.visual,
            responses=num_responses,
            pairs=len(query.ranked_pairs()),
            rounds=rounds,
            warm_up=self.options.warm_up,
            **{f"{name}_seconds": median(timing.wall) for name, timing in timings.items()},
            **{f"{name}_cpu_seconds": median(timing.cpu) for name, timing in timings.items()},
            **ratios(timings),
            **(decomposition(timings) if self.rows is not None else {}),
            **self.difference,
        )


def ratios(timings: Mapping[str, Timing]) -> dict[str, float]:
    """How many times longer TRL takes, with its defaults and matched, wall and CPU, reference cached and counted."""
    found = {}
    for theirs in ("trl", "trl_matched"):
        for ours in ("ours", "ours_with_reference"):
            slow, fast = timings[theirs], timings[ours]
            found[f"{theirs}_over_{ours}"] = median_ratio(slow.wall, fast.wall)
            found[f"{theirs}_over_{ours}_cpu"] = median_ratio(slow.cpu, fast.cpu)
    return found


# from TRL's defaults to ours: what changes between one way and the next
STEPS = {
    "settings": ("trl", "trl_matched"),
    "head": ("trl_matched", "trl_labels"),
    "code": ("trl_labels", "pairs"),
    "responses": ("pairs", "rows"),
    "prefix": ("rows", "ours_with_reference"),
    "reference": ("ours_with_reference", "ours"),
}


def decomposition(timings: Mapping[str, Timing]) -> dict[str, float]:
    """Factors whose product is how many times the CPU time of ours TRL's defaults take, in one round."""
    return {
        f"factor_{name}": median_ratio(timings[slow].cpu, timings[fast].cpu) for name, (slow, fast) in STEPS.items()
    }


def compare(ours: OurStep, theirs: TheirStep, query: PreferenceGroup) -> dict[str, float]:
    """Largest difference of the log-probabilities of one label, and how many labels of a response only TRL scores.

    Raises:
        RuntimeError: the labels are not the same, up to what comes behind ours.
    """
    own = own_labels(ours, query)
    differences, beyond = [0.0], [0]
    for pair, found in zip(query.ranked_pairs(), theirs.label_logprobs(query), strict=True):
        for number, other in zip(pair, found, strict=True):
            mine = own[number]
            if [token for token, _ in other[: len(mine)]] != [token for token, _ in mine]:
                raise RuntimeError(f"response {number}: our labels {mine} are not the first of TRL's {other}")
            differences += [abs(a - b) for (_, a), (_, b) in zip(mine, other, strict=False)]
            beyond.append(len(other) - len(mine))
    return {"largest_label_difference": max(differences), "labels_only_trl_scores": max(beyond)}


def own_labels(ours: OurStep, query: PreferenceGroup) -> list[Labels]:
    """Our labels of every response with their log-probabilities, before any step."""
    batch = ours.prepare(query)
    number = len(batch.label_ids)
    # as if every label were a response of its own
    alone = replace(batch, label_response=torch.arange(number), last_token=batch.last_token[:1].expand(number))
    with torch.no_grad():
        logprobs = ours.model(alone.to(ours.device)).logprob.tolist()
    found: list[Labels] = [[] for _ in range(batch.num_responses)]
    for response, token, value in zip(batch.label_response.tolist(), batch.label_ids.tolist(), logprobs, strict=True):
        found[response].append((token, value))
    return found


def memory_point(point: dict[str, Any]) -> None:
    """Print the peak of one side's step, in this process."""
    options = argparse.Namespace(**point)
    query = make_query(options.num_responses, options.visual, shape=SHAPES[options.shape])
    if options.side == "ours":
        ours = OurStep(options.folder, settings_for(options), device=options.device)
        peak = peak_memory(partial(ours.train, query))
    else:
        matched = options.side == "trl_matched"
        theirs = TheirStep(options.folder, settings_for(options), query, matched=matched, device=options.device)
        peak = peak_memory(partial(theirs.train, query))
    report(**peak)


def compare_memory(folder: str, options: argparse.Namespace) -> None:
    """Print one JSON line: our peak for all pairs of the largest K, TRL's for one pair."""
    most = max(options.responses)
    point = {name: getattr(options, name) for name in ("shape", "device", "visual", "checkpointing")} | {
        "folder": folder
    }
    peaks = {
        side: in_fresh_process("benchmarks.vs_trl", point | {"side": side, "num_responses": count})["peak_mib"]
        for side, count in {"ours": most, "trl": 2, "trl_matched": 2}.items()
    }
    report(
        benchmark="vs_trl_memory",
        family=options.family,
        shape=options.shape,
        device=options.device,
        visual_tokens=options.visual,
        responses=most,
        ours_peak_mib=peaks["ours"],
        trl_one_pair_peak_mib=peaks["trl"],
        trl_matched_one_pair_peak_mib=peaks["trl_matched"],
        ours_over_trl=peaks["ours"] / peaks["trl"],
        ours_over_trl_matched=peaks["ours"] / peaks["trl_matched"],
    )


def main(arguments: Sequence[str] | None = None) -> None:
    """Print a JSON line for each K and one for memory."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--family", choices=FAMILIES, default="llava_onevision")
    parser.add_argument("--shape", choices=SHAPES, default="small")
    parser.add_argument("--device", choices=("cpu", "cuda"), default="cpu")
    parser.add_argument("--visual", type=int, choices=[tokens for tokens in VISUALS if tokens != 576], default=1176)
    parser.add_argument("--responses", type=int, nargs="+", default=[2, 4])
    parser.add_argument("--rounds", type=int, nargs="+", default=[3, 1], help="one number for each K; the last repeats")
    parser.add_argument("--checkpointing", action="store_true", help="gradient checkpointing on both sides")
    parser.add_argument("--decompose", action="store_true", help="three ways more, which take the ratio apart")
    parser.add_argument(
        "--no-warm-up", dest="warm_up", action="store_false", help="save a step of each way where steps are long"
    )
    parser.add_argument("--no-memory", dest="memory", action="store_false", help="leave the fresh processes out")
    parser.add_argument("--point", type=json.loads, help=argparse.SUPPRESS)
    options = parser.parse_args(arguments)
    if options.point:
        memory_point(options.point)
        return
    with tempfile.TemporaryDirectory() as folder:
        build_family(options.family, SHAPES[options.shape], Path(folder))
        if options.memory:
            compare_memory(folder, options)
        sides = Sides(folder, options)
        for num_responses, rounds in zip_longest(options.responses, options.rounds, fillvalue=options.rounds[-1]):
            sides.time(num_responses, rounds)


if __name__ == "__main__":
    main()
