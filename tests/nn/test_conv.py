import hypothesis
import hypothesis.strategies as st
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import linen as nn
from jax import lax

from musiclm.nn import conv


def _random(seed, *shape):
    return np.random.default_rng(seed).normal(size=shape).astype(np.float32)


@pytest.mark.parametrize("dilation", [1, 3])
def test_plain_convolution_is_the_sum_over_past_taps(dilation):
    x_BTC, kernel_KIO = _random(0, 2, 12, 3), _random(1, 4, 3, 5)
    expected = np.zeros((2, 12, 5))
    for t in range(12):
        for tap in range(4):
            source = t - (3 - tap) * dilation
            if source >= 0:
                expected[:, t] += x_BTC[:, source] @ kernel_KIO[tap]
    found = jax.jit(conv.causal_conv, static_argnums=2)(x_BTC, kernel_KIO, dilation)
    np.testing.assert_allclose(found, expected, atol=1e-5)


@pytest.mark.parametrize(("width", "stride"), [(4, 2), (6, 3), (10, 5), (21, 3)])
def test_strided_convolution_equals_xlas(width, stride):
    x_BTC, kernel_KIO = _random(0, 2, 30, 3), _random(1, width, 3, 5)
    expected = lax.conv_general_dilated(
        x_BTC, kernel_KIO, (stride,), [(width - stride, 0)], dimension_numbers=("NWC", "WIO", "NWC")
    )
    found = jax.jit(conv.causal_strided_conv, static_argnums=2)(x_BTC, kernel_KIO, stride)
    np.testing.assert_allclose(found, expected, atol=1e-5)


@pytest.mark.parametrize(("width", "stride"), [(4, 2), (6, 3), (10, 5), (21, 3)])
def test_transposed_convolution_spreads_each_input(width, stride):
    x_BTC, kernel_KIO = _random(0, 2, 6, 3), _random(1, width, 3, 5)
    expected = np.zeros((2, 6 * stride + width, 5))
    for frame in range(6):
        for tap in range(width):
            expected[:, frame * stride + tap] += x_BTC[:, frame] @ kernel_KIO[tap]
    found = jax.jit(conv.causal_transposed_conv, static_argnums=2)(x_BTC, kernel_KIO, stride)
    np.testing.assert_allclose(found, expected[:, : 6 * stride], atol=1e-5)


@pytest.mark.parametrize(
    ("length", "width", "stride", "features"), [(40, 12, 4, 16), (40, 7, 1, 5)]
)
def test_layers_start_as_an_isometry_and_its_transpose(length, width, stride, features):
    x_BTC = _random(0, 2, length, 4 if stride > 1 else 5)
    down = conv.CausalConv(features, width, stride=stride)
    y_BTC, _ = jax.jit(down.init_with_output)(jax.random.key(1), x_BTC)
    assert y_BTC.shape == (2, length // stride, features)
    np.testing.assert_allclose(np.linalg.norm(y_BTC), np.linalg.norm(x_BTC), rtol=1e-4)
    up = conv.CausalTransposedConv(4, 2 * stride, stride=stride)
    z_BTC = _random(2, 2, 10, 3)
    out_BTC, _ = jax.jit(up.init_with_output)(jax.random.key(3), z_BTC)
    assert out_BTC.shape == (2, 10 * stride, 4)
    np.testing.assert_allclose(np.linalg.norm(out_BTC), np.linalg.norm(z_BTC), rtol=1e-4)


@pytest.mark.parametrize(
    "layer",
    [
        conv.CausalConv(5, 4, dilation=3),
        conv.CausalConv(5, 1),
        conv.CausalConv(5, 6, stride=3),
        conv.CausalTransposedConv(5, 6, stride=2),
        conv.CausalTransposedConv(5, 3, stride=3),
    ],
)
def test_a_layer_goes_on_from_its_past(layer):
    x_BTC = _random(0, 2, 30, 3)
    params = {"kernel": _random(1, layer.kernel_size, 3, 5), "bias": _random(2, 5)}
    run = jax.jit(layer.apply)
    whole_BTC = np.asarray(run({"params": params}, x_BTC))
    past_BPC = x_BTC[:, 15 - layer.reach : 15]
    second_BTC = np.asarray(run({"params": params}, x_BTC[:, 15:], past_BPC))
    np.testing.assert_allclose(second_BTC, whole_BTC[:, -second_BTC.shape[1] :], atol=1e-5)
    # It reads all of it.
    if layer.reach:
        other_BPC = past_BPC.copy()
        other_BPC[:, 0] += 1.0
        other_BTC = run({"params": params}, x_BTC[:, 15:], other_BPC)
        assert np.abs(other_BTC - second_BTC).max() > 1e-2


@pytest.mark.slow
@hypothesis.given(data=st.data())
@hypothesis.settings(deadline=None, max_examples=10)
def test_other_convolutions_and_their_gradients_equal_flaxs(data):
    num_axes = data.draw(st.sampled_from([1, 2]), "axes")
    sizes = [data.draw(st.integers(5, 12), "size") for _ in range(num_axes)]
    widths = tuple(data.draw(st.integers(1, 5), "width") for _ in range(num_axes))
    strides = tuple(data.draw(st.integers(1, 3), "stride") for _ in range(num_axes))
    groups = data.draw(st.sampled_from([1, 3]), "groups")
    padding = data.draw(st.sampled_from(["SAME", "VALID"]), "padding")
    x_BXC = _random(0, 2, *sizes, 2 * groups)
    arguments = {"features": 4 * groups, "kernel_size": widths, "strides": strides}
    ours = conv.Conv(**arguments, padding=padding, groups=groups)
    flaxs = nn.Conv(**arguments, padding=padding, feature_group_count=groups)
    variables = flaxs.init(jax.random.key(1), x_BXC)
    assert jax.tree.map(np.shape, ours.init(jax.random.key(1), x_BXC)) == jax.tree.map(
        np.shape, variables
    )

    def output_and_gradients(layer):
        y_BXC, pullback = jax.vjp(layer.apply, variables, x_BXC)
        return y_BXC, *pullback(jnp.cos(jnp.arange(y_BXC.size)).reshape(y_BXC.shape))

    jax.tree.map(
        lambda found, expected: np.testing.assert_allclose(found, expected, atol=1e-4),
        jax.jit(output_and_gradients, static_argnums=0)(ours),
        jax.jit(output_and_gradients, static_argnums=0)(flaxs),
    )
