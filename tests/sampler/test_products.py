"""Products of matrices and attention of a step: LLVM's kernels beside XLA and NumPy."""

import concurrent.futures
import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from llvmlite import ir

from musiclm.nn import attention
from musiclm.sampler import int8, kernels, native, products

quantize = jax.jit(int8.quantize, static_argnums=1)
dequantize = jax.jit(int8.dequantize, static_argnums=1)
project = jax.jit(lambda x, *kernels: [products.project(x, kernel) for kernel in kernels])


@pytest.mark.parametrize("features", [1, 7, 24, 64])
@pytest.mark.parametrize("rows", [(1,), (5,), (2, 3), (7, 11)])
def test_a_product_is_that_of_the_numbers_meant(features, rows):
    rng = np.random.default_rng(0)
    x = rng.normal(size=(*rows, features)).astype(np.float32)
    exact = rng.normal(size=(features, 9)).astype(np.float32)
    kernel = quantize(exact, 0)
    y, unrounded = map(np.asarray, project(x, kernel, exact))
    np.testing.assert_allclose(
        y, x @ np.asarray(dequantize(kernel, jnp.float32)), rtol=1e-4, atol=1e-5
    )
    bound = np.abs(x).sum(axis=-1, keepdims=True) * np.asarray(kernel.scale)[0] / 2
    assert (np.abs(y - unrounded) <= bound * 1.001 + 1e-5).all()


def test_products_of_bfloat16_are_summed_in_float32():
    ones = jnp.ones((1, 512), jnp.bfloat16)
    (y,) = project(ones, quantize(np.ones((512, 3), np.float32), 0))
    assert y.dtype == jnp.bfloat16
    np.testing.assert_array_equal(y, 512.0)


def test_a_row_does_not_depend_on_its_neighbours():
    rng = np.random.default_rng(1)
    x = rng.normal(size=(6, 48)).astype(np.float32)
    kernel = quantize(rng.normal(size=(48, 40)).astype(np.float32), 0)
    (before,) = project(x, kernel)
    x[1:] = -3.0
    (after,) = project(x, kernel)
    np.testing.assert_array_equal(after[0], before[0])


@settings(max_examples=25)
@given(st.integers(1, 9), st.integers(1, 40), st.integers(1, 70), st.booleans(), st.integers(0, 99))
def test_any_shape_of_product(rows, depth, width, is_int8, seed):
    rng = np.random.default_rng(seed)
    x = rng.normal(size=(rows, depth)).astype(np.float32)
    kernel = rng.integers(-127, 128, size=(depth, width))
    kernel = kernel.astype(np.int8 if is_int8 else np.float32)
    y = jax.jit(kernels.product)(x, kernel)
    exact = x.astype(np.float64) @ kernel
    np.testing.assert_allclose(y, exact, atol=1e-6 * 127 * np.abs(x).sum(axis=1).max())


@pytest.mark.parametrize("dtype", [np.float32, np.int8])
@pytest.mark.parametrize("rows", [1, 3, 8])
def test_a_product_that_threads_share(rows, dtype):
    rng = np.random.default_rng(0)
    x = rng.normal(size=(rows, 1024)).astype(np.float32)
    kernel = rng.integers(-127, 128, size=(1024, 2320)).astype(dtype)
    y = np.asarray(jax.jit(kernels.product)(x, kernel))
    np.testing.assert_allclose(y, x.astype(np.float64) @ kernel, rtol=1e-4, atol=2e-2)
    # A row alone is what it is beside others: sums go the same way.
    for row in range(rows):
        np.testing.assert_array_equal(jax.jit(kernels.product)(x[row : row + 1], kernel)[0], y[row])


def test_threads_of_python_may_call_at_once():
    rng = np.random.default_rng(0)
    kernel = jnp.asarray(rng.normal(size=(512, 1536)).astype(np.float32))
    xs = rng.normal(size=(8, 1, 512)).astype(np.float32)

    @jax.jit
    def many(x):
        # Product after product: what a thread finishes another one waits for.
        y, _ = jax.lax.scan(
            lambda x, _: (kernels.product(x, kernel)[:, :512] / 23, None), x, length=99
        )
        return y

    alone = [np.asarray(many(x)) for x in xs]
    with concurrent.futures.ThreadPoolExecutor(8) as pool:
        together = list(pool.map(lambda x: np.asarray(many(x)), xs))
    assert np.isfinite(alone).all()
    assert np.ptp(alone) > 0
    np.testing.assert_array_equal(together, alone)


@functools.cache
def cache(size, is_int8, layers=2, rows=3, heads=4, length=150):
    rng = np.random.default_rng(size)
    shape = (layers, rows, heads, length, size)
    drawn = (jnp.asarray(rng.normal(size=shape).astype(np.float32)) for _ in range(2))
    return tuple(quantize(part, -1) if is_int8 else part for part in drawn)


@pytest.mark.parametrize("is_int8", [False, True])
@pytest.mark.parametrize("size", [6, 8, 64])
@pytest.mark.parametrize("position", [0, 15, 16, 99])
def test_attention_is_that_of_xla(size, is_int8, position):
    rng = np.random.default_rng(position)
    keys, values = cache(size, is_int8)
    query = rng.normal(size=(3, 4, size)).astype(np.float32)
    bias = rng.normal(scale=3, size=(4, 120)).astype(np.float32)
    bias[:, position + 1 :] = attention.MASKED
    args = (query, keys, values, bias, jnp.int32(position))
    ours, theirs = (
        jax.jit(functools.partial(attend, 1))(*args)
        for attend in (kernels.attend, products._attend)
    )
    np.testing.assert_allclose(ours, theirs, rtol=1e-5, atol=1e-5)


def test_attention_keeps_the_querys_dtype_on_every_platform():
    """JAX takes no branches of different types, also of platforms that are not there."""
    keys, values = cache(8, True)
    query, bias = jnp.ones((3, 4, 8), jnp.bfloat16), jnp.zeros((4, 150))
    step = jax.jit(lambda *args: products.attend(*args, bias, 1, jnp.int32(39)))
    mixed = step(query, keys, values)
    assert mixed.dtype == jnp.bfloat16
    exact = step(query.astype(jnp.float32), keys, values)
    np.testing.assert_allclose(mixed.astype(jnp.float32), exact, atol=2e-2)


def test_attention_reads_what_is_known_alone():
    keys, values = cache(8, False)
    spoilt = (part.at[:, :, :, 40:].set(jnp.nan).at[0].set(jnp.nan) for part in (keys, values))
    query, bias = jnp.ones((3, 4, 8)), jnp.zeros((4, 150))
    step = jax.jit(lambda *args: products.attend(*args, bias, 1, jnp.int32(39)))
    np.testing.assert_array_equal(step(query, *spoilt), step(query, keys, values))


@pytest.mark.parametrize("known", [16, 20])
def test_a_broken_model_is_not_made_to_look_sound(known):
    keys, values = cache(8, False)
    broken = (
        keys.at[1, 0, 0, 3, 2].set(jnp.nan).at[1, 0, 1].set(jnp.nan).at[1, 0, 2, 5].set(jnp.inf)
    )
    step = jax.jit(
        lambda *args: kernels.attend(1, *args, jnp.zeros((4, 150)), jnp.int32(known - 1))
    )
    mixed = np.asarray(step(jnp.ones((3, 4, 8)), broken, values))
    assert np.isnan(mixed[0, :3]).all()
    assert np.isfinite(mixed[0, 3]).all()


def test_attention_of_scores_far_apart():
    # The softmax of 0 and -1000, and of a thousand alike.
    keys = jnp.zeros((1, 1, 1, 2, 8)).at[..., 1, 0].set(-1000.0)
    values = jnp.arange(16.0).reshape(1, 1, 1, 2, 8)
    query = jnp.ones((1, 1, 8))
    attend = jax.jit(functools.partial(kernels.attend, 0))
    mixed = attend(query, keys, values, jnp.zeros((1, 2)), jnp.int32(1))
    np.testing.assert_allclose(mixed[0, 0], np.arange(8.0), atol=1e-6)
    values = jnp.tile(values[..., :1, :], (1, 1, 1, 1000, 1))
    mixed = attend(query, jnp.zeros_like(values), values, jnp.zeros((1, 1000)), jnp.int32(999))
    np.testing.assert_allclose(mixed[0, 0], np.arange(8.0), rtol=1e-6)


def test_powers_of_e():
    def plan(b, data, shape, threads):
        del b, data, threads
        return shape(0, 0), native.number(0), []

    def item(b, data, sizes, index):
        del sizes
        place = b.mul(index, native.number(native.LANES))
        x = b.read(data[0], native.F32, place, native.LANES)
        b.write(native.exp(b, x), data[1], place)

    x = -np.geomspace(1e-7, 300.0, 4096).reshape(-1, native.LANES).astype(np.float32)
    x[0, 0] = 0.0
    (y,) = jax.jit(
        lambda x: native.call(
            "test_exp", [jax.ShapeDtypeStruct(x.shape, x.dtype)], [x], 0, plan, item
        )
    )(x)
    exact = np.exp(np.maximum(x, np.float32(-87)).astype(np.float64))
    np.testing.assert_allclose(y, exact, rtol=2e-7)
    assert y[0, 0] == 1.0


@pytest.mark.parametrize("items", [0, 1, 5, 3000])
def test_every_item_is_done_once(items):
    """Counted by sums of its own place, with more work promised than one thread should do."""

    def plan(b, data, shape, threads):
        del b, data, threads
        return shape(0, 0), native.number(1 << 30), []

    def item(b, data, sizes, index):
        del sizes
        number = b.read(data[0], native.F32, index)
        b.write(b.fadd(number, ir.Constant(native.F32, 1.0)), data[1], index)

    x = np.arange(items, dtype=np.float32)
    (y,) = jax.jit(
        lambda x: native.call(
            "test_items", [jax.ShapeDtypeStruct(x.shape, x.dtype)], [x], 0, plan, item
        )
    )(x)
    np.testing.assert_array_equal(y, x + 1)
