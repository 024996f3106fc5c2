"""Relative positions and causal attention, in blocks and in one kernel."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from musiclm import errors
from musiclm.nn import attention


def value_and_gradients(function, *arguments):
    """Of all arguments, that of the bias among them: training goes through the same skewing."""

    def loss(*arguments):
        out = function(*arguments)
        return jnp.sum(jnp.sin(out.astype(jnp.float32))), out

    gradients = jax.grad(loss, argnums=tuple(range(len(arguments))), has_aux=True)
    with jax.default_matmul_precision("highest"):  # a GPU's own is TF32
        return jax.tree.leaves(jax.jit(gradients)(*arguments))


def random_arguments(heads, length, dim):
    """Query, key and value of two rows, and a bias."""
    rng = np.random.default_rng(0)
    shapes = *((2, heads, length, dim),) * 3, (heads, length + 2)
    return [rng.normal(size=shape).astype(np.float32) for shape in shapes]


def test_buckets_by_hand():
    # 8 buckets up to distance 16: 0..3 exactly, then 4 · (log2(d / 4) / 2) over the other four.
    expected = [0, 1, 2, 3, 4, 4, 5, 5, 6, 6, 6, 6, 7, 7, 7, 7, 7, 7]
    np.testing.assert_array_equal(attention.relative_buckets(18, 8, 16), expected)


def test_buckets_of_t5s_own_sizes():
    buckets = attention.relative_buckets(1000, 32, 128)
    np.testing.assert_array_equal(buckets[:16], range(16))
    # 16 + floor(16 · ln(d / 16) / ln 8), worked out by hand.
    for distance, bucket in {16: 16, 19: 17, 32: 21, 64: 26, 113: 31, 127: 31, 999: 31}.items():
        assert buckets[distance] == bucket
    assert (np.diff(buckets) >= 0).all()


@pytest.mark.parametrize("block", [3, 4, 64])
def test_blocks_equal_whole_attention(block):
    heads, length, dim = 3, 11, 5
    arguments = random_arguments(heads, length, dim)

    def whole(query, key, value, bias):
        distance = np.arange(length)[:, None] - np.arange(length)
        scores = jnp.einsum("bhqd,bhkd->bhqk", query, key) / np.sqrt(dim)
        scores += bias[:, np.maximum(distance, 0)]
        weights = jax.nn.softmax(jnp.where(distance >= 0, scores, -jnp.inf), axis=-1)
        return jnp.einsum("bhqk,bhkd->bhqd", weights, value)

    def blocks(query, key, value, bias):
        return attention.causal_attention(query, key, value, bias, block)

    ours, references = (value_and_gradients(f, *arguments) for f in (blocks, whole))
    for one, reference in zip(ours, references, strict=True):
        np.testing.assert_allclose(one, reference, atol=1e-5)


def test_scores_are_not_rounded():
    """In bfloat16 those that are large would be, by more than they differ."""
    query, key, value, bias = random_arguments(3, 11, 16)
    inputs = [jnp.asarray(x, jnp.bfloat16) for x in (16 * query, 4 * key, value)]
    rounded, exact = (
        attention.causal_attention(*(x.astype(dtype) for x in inputs), bias, 4)
        for dtype in (jnp.bfloat16, jnp.float32)
    )
    assert rounded.dtype == jnp.bfloat16
    np.testing.assert_allclose(np.float32(rounded), exact, rtol=0.02, atol=0.02)


def t5_bias(heads, length, max_distance):
    """Constant from the greatest distance on, as flash attention may take for granted."""
    table = np.random.default_rng(1).normal(size=(8, heads)).astype(np.float32)
    return table[attention.relative_buckets(length, 8, max_distance)].T


@pytest.mark.slow
@pytest.mark.parametrize(
    ("length", "max_distance"),
    # A tile alone; tiles without a bias; a bias between tiles; all of them with a bias.
    [(64, 16), (256, 20), (192, 65), (128, 300)],
)
def test_flash_equals_blocks(flash_interpreted, length, max_distance):
    *vectors, _ = random_arguments(heads=2, length=length, dim=8)
    arguments = *vectors, t5_bias(2, length + 2, max_distance)
    flash = functools.partial(attention.fused_attention, max_distance=max_distance)
    blocks = functools.partial(attention.causal_attention, block_size=64)
    ours, references = (value_and_gradients(f, *arguments) for f in (flash, blocks))
    # How the gradient of a constant is shared among its distances is nobody's business.
    ours[3], references[3] = (
        np.append(g[:, :max_distance], g[:, max_distance:].sum(1, keepdims=True), 1)
        for g in (ours[3], references[3])
    )
    for one, reference in zip(ours, references, strict=True):
        np.testing.assert_allclose(one, reference, atol=1e-5)


def test_flash_wants_whole_tiles(flash_interpreted):
    x = jnp.zeros((1, 1, 65, 8))
    with pytest.raises(ValueError, match="65 tokens: give a multiple of 64"):
        attention.fused_attention(x, x, x, jnp.zeros((1, 65)), 16)


def test_flash_on_a_gpu_is_near_float32():
    if jax.default_backend() != "gpu":
        pytest.skip("needs a GPU of NVIDIA's, and JAX_PLATFORMS=cuda")
    batch, heads, length, dim = 2, 4, 384, 64
    keys = jax.random.split(jax.random.key(0), 3)
    vectors = [jax.random.normal(key, (batch, heads, length, dim), jnp.bfloat16) for key in keys]
    table = jax.random.normal(jax.random.key(1), (32, heads))

    def by_table(attend):
        buckets = attention.relative_buckets(length, 32, 128)
        return lambda *arguments: attend(*arguments[:3], arguments[3][buckets].T)

    flash = by_table(functools.partial(attention.fused_attention, max_distance=128))
    blocks = by_table(functools.partial(attention.causal_attention, block_size=128))
    ours = value_and_gradients(flash, *vectors, table)
    exact = value_and_gradients(blocks, *(x.astype(jnp.float32) for x in vectors), table)
    for one, reference in zip(ours, exact, strict=True):
        error = np.linalg.norm(np.asarray(one, np.float32) - reference)
        assert error < 0.01 * np.linalg.norm(reference)


def test_flash_without_a_gpu_is_told(monkeypatch):
    monkeypatch.setattr(jax, "default_backend", lambda: "cpu")
    x = jnp.zeros((1, 1, 64, 8))
    with pytest.raises(errors.UserError, match=r'is "flash".* on cpu here: give "blocks"'):
        attention.fused_attention(x, x, x, jnp.zeros((1, 64)), 128)


@pytest.mark.slow
def test_no_scores_are_kept_for_the_backward_pass():
    batch, heads, length, dim = 2, 3, 64, 4
    x = jax.ShapeDtypeStruct((batch, heads, length, dim), jnp.float32)
    bias = jax.ShapeDtypeStruct((heads, length), jnp.float32)

    def pullback(*arguments):
        return jax.vjp(lambda *a: attention.causal_attention(*a, 32), *arguments)[1]

    kept = jax.tree.leaves(jax.eval_shape(pullback, x, x, x, bias))
    # The largest are of the size of the inputs and of a block's bias, which rows share.
    assert max(leaf.size for leaf in kept) <= heads * 32 * length
    assert all(leaf.shape[-2:] != (32, length) or leaf.shape[0] != batch for leaf in kept)


def test_heads_split_and_join():
    x = jax.random.normal(jax.random.key(0), (2, 7, 12))
    split = attention.split_heads(x, 3)
    assert split.shape == (2, 3, 7, 4)
    np.testing.assert_array_equal(split[1, 2, 3], x[1, 3, 8:])
    np.testing.assert_array_equal(attention.join_heads(split), x)


def test_slopes_start_a_bias_that_falls_with_distance():
    layer = attention.RelativeBias(2, 32, 128, slopes=(0.5, 0.0))
    bias_HS = np.asarray(layer.apply(layer.init(jax.random.key(0), 300), 300))
    distances = np.arange(12)
    np.testing.assert_allclose(bias_HS[0, :12], -0.5 * distances, atol=0.1)
    assert (np.diff(bias_HS[0]) < 0.15).all()
    np.testing.assert_allclose(bias_HS[0, 100:], attention.LEAST_START, atol=0.1)
    np.testing.assert_allclose(bias_HS[1], 0.0, atol=0.1)
    centred = attention.RelativeBias(2, 32, 128, slopes=(0.5, 0.0), centre=3)
    bias_HS = np.asarray(centred.apply(centred.init(jax.random.key(0), 300), 300))
    np.testing.assert_allclose(bias_HS[0, :12], -0.5 * np.abs(distances - 3), atol=0.1)


def test_rotary_product_depends_on_distance_alone():
    rng = np.random.default_rng(0)
    query_D, key_D = rng.normal(size=(2, 8)).astype(np.float32)
    positions_T = np.arange(12)
    turned_q = attention.rotary(jnp.tile(query_D, (12, 1)), positions_T)
    turned_k = attention.rotary(jnp.tile(key_D, (12, 1)), positions_T)
    products = np.asarray(turned_q) @ np.asarray(turned_k).T
    for distance in (-3, 0, 4):
        along = np.diagonal(products, distance)
        np.testing.assert_allclose(along, along[0], rtol=1e-4, atol=1e-5)
    np.testing.assert_allclose(np.diagonal(products)[0], query_D @ key_D, rtol=1e-5)
    one = attention.rotary(jnp.asarray(key_D), jnp.int32(7))
    np.testing.assert_allclose(one, turned_k[7], rtol=1e-5, atol=1e-6)
