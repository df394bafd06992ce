"""The W&B dashboard: described without network, refused with a sentence where it cannot be made."""

from __future__ import annotations

import json

import pytest

from mmrlhf.reporting import dashboard


def _walk(value: object) -> list[str]:
    if isinstance(value, dict):
        return [text for item in value.values() for text in _walk(item)]
    if isinstance(value, list):
        return [text for item in value for text in _walk(item)]
    return [str(value)]


@pytest.mark.filterwarnings("ignore::DeprecationWarning")  # wandb-workspaces uses pydantic's old names
def test_the_dashboard_has_the_panels_that_matter() -> None:
    """The spec that would be sent names settings as config columns, the report's numbers and the training curves."""
    pytest.importorskip("wandb_workspaces")
    spec = json.loads(json.dumps(dashboard.build_workspace("project", "team")._spec, default=str))
    words = _walk(spec)
    assert any("method.value.w" in word for word in words) and any("method.value.k" in word for word in words)
    for name, _ in dashboard.RESULTS:
        assert any(name in word for word in words), name
    for name in ("train/loss", "val/accuracy", "train/beta", "train/beta_min", "train/kl_estimate"):
        assert name in words, name
    for name in ("throughput/groups_per_second", "throughput/useful_token_share", "heldout/quality", "Beta and margin"):
        assert name in words, name
    assert {name for _, name in dashboard.HISTOGRAMS} <= set(words)
    assert all(any(table in word for word in words) for table in dashboard.TABLES)


def test_without_the_package_a_sentence(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.setattr(dashboard, "find_spec", lambda name: None)
    with pytest.raises(SystemExit) as stop:
        dashboard.main([])
    said = capsys.readouterr().err
    assert stop.value.code == 2 and "wandb-workspaces" in said and "[sweeps]" in said


def test_offline_a_sentence(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.setattr(dashboard, "find_spec", lambda name: object())
    monkeypatch.setenv("WANDB_MODE", "offline")
    with pytest.raises(SystemExit) as stop:
        dashboard.main(["--project", "p"])
    said = capsys.readouterr().err
    assert stop.value.code == 2 and "wandb login" in said and "sweep.html" in said
