"""How far `musiclm sample` says it is, and how fast it says it was."""

import pytest

from musiclm.bin import sample_meter


def test_the_meter_counts_tokens_and_music(monkeypatch):
    now = iter(range(100))
    monkeypatch.setattr("time.perf_counter", lambda: float(next(now)))
    monkeypatch.setattr(sample_meter, "read_bytes_per_second", lambda: 100.0)
    with sample_meter.Meter(30.0) as meter:
        for _ in range(2):
            # Every call of the clock is a second.
            meter.start_round(10.0, {"coarse", "semantic", "fine"})
            for stage in ("semantic", "coarse", "fine"):
                meter(stage, 10, 40)
                meter(stage, 40, 40)
            meter.end_round()
        summary = meter.summary({"semantic": 200, "coarse": 100, "fine": 0})
        assert meter._bar.n == pytest.approx(20.0)
    assert summary["tokens_per_second"] == {"semantic": 20.0, "coarse": 20.0, "fine": 20.0}
    # Each stage took 4 s, in which 400 bytes could have been read.
    assert summary["bandwidth_bound_share"] == {"semantic": 0.5, "coarse": 0.25, "fine": 0.0}
    assert (summary["music_seconds"], summary["generating_seconds"]) == (20.0, 14.0)
    assert summary["music_seconds_per_second"] == pytest.approx(20 / 14, abs=1e-3)
