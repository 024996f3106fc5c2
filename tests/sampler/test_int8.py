"""Int8: how near it comes."""

import jax
import jax.numpy as jnp
import numpy as np
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from musiclm.sampler import int8

quantize = jax.jit(int8.quantize, static_argnums=1)
dequantize = jax.jit(int8.dequantize, static_argnums=1)
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
