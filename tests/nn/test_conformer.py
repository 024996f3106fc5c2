import dataclasses
import functools
import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from musiclm.nn import conformer

pytestmark = pytest.mark.slow

CONFIG = conformer.ConformerConfig(
    num_blocks=3, model_dim=16, num_heads=2, ffn_dim=24, conv_kernel=5, dropout=0.2
)
MODEL = conformer.ConformerStack(CONFIG)
# Compiled: op by op it takes seconds a call.
init, run = (jax.jit(f, static_argnames="deterministic") for f in (MODEL.init, MODEL.apply))
run_block = jax.jit(conformer.ConformerBlock(CONFIG, deterministic=True).apply)


@pytest.fixture(scope="module")
def fresh():
    x_BTD = np.random.default_rng(0).normal(size=(2, 9, 16)).astype(np.float32)
    return init(jax.random.key(1), x_BTD, deterministic=True), x_BTD


@pytest.fixture(scope="module")
def stack(fresh, moved):
    variables, x_BTD = fresh
    return jax.device_get(moved(variables)), x_BTD


def _unrolled(variables, x_BTD, num_blocks):
    for i in range(num_blocks):
        params = jax.tree.map(lambda leaf_L: leaf_L[i], variables["params"]["blocks"])  # noqa: B023
        x_BTD = run_block({"params": params}, x_BTD)
    return x_BTD


def test_scanned_equals_unrolled(stack):
    variables, x_BTD = stack
    scanned = run(variables, x_BTD, deterministic=True)
    np.testing.assert_allclose(scanned, _unrolled(variables, x_BTD, 3), atol=1e-5)


@pytest.mark.parametrize("num_blocks", [0, 1, 2, 3])
def test_first_blocks_equal_unrolled(stack, num_blocks):
    variables, x_BTD = stack
    part = MODEL.apply(variables, x_BTD, num_blocks, method="first")
    np.testing.assert_allclose(part, _unrolled(variables, x_BTD, num_blocks), atol=1e-5)


def test_first_names_a_layer_that_is_not_there(stack):
    variables, x_BTD = stack
    with pytest.raises(ValueError, match="layer 4 of a stack of 3"):
        MODEL.apply(variables, x_BTD, 4, method="first")


def test_branches_start_at_zero(fresh):
    variables, x_BTD = fresh
    out_BTD = run(variables, x_BTD, deterministic=True)
    np.testing.assert_allclose(out_BTD, jax.nn.standardize(x_BTD), atol=1e-3)


def test_blocks_start_with_different_weights(fresh):
    kernel_LDF = fresh[0]["params"]["blocks"]["ffn_in"]["up"]["kernel"]
    assert kernel_LDF.shape == (3, 16, 24)
    assert float(jnp.abs(kernel_LDF[0] - kernel_LDF[1]).max()) > 0.1


def _remat(keeps):
    return dataclasses.replace(CONFIG, remat=keeps is not None, remat_keeps=keeps or "nothing")


def _gradient(config, variables, x_BTD):
    model = conformer.ConformerStack(config)

    def loss(variables):
        rngs = {"dropout": jax.random.key(2)}
        out_BTD = model.apply(variables, x_BTD, deterministic=False, rngs=rngs)
        return jnp.sum(out_BTD**2 * jnp.arange(16))

    return jax.jit(jax.grad(loss))(variables)


@pytest.fixture(scope="module")
def gradient(stack):
    return _gradient(CONFIG, *stack)


@pytest.mark.parametrize("keeps", ["nothing", "products"])
def test_remat_changes_no_gradient(stack, gradient, keeps):
    gradients = gradient, _gradient(_remat(keeps), *stack)
    for kept, recomputed in zip(*map(jax.tree.leaves, gradients), strict=True):
        np.testing.assert_allclose(kept, recomputed, rtol=1e-3, atol=1e-3)


def test_remat_keeps_what_it_says(stack):
    variables, x_BTD = stack

    def kept(keeps):
        """Numbers that the backward pass takes from the forward pass."""
        model = conformer.ConformerStack(_remat(keeps))

        def pullback(variables):
            return jax.vjp(lambda v: model.apply(v, x_BTD, deterministic=True), variables)[1]

        return sum(leaf.size for leaf in jax.tree.leaves(jax.eval_shape(pullback, variables)))

    # 10 products with weights a block; their widths in units of the model's: 7 of 1, one of 2, and
    # the feed-forwards' two of 1.5.
    products = 3 * x_BTD.size * (7 + 2 + 2 * 1.5)
    assert kept("products") - kept("nothing") == products
    assert kept(None) > kept("products")


def test_unknown_remat_is_told():
    with pytest.raises(ValueError, match="remat_keeps 'all': give one of"):
        dataclasses.replace(CONFIG, remat_keeps="all")


def test_dropout_differs_between_blocks_and_keys(stack):
    variables, x_BTD = stack

    def run_noisy(seed):
        rngs = {"dropout": jax.random.key(seed)}
        return np.asarray(run(variables, x_BTD, deterministic=False, rngs=rngs))

    assert np.abs(run_noisy(0) - run_noisy(1)).max() > 0.01
    np.testing.assert_array_equal(run_noisy(0), run_noisy(0))


def test_attention_reaches_every_frame_and_utterances_stay_apart(stack):
    variables, x_BTD = stack

    @jax.jit
    @jax.grad
    def reach(x):
        """Of every number to the last frame of the first utterance."""
        return run(variables, x, deterministic=True)[0, -1, 0]

    reach_BT = np.abs(reach(x_BTD)).sum(-1)
    assert reach_BT[0].min() > 0
    assert reach_BT[1].max() == 0


def test_depthwise_conv_equals_grouped_convolution():
    rng = np.random.default_rng(3)
    x_BTD = rng.normal(size=(2, 11, 6)).astype(np.float32)
    kernel_WD = rng.normal(size=(5, 6)).astype(np.float32)
    params = {"kernel": kernel_WD, "bias": np.zeros(6, np.float32)}
    found = jax.jit(conformer.DepthwiseConv(5, "float32").apply)({"params": params}, x_BTD)
    expected = jax.lax.conv_general_dilated(
        x_BTD, kernel_WD[:, None], (1,), "SAME",
        dimension_numbers=("NWC", "WIO", "NWC"), feature_group_count=6,
    )  # fmt: skip
    np.testing.assert_allclose(found, expected, atol=1e-5)


def test_bfloat16_stays_near_float32(stack):
    variables, x_BTD = stack
    half = conformer.ConformerStack(dataclasses.replace(CONFIG, dtype="bfloat16"))
    out = jax.jit(functools.partial(half.apply, deterministic=True))(variables, x_BTD)
    assert out.dtype == jnp.bfloat16
    exact = run(variables, x_BTD, deterministic=True)
    assert np.abs(np.asarray(out, np.float32) - exact).mean() < 0.03


def test_parameters_of_a_block():
    d, f, w = 16, 24, 5
    dense = math.prod
    expected = (
        2 * (dense((d, f)) + f + dense((f, d)) + d)  # two feed-forward halves
        + 4 * (d * d + d)  # query, key, value, out
        + (d * 2 * d + 2 * d) + (w * d + d) + (d * d + d)  # gate, depthwise, out
        + 2 * d * 6  # LayerNorms: two, one, two, one
    )  # fmt: skip
    model = conformer.ConformerStack(dataclasses.replace(CONFIG, num_blocks=1))
    shapes = jax.eval_shape(
        lambda: model.init(jax.random.key(0), jnp.zeros((1, 4, d)), deterministic=True)
    )
    assert sum(leaf.size for leaf in jax.tree.leaves(shapes)) == expected


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"num_heads": 3}, "model_dim 16 over num_heads 3"),
        ({"num_heads": 16}, "even number"),
        ({"conv_kernel": 4}, "conv_kernel 4 must be odd"),
        ({"num_blocks": 0}, "num_blocks 0"),
        ({"dropout": 1.0}, "dropout 1.0"),
        ({"dtype": "float16"}, "float16"),
    ],
)
def test_config_names_what_is_wrong(change, message):
    with pytest.raises(ValueError, match=message):
        dataclasses.replace(CONFIG, **change)
