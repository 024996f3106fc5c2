"""Int8: how near it comes, and products with it."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from musiclm.sampler import int8

quantize = jax.jit(int8.quantize, static_argnums=1)
dequantize = jax.jit(int8.dequantize, static_argnums=1)
project = jax.jit(lambda x, *kernels: [int8.project(x, kernel) for kernel in kernels])
FLOATS = st.floats(-(2.0**99), 2.0**99, width=32)
MATRICES = hnp.arrays(np.float32, (3, 4), elements=FLOATS)


@given(MATRICES, st.sampled_from([0, -1]))
def test_a_number_is_off_by_half_a_scale_at_most(x, axis):
    kept = quantize(x, axis)
    assert kept.values.dtype == jnp.int8
    assert np.abs(np.asarray(kept.values, int)).max() <= 127
    assert kept.scale.shape == tuple(np.sum(x, axis=axis, keepdims=True).shape)
    error = np.abs(np.asarray(dequantize(kept, jnp.float32), np.float64) - x)
    # A scale of zero stands for numbers that are as good as zero.
    assert (error <= np.asarray(kept.scale, np.float64) * (0.5 + 1e-4) + 127 * 1.2e-38).all()


def test_each_scale_has_its_largest_number():
    x = jnp.array([[0.5, -8.0, 0.0], [-2.0, 2.0, 0.0]])
    kept = quantize(x, 0)
    np.testing.assert_array_equal(kept.values, [[32, -127, 0], [-127, 32, 0]])
    np.testing.assert_allclose(kept.scale, [[2 / 127, 8 / 127, 0.0]], rtol=1e-6)


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
