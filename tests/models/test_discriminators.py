import jax
import jax.numpy as jnp
import numpy as np
import pytest

from musiclm.models.discriminators import DiscriminatorConfig, Discriminators

pytestmark = pytest.mark.slow

TINY = DiscriminatorConfig(
    wave_scales=(1, 2), wave_channels=4, wave_max_channels=16, stft_window=64, stft_hop=16,
    stft_channels=2, stft_widths=(1, 2, 2),
)  # fmt: skip


def test_papers_shapes():
    model = Discriminators(DiscriminatorConfig())
    waveform_BT = jax.ShapeDtypeStruct((2, 16384), jnp.float32)
    judgements, variables = jax.eval_shape(
        lambda x_BT: model.init_with_output(jax.random.key(0), x_BT), waveform_BT
    )
    lengths = [logits.shape for logits, _ in judgements]
    # Waveforms: 4^4 samples a logit; STFT: 64 frames, halved three times.
    assert lengths == [(2, 64), (2, 32), (2, 16), (2, 8)]
    widths = [layer.shape[-1] for layer in judgements[0][1]]
    assert widths == [16, 64, 256, 1024, 1024, 1024]
    stft = [layer.shape[2:] for layer in judgements[3][1]]
    expected = [(512, 32), (256, 64), (128, 128), (64, 128), (32, 256), (16, 256), (8, 512)]
    assert stft == expected
    grouped = variables["params"]["wave_1"]["grouped_0"]["kernel"]
    assert grouped.shape == (41, 4, 64)


def test_each_tells_noise_from_silence():
    model = Discriminators(TINY)
    noise_BT = np.random.default_rng(1).normal(size=(2, 1024)).astype(np.float32)
    variables = jax.jit(model.init)(jax.random.key(0), noise_BT)
    judge = jax.jit(model.apply)
    for (noise_logits, features), (silent_logits, _) in zip(
        judge(variables, noise_BT), judge(variables, 0 * noise_BT), strict=True
    ):
        assert np.abs(np.asarray(noise_logits) - silent_logits).max() > 1e-3
        assert len(features) > 1


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"wave_scales": (1, 3)}, r"wave_scales=\(1, 3\): use powers of two"),
        ({"wave_scales": (), "stft_widths": ()}, "both empty"),
        ({"wave_channels": 6}, "wave_channels=6 must be a multiple of wave_group_size=4"),
        ({"stft_window": 16, "stft_widths": (1,) * 5}, "stft_window=16 leaves no bins"),
    ],
)
def test_config_names_what_to_mend(changes, message):
    with pytest.raises(ValueError, match=message):
        DiscriminatorConfig(**changes)
