import numpy as np
import pytest

from musiclm import bundle
from musiclm.tokens import tokenizers


@pytest.mark.slow
def test_each_window_has_the_codes_of_its_own_sound(tiny_bundle):
    mulan = tokenizers.MuLanTokenizer.load(bundle.load_component(tiny_bundle, "mulan"))
    rate = mulan.sample_rate
    wave_BT = np.random.default_rng(0).normal(size=(2, 12 * rate)).astype(np.float32)
    wave_BT *= np.linspace(0.01, 1, 12 * rate, dtype=np.float32)
    codes_BWQ = mulan.encode_windows(wave_BT)
    assert codes_BWQ.shape == (2, 3, mulan.num_codebooks)
    alone = [mulan.encode_audio(wave_BT[:, s * rate : (s + 10) * rate]) for s in range(3)]
    np.testing.assert_array_equal(codes_BWQ, np.stack(alone, axis=1))
