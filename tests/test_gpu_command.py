"""`make gpu`: parts of its own process each, what becomes of those that fail or hang, and all of it at toy size."""

from __future__ import annotations

import json
import os
import sys
import time
from pathlib import Path
from typing import Any

import pytest

from benchmarks import gpu
from benchmarks.gpu import Part, run_parts
from benchmarks.gpu_table import table
from mmrlhf.models.settings import ATTENTION


def python(code: str) -> list[str]:
    return [sys.executable, "-c", code]


def say(found: dict[str, int]) -> str:
    """Code that prints a JSON line."""
    return f"print({json.dumps(found)!r}, flush=True)"


def test_a_part_that_fails_or_hangs_is_recorded_and_the_rest_goes_on(tmp_path: Path) -> None:
    child = tmp_path / "child"
    hang = (
        "import subprocess, sys, time; print(chr(123) + '1: 2'); " + say({"before": 1}) + ";"
        "own = subprocess.Popen([sys.executable, '-c', 'import time; time.sleep(60)']);"
        f"open({str(child)!r}, 'w').write(str(own.pid)); time.sleep(60)"
    )
    parts = [
        Part("broken", python(say({"half": 2}) + "; raise SystemExit('no card')"), 30),
        Part("hangs", python(hang), 3),
        Part("works", python("print('words'); print('[1]'); " + say({"whole": 3})), 30),
    ]
    started = time.monotonic()
    broken, hangs, works = run_parts(parts, 60)
    assert time.monotonic() - started < 30
    assert (broken.status, broken.results) == ("failed", [{"half": 2}]) and broken.said.endswith("no card")
    assert (hangs.status, hangs.results) == ("too long", [{"before": 1}]) and hangs.seconds >= 3
    assert (works.status, works.results, works.said) == ("done", [{"whole": 3}], "[1]")
    for _ in range(100):  # what the part had started ends with it
        if not _runs(int(child.read_text())):
            break
        time.sleep(0.05)
    else:
        pytest.fail("the process that the part had started still runs")


def _runs(pid: int) -> bool:
    try:
        os.kill(pid, 0)
        return Path(f"/proc/{pid}/stat").read_text().split()[2] != "Z"
    except (OSError, IndexError):
        return False


def test_all_parts_end_in_the_time_of_the_whole(monkeypatch: pytest.MonkeyPatch) -> None:
    """A part gets its own limit or what is left; one that is not worth starting is not started."""
    monkeypatch.setattr(gpu, "WORTH_STARTING", 0.5)
    parts = [Part(str(number), python("import time; time.sleep(60)"), 1.5) for number in range(4)]
    started = time.monotonic()
    outcomes = list(run_parts(parts, 2.9))
    assert time.monotonic() - started < 6
    assert [outcome.status for outcome in outcomes] == ["too long", "too long", "no time left", "no time left"]


def test_the_parts_are_those_that_are_promised() -> None:
    parts = {part.name: part.command for part in gpu.parts(gpu.SIZES["published"], "cuda")}
    back_ends = {f"attention={name}" for name in ATTENTION if name != "auto"}
    assert set(parts) == {"machine", "tests", "lora", "qlora", "vs_trl"} | back_ends and len(back_ends) >= 2
    assert "tests/models/test_attention.py" in parts["tests"] and parts["tests"][1:5] == ["-m", "pytest", "-q", "-m"]
    for name, weights in (("lora", "bf16"), ("qlora", "nf4")):
        assert {"7b", weights, "7000", "cuda"} <= set(parts[name])
    assert {"0.5b", "7000", "4", "cuda"} <= set(parts["vs_trl"]) & set(parts["attention=sdpa"])
    assert sum(part.limit for part in gpu.parts(gpu.SIZES["published"], "cuda")) < 1.3 * 540


def test_the_table_compares_back_ends_and_says_what_was_asked() -> None:
    step: dict[str, Any] = {
        "benchmark": "device_step", "shape": "0.5b", "responses": 2, "visual": 7000, "visual_tokens": 8748,
        "row_tokens": 9000, "first_step_seconds": 30.0, "seconds": 0.5, "row_tokens_per_second": 18000.0,
        "products_per_second": 250e12, "peak_mib": 2048.0, "predicted_over_peak": 0.97, "logprob": [-1.0, -2.0],
    }  # fmt: skip
    other = {**step, "logprob": [-1.25, -2.0]}
    ways = {"ours": 1, "ours_with_reference": 2, "trl": 12, "trl_matched": 9}
    times = {f"{way}_seconds": seconds for way, seconds in ways.items()}
    compared = {"benchmark": "vs_trl", "responses": 4, "visual_tokens": 7000, **times}
    parts = [
        ("machine", [{"benchmark": "machine", "torch": "2", "transformers": "5", "device": "C", "memory_gib": 79.6,
                      "matmul_per_second": 500e12}]),
        ("attention=sdpa", [step]),
        ("attention=flex", [other]),
        ("vs_trl", [{**compared, "trl_matched_over_ours": 9.0, "trl_over_ours": 12.0}]),
    ]  # fmt: skip
    rows = [{"part": name, "status": "done", "seconds": 9.0, "results": lines, "said": "a|b"} for name, lines in parts]
    text = table({"size": "published", "device": "cuda", "parts": rows})
    assert "C, 80 GiB; torch 2, transformers 5; a large product in bf16: 500 T operations a second." in text
    assert "| 0.5b attention=flex | 2 | 8,748 | 9,000 | 30.00 | 0.500 | 18,000 | 0.50 | 2.00 | 0.97 | 2.5e-01 |" in text
    assert "| 4 | 7,000 | 1.000 | 2.000 | 9.000 | 12.000 | 9.0x | 12.0x |" in text
    assert "asked: 0.45" in text and "asked: 10x" in text and "a\\|b" in text


def test_without_a_card_it_says_so(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("torch.cuda.is_available", lambda: False)
    with pytest.raises(SystemExit):
        gpu.main([])
    assert "no NVIDIA GPU" in capsys.readouterr().err


@pytest.mark.slow
@pytest.mark.timeout(600)
def test_all_parts_at_toy_size(tmp_path: Path) -> None:
    """On a CPU, where flex cannot train: that part fails by name, and what follows is there."""
    code = gpu.main(["--size", "tiny", "--device", "cpu", "--seconds", "400", "--out", str(tmp_path)])
    found = json.loads((tmp_path / "gpu.json").read_text())
    status = {part["part"]: part["status"] for part in found["parts"]}
    steps = {part["part"]: part["results"][0] for part in found["parts"] if part["results"]}
    assert code == 1 and status.pop("attention=flex") == "failed"
    with_trl = status.pop("vs_trl")
    assert set(status.values()) == {"done"} and {"machine", "tests", "lora", "qlora", "attention=sdpa"} <= set(status)
    for name, weights in (("lora", "bf16"), ("qlora", "nf4"), ("attention=sdpa", "float32")):
        assert steps[name]["weights"] == weights and steps[name]["seconds"] > 0 and steps[name]["products"] > 1e6
    assert 0 < steps["qlora"]["peak_mib"] < 1000
    text = (tmp_path / "gpu.md").read_text()
    assert "tiny qlora" in text and "FlexAttention" not in text.split("\n\n")[0]
    assert with_trl == "failed" or "| 2 | 1,176 |" in text
