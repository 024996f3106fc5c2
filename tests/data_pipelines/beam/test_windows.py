import hypothesis
import hypothesis.strategies as st
import numpy as np
import pytest

from data_pipelines.beam import decode, windows
from musiclm import errors


@hypothesis.given(
    st.integers(1, 400_000), st.sampled_from([4_000, 8_000, 11_025]), st.sampled_from([2.0, 2.5, 7])
)
def test_windows_cover_a_file_up_to_less_than_a_tail(frames, rate, seconds):
    grid = windows.Grid((1_000, 1_500), seconds)
    total = frames * 500 // rate
    if total < grid.ticks:
        with pytest.raises(decode.BadAudio, match="short"):
            grid.starts(frames, rate)
        return
    starts = grid.starts(frames, rate)
    gaps = np.diff(starts)
    assert starts[0] == 0
    assert (gaps[:-1] == grid.ticks).all()
    assert (gaps > 0).all()
    assert (gaps <= grid.ticks).all()
    left = total - (starts[-1] + grid.ticks)
    assert 0 <= left < windows.MIN_TAIL_SECONDS * 500
    if starts[-1] % grid.ticks:
        assert left == 0


def test_windows_hold_the_same_seconds_at_every_rate():
    rate = 8_000
    tone = np.sin(2 * np.pi * 50 * np.arange(rate * 7) / rate).astype(np.float32)
    ramp = tone * np.linspace(0.1, 1.0, len(tone), dtype=np.float32)
    grid = windows.Grid((1_000, 2_000), 2.0)
    cut = dict(grid.cut(ramp, rate, range(4)))
    assert [start / 1_000 for start in grid.starts(len(ramp), rate)] == [0, 2, 4, 5]
    for index, second in enumerate([0, 2, 4, 5]):
        for new in (1_000, 2_000):
            piece = cut[index][new]
            assert piece.shape == (2 * new,)
            expected = ramp[second * rate : (second + 2) * rate : rate // new]
            # Away from the ends of the file, where any resampler rings.
            middle = slice(new // 5, -new // 5)
            np.testing.assert_allclose(piece[middle], expected[middle], atol=2e-3)


@pytest.mark.parametrize("seconds", [0.0, -1.0, float("nan"), float("inf"), 1e308, 0.0003])
def test_windows_that_no_grid_holds_are_refused(seconds):
    with pytest.raises(errors.UserError, match="--window-seconds"):
        windows.Grid((16_000, 24_000), seconds)
