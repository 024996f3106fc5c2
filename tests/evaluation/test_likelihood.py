"""Nats a token of the stages."""

import jax
import numpy as np
import optax
import pytest

from musiclm.evaluation import likelihood
from musiclm.models.token_lm import TokenLM, TokenLMConfig
from musiclm.nn.transformer import TransformerConfig
from musiclm.token_spec import TokenSpec
from musiclm.tokens.layout import StageLayout

SPEC = TokenSpec(
    num_acoustic_codebooks=4,
    acoustic_codebook_size=8,
    num_coarse_codebooks=2,
    semantic_vocab_size=9,
    num_mulan_codebooks=2,
    mulan_codebook_size=7,
    semantic_window_seconds=0.4,
    coarse_window_seconds=0.2,
    fine_window_seconds=0.1,
)
SIZES = TransformerConfig(
    num_layers=1, model_dim=8, num_heads=1, head_dim=8, mlp_dim=8, max_distance=40, remat=False
)


@pytest.mark.parametrize(
    "stage",
    ["semantic", *(pytest.param(stage, marks=pytest.mark.slow) for stage in ("coarse", "fine"))],
)
def test_it_is_the_mean_cross_entropy_of_the_first_window(stage):
    config = TokenLMConfig(layout=StageLayout.of(stage, SPEC), transformer=SIZES)
    layout, rng = config.layout, np.random.default_rng(0)
    seconds = 0.8  # longer than any window
    codes = {
        "mulan": rng.integers(7, size=(5, 2)),
        "semantic": rng.integers(9, size=(5, round(seconds * SPEC.semantic_frame_rate))),
        "acoustic": rng.integers(8, size=(5, round(seconds * SPEC.acoustic_frame_rate), 4)),
    }
    frames = {segment.source: segment.num_frames for segment in (*layout.prefix, layout.target)}
    cut = {
        name: raw if name == "mulan" else raw[:, : frames.get(name)] for name, raw in codes.items()
    }
    ids_NS = layout.flatten(cut)
    model = TokenLM(config)
    params = jax.tree.map(
        lambda x: rng.normal(size=x.shape).astype(np.float32),
        jax.eval_shape(model.init, jax.random.key(0), ids_NS)["params"],
    )
    target = layout.unflatten_target(ids_NS[:, layout.prefix_length :])

    @jax.jit
    def expect(params):
        logits = model.apply({"params": params}, ids_NS)
        return optax.softmax_cross_entropy_with_integer_labels(logits, target).mean(axis=(1, 2))

    # Five clips in batches of three: the last is filled up.
    found = likelihood.nats(config, params, codes, batch_size=3)
    np.testing.assert_allclose(found, expect(params), rtol=1e-4)


def test_short_clips_are_named():
    config = TokenLMConfig(layout=StageLayout.of("semantic", SPEC), transformer=SIZES)
    codes = {"mulan": np.zeros((1, 2), int), "semantic": np.zeros((1, 9), int)}
    assert not likelihood.is_filled(config.layout, codes)
    with pytest.raises(ValueError, match="don't fill a window of the semantic stage"):
        likelihood.nats(config, {}, codes)
