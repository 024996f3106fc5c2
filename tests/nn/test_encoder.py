import functools

import jax
import numpy as np
import pytest

from musiclm.nn.encoder import Encoder, EncoderConfig, SelfAttention

SMALL = {"num_layers": 2, "model_dim": 16, "num_heads": 2, "ffn_dim": 32}


def random_variables(encoder, *inputs):
    rng = np.random.default_rng(1)
    shapes = jax.eval_shape(
        functools.partial(encoder.init, train=False), jax.random.key(0), *inputs
    )
    return jax.tree.map(lambda x: rng.normal(0, 0.3, x.shape).astype(np.float32), shapes)


@pytest.mark.parametrize("norm_first", [False, True])
def test_padding_changes_nothing_and_order_is_free(norm_first):
    config = EncoderConfig(norm_first=norm_first, **SMALL)
    x_BLD = np.random.default_rng(0).normal(size=(2, 6, 16)).astype(np.float32)
    mask_BL = np.array([[1, 1, 1, 1, 0, 0], [1, 1, 1, 1, 1, 1]], bool)
    encoder = Encoder(config)
    params = random_variables(encoder, x_BLD, mask_BL)
    encode = jax.jit(functools.partial(encoder.apply, params, train=False))
    garbage_BLD = np.where(mask_BL[:, :, None], x_BLD, np.float32(99.0))
    y_BLD, other_BLD, turned_BLD = (
        np.asarray(encode(*inputs))
        for inputs in (
            (x_BLD, mask_BL), (garbage_BLD, mask_BL), (x_BLD[:, ::-1], mask_BL[:, ::-1])
        )
    )  # fmt: skip
    np.testing.assert_allclose(other_BLD[0, :4], y_BLD[0, :4], atol=1e-5)
    # Attention runs both ways: without positions, a permutation of inputs permutes outputs.
    np.testing.assert_allclose(turned_BLD[1, ::-1], y_BLD[1], atol=1e-5)


def test_scores_are_not_rounded(monkeypatch):
    """Between float32 projections of what bfloat16 holds, the rest is as in float32."""
    scores = {}

    def softmax(scores_BHLL):
        scores[config.dtype] = np.asarray(scores_BHLL)
        return softmax_of_jax(scores_BHLL)

    softmax_of_jax = jax.nn.softmax
    monkeypatch.setattr(jax.nn, "softmax", softmax)
    # Identities, and numbers that both types hold: the products alone are longer.
    x_BLD = np.random.default_rng(0).integers(-40, 40, (1, 3, 16)).astype(np.float32)
    params = {
        name: {"kernel": np.eye(16, dtype=np.float32), "bias": np.zeros(16, np.float32)}
        for name in ("query", "key", "value", "out")
    }
    for dtype in ("float32", "bfloat16"):
        config = EncoderConfig(dtype=dtype, **SMALL)
        inputs = x_BLD.astype(dtype), np.ones((1, 3), bool)
        SelfAttention(config).apply({"params": params}, *inputs, train=False)
    np.testing.assert_array_equal(*scores.values())


def test_dropout_acts_in_training_only():
    config = EncoderConfig(dropout_rate=0.5, **SMALL)
    x_BLD = np.ones((1, 3, 16), np.float32)
    mask_BL = np.ones((1, 3), bool)
    encoder = Encoder(config)
    params = random_variables(encoder, x_BLD, mask_BL)

    @functools.partial(jax.jit, static_argnums=0)
    def run(train, seed):
        rngs = {"dropout": jax.random.key(seed)}
        return encoder.apply(params, x_BLD, mask_BL, train=train, rngs=rngs)

    np.testing.assert_array_equal(run(False, 0), run(False, 1))
    assert np.abs(np.asarray(run(True, 0)) - run(True, 1)).max() > 0.1


@pytest.mark.parametrize(
    ("change", "field"),
    [({"model_dim": 15}, "model_dim"), ({"num_layers": 0}, "num_layers"),
     ({"dropout_rate": 1.0}, "dropout_rate"), ({"dtype": "float64"}, "dtype")],
)  # fmt: skip
def test_bad_sizes_name_the_field(change, field):
    with pytest.raises(ValueError, match=f"EncoderConfig.{field} is"):
        EncoderConfig(**(SMALL | change))
