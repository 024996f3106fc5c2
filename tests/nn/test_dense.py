import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from musiclm.nn import dense

sizes = st.integers(1, 9)


@pytest.mark.slow
@given(rows=sizes, inputs=sizes, features=sizes, seed=st.integers(0, 99))
def test_project_has_the_gradients_of_a_product(rows, inputs, features, seed):
    rng = np.random.default_rng(seed)
    shapes = (rows, inputs), (inputs, features), (rows, features)
    x_NM, kernel_MF, dy_NF = (rng.normal(size=s).astype(np.float32) for s in shapes)

    y_NF, gradients = jax.vjp(dense.project, x_NM, kernel_MF)

    found = y_NF, *gradients(dy_NF)
    for ours, numpys in zip(
        found, (x_NM @ kernel_MF, dy_NF @ kernel_MF.T, x_NM.T @ dy_NF), strict=True
    ):
        np.testing.assert_allclose(ours, numpys, atol=1e-5)


@pytest.mark.parametrize(("inputs", "features"), [(32, 64), (64, 32)])
def test_a_cpu_turns_the_narrower_factor_of_a_kernels_gradient_round(inputs, features):
    x_NM, kernel_MF, dy_NF = (
        jnp.ones(s) for s in ((128, inputs), (inputs, features), (128, features))
    )

    def gradient(x_NM, kernel_MF, dy_NF):
        return jax.vjp(dense.project, x_NM, kernel_MF)[1](dy_NF)[1]

    compiled = jax.jit(gradient).lower(x_NM, kernel_MF, dy_NF).compile().as_text()

    assert "f32[32,128]" in compiled
