"""The decoder's parts against what they are, written down plainly."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.extend import core

from musiclm.nn import transformer

SIZES = {
    "num_layers": 2,
    "model_dim": 12,
    "num_heads": 2,
    "head_dim": 4,
    "mlp_dim": 20,
    "query_block": 4,
    "dropout": 0.0,
}


def written_down(params, x_BTM, dtype):
    """A feed-forward without a thought of what is computed how."""
    x_BTM = x_BTM.astype(dtype)
    kernels = {name: leaf["kernel"].astype(dtype) for name, leaf in params.items()}
    up_BTF = jnp.einsum("btm,mf->btf", x_BTM, kernels["up"])
    if "gate" in kernels:
        inner_BTF = jax.nn.gelu(jnp.einsum("btm,mf->btf", x_BTM, kernels["gate"])) * up_BTF
    else:
        inner_BTF = jax.nn.relu(up_BTF)
    return jnp.einsum("btf,fm->btm", inner_BTF, kernels["down"])


@pytest.mark.parametrize(("dtype", "tolerance"), [("float32", 1e-5), ("bfloat16", 3e-2)])
@pytest.mark.parametrize("gated", [True, False])
def test_feed_forward_and_its_gradients_are_those_written_down(gated, dtype, tolerance):
    config = transformer.TransformerConfig(**SIZES, gated=gated, dtype=dtype)
    layer = transformer.FeedForward(config)
    x_BTM = jax.random.normal(jax.random.key(0), (3, 7, 12))
    params = layer.init(jax.random.key(1), x_BTM)["params"]

    def value_and_gradients(run):
        def loss(params, x_BTM):
            out_BTM = run(params, x_BTM)
            return jnp.sum(jnp.sin(out_BTM.astype(jnp.float32))), out_BTM

        return jax.jit(jax.grad(loss, argnums=(0, 1), has_aux=True))(params, x_BTM)

    ours = value_and_gradients(lambda params, x_BTM: layer.apply({"params": params}, x_BTM))
    plain = value_and_gradients(lambda params, x_BTM: written_down(params, x_BTM, dtype))
    assert jax.tree.structure(ours) == jax.tree.structure(plain)
    for a, b in zip(jax.tree.leaves(ours), jax.tree.leaves(plain), strict=True):
        assert (a.shape, a.dtype) == (b.shape, b.dtype)
        a, b = np.asarray(a, np.float32), np.asarray(b, np.float32)
        np.testing.assert_allclose(a, b, atol=tolerance * np.abs(b).max())


def equations(jaxpr):
    """All of a program, those inside of others too."""
    for equation in jaxpr.eqns:
        yield equation
        for value in jax.tree.leaves(
            list(equation.params.values()),
            is_leaf=lambda x: isinstance(x, core.ClosedJaxpr | core.Jaxpr),
        ):
            if isinstance(value, core.ClosedJaxpr | core.Jaxpr):
                yield from equations(getattr(value, "jaxpr", value))


@pytest.mark.parametrize("remat", [True, False])
def test_products_sum_over_one_axis(remat):
    """Of two, XLA:CPU makes one by copying the activations into another order."""
    config = transformer.TransformerConfig(**SIZES, remat=remat)
    model = transformer.Transformer(config)
    x_BTM = jnp.zeros((3, 7, 12))
    params = jax.eval_shape(lambda: model.init(jax.random.key(0), x_BTM, deterministic=True))
    loss = lambda params: model.apply(params, x_BTM, deterministic=True).sum()  # noqa: E731
    program = jax.make_jaxpr(jax.grad(loss))(params)
    products = [e for e in equations(program.jaxpr) if e.primitive.name == "dot_general"]
    # Forward and twice backward: 7 projections, and 2 products of attention in 2 blocks.
    assert len(products) >= 3 * (7 + 2 * 2)
    for product in products:
        (contracted, _), _ = product.params["dimension_numbers"]
        assert len(contracted) == 1
