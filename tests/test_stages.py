"""Where an export's time goes: stages that lie in each other count for themselves."""

from __future__ import annotations

import pytest

from ingot.exporters import stages
from ingot.exporters.stages import Stages


def test_inner_stages_do_not_count_for_outer_ones(monkeypatch: pytest.MonkeyPatch) -> None:
    clock = iter([0.0, 1.0, 3.0, 7.0, 8.0, 10.0])  # began, outer in, inner in, inner out, outer out, told
    monkeypatch.setattr(stages.time, "perf_counter", lambda: next(clock))
    counted = Stages()
    with counted("graphs"), counted("checks"):
        pass
    assert counted.seconds == {"graphs": 3.0, "checks": 4.0}
    assert str(counted) == "took 10 s: graphs 3, checks 4"


def test_what_fails_counts_too() -> None:
    counted = Stages()
    with pytest.raises(ValueError, match="no"), counted("checks"):
        raise ValueError("no")
    assert counted.seconds["checks"] > 0
    with counted("hashes"):
        pass
    assert set(counted.seconds) == {"checks", "hashes"}
