"""What `benchmarks/gpu.py` found, as tables for docs/performance.md."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

# what is asked for on a GPU: of TRL's time at K = 4 and 7,000 visual tokens, and of the rate of a large product
ASKED_TIMES, ASKED_SHARE = 10.0, 0.45
COMPARED_WITH = "attention=sdpa"


def table(found: Mapping[str, Any]) -> str:
    """All that was found, as Markdown: the machine, what became of each part, steps, and the comparison with TRL."""
    results = {part["part"]: part["results"] for part in found["parts"]}
    machine = next(iter(results.get("machine", [])), {})
    sections = [_machine(found, machine), _parts(found["parts"]), _steps(results, machine), _compared(results)]
    return "\n\n".join(filter(None, sections)) + "\n"


def _machine(found: Mapping[str, Any], machine: Mapping[str, Any]) -> str:
    if not machine:
        return f"`--size {found['size']} --device {found['device']}`; what it ran on is not known."
    name = machine.get("device", "CPU")
    memory = f", {machine['memory_gib']:.0f} GiB" if "memory_gib" in machine else ""
    rate = machine["matmul_per_second"] / 1e12
    versions = f"torch {machine['torch']}, transformers {machine['transformers']}"
    return f"{name}{memory}; {versions}; a large product in bf16: {rate:.4g} T operations a second."


def _parts(parts: Sequence[Mapping[str, Any]]) -> str:
    rows = [[part["part"], part["status"], f"{part['seconds']:.0f}", _last_line(part["said"])] for part in parts]
    return _markdown(["part", "", "s", "last words"], rows)


def _steps(results: Mapping[str, Sequence[Mapping[str, Any]]], machine: Mapping[str, Any]) -> str:
    """A row for each step; log-probabilities are compared with those of one back end on the same weights."""
    rows = []
    for name, lines in results.items():
        for step in lines:
            if step.get("benchmark") != "device_step":
                continue
            rows.append(
                [
                    f"{step['shape']} {name}",
                    f"{step['responses']}",
                    f"{step['visual_tokens']:,}",
                    f"{step['row_tokens']:,}",
                    f"{step['first_step_seconds']:.2f}",
                    f"{step['seconds']:.3f}",
                    f"{step['row_tokens_per_second']:,.0f}",
                    _share(step, machine),
                    f"{step['peak_mib'] / 1024:.2f}",
                    f"{step['predicted_over_peak']:.2f}",
                    _difference(name, step, results.get(COMPARED_WITH, [])),
                ]
            )
    head = ["step", "K", "visual tokens", "row", "first step, s", "s", "tokens / s"]
    head += [
        f"of the product's rate (asked: {ASKED_SHARE})",
        "peak, GiB",
        "predicted / peak",
        "log-probability - sdpa's",
    ]
    return _markdown(head, rows) if rows else ""


def _share(step: Mapping[str, Any], machine: Mapping[str, Any]) -> str:
    return f"{step['products_per_second'] / machine['matmul_per_second']:.2f}" if machine else ""


def _difference(name: str, step: Mapping[str, Any], others: Sequence[Mapping[str, Any]]) -> str:
    """Largest difference of a response's log-probability from the same model's by the other back end."""
    if not name.startswith("attention=") or name == COMPARED_WITH or not others:
        return ""
    if step["visual"] != others[0]["visual"]:
        return ""
    return f"{max(abs(a - b) for a, b in zip(step['logprob'], others[0]['logprob'], strict=True)):.1e}"


def _compared(results: Mapping[str, Sequence[Mapping[str, Any]]]) -> str:
    rows, memory = [], ""
    for line in results.get("vs_trl", []):
        if line.get("benchmark") == "vs_trl":
            seconds = [f"{line[f'{way}_seconds']:.3f}" for way in ("ours", "ours_with_reference", "trl_matched", "trl")]
            ratios = [f"{line[f'{way}_over_ours']:.1f}x" for way in ("trl_matched", "trl")]
            rows.append([f"{line['responses']}", f"{line['visual_tokens']:,}", *seconds, *ratios])
        elif line.get("benchmark") == "vs_trl_memory":
            memory = (
                f"Peak memory: ours on all pairs of K = {line['responses']} {line['ours_peak_mib'] / 1024:.2f} GiB, "
                f"TRL on one pair {line['trl_one_pair_peak_mib'] / 1024:.2f} GiB."
            )
    head = ["K", "visual tokens", "ours, s", "reference counted", "TRL matched", "TRL defaults", "matched / ours"]
    head += [f"defaults / ours (asked: {ASKED_TIMES:.0f}x)"]
    return "\n\n".join(filter(None, [_markdown(head, rows) if rows else "", memory]))


def _last_line(said: str) -> str:
    line = said.strip().split("\n")[-1] if said.strip() else ""
    return line.replace("|", "\\|")[:160]


def _markdown(head: Iterable[str], rows: Iterable[Iterable[str]]) -> str:
    lines = [list(head), *map(list, rows)]
    return "\n".join(
        [
            "| " + " | ".join(lines[0]) + " |",
            "|" + "---|" * len(lines[0]),
            *("| " + " | ".join(r) + " |" for r in lines[1:]),
        ]
    )
