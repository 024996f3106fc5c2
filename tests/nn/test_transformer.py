"""The decoder's parts against what they are, written down plainly."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax._src.cudnn import fused_attention_stablehlo as cudnn
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
    x_BTM = jnp.asarray(x_BTM, dtype)
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
    x_BTM = np.random.default_rng(0).normal(size=(3, 7, 12)).astype(np.float32)
    params = jax.jit(layer.init)(jax.random.key(1), x_BTM)["params"]

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


@pytest.mark.slow
def test_cudnn_changes_nothing(cudnn_by_xla):
    """Neither does the padding before it: 7 tokens are no even number."""
    blocks = transformer.TransformerConfig(**SIZES, rotary=True, dtype="bfloat16")
    x_BTM = np.random.default_rng(0).normal(size=(3, 7, 12)).astype(np.float32)
    init = lambda key: transformer.Transformer(blocks).init(key, x_BTM, deterministic=True)  # noqa: E731
    params = jax.jit(init)(jax.random.key(1))

    def value_and_gradients(config):
        def loss(params, x_BTM):
            out_BTM = transformer.Transformer(config).apply(params, x_BTM, deterministic=True)
            return jnp.sum(jnp.sin(out_BTM.astype(jnp.float32))), out_BTM

        return jax.jit(jax.grad(loss, argnums=(0, 1), has_aux=True))(params, x_BTM)

    ours = value_and_gradients(dataclasses.replace(blocks, attention="cudnn"))
    reference = value_and_gradients(blocks)
    for a, b in zip(jax.tree.leaves(ours), jax.tree.leaves(reference), strict=True):
        assert (a.shape, a.dtype) == (b.shape, b.dtype)
        a, b = np.asarray(a, np.float32), np.asarray(b, np.float32)
        assert np.linalg.norm(a - b) < 0.02 * np.linalg.norm(b)


@pytest.mark.parametrize(("keeps", "times"), [("nothing", 2), ("products", 1)])
def test_what_cudnn_makes_is_kept_with_the_products(monkeypatch, keeps, times):
    """Traced as for a GPU: how often its forward kernel is in a block's two passes."""
    monkeypatch.setattr(jax, "default_backend", lambda: "gpu")
    monkeypatch.setattr(cudnn, "check_cudnn_version", lambda: 91400)
    monkeypatch.setattr(cudnn, "check_compute_capability", lambda _: True)
    monkeypatch.setattr(cudnn, "is_cuda_compute_capability_equal", lambda _: False)
    sizes = SIZES | {"head_dim": 8}
    config = transformer.TransformerConfig(
        **sizes, attention="cudnn", dtype="bfloat16", remat_keeps=keeps
    )
    model = transformer.Transformer(config)
    x_BTM = jnp.zeros((3, 7, 12))
    params = jax.eval_shape(lambda: model.init(jax.random.key(0), x_BTM, deterministic=True))
    loss = lambda params: model.apply(params, x_BTM, deterministic=True).sum()  # noqa: E731
    program = jax.make_jaxpr(jax.grad(loss))(params)
    names = [equation.primitive.name for equation in equations(program.jaxpr)]
    assert sum("dot_product_attention_fwd" in name for name in names) == times
    assert sum("dot_product_attention_bwd" in name for name in names) == 1


@pytest.mark.parametrize(
    ("settings", "told"),
    [
        ({"attention": "flash"}, "attention is 'flash': give one of .*cudnn"),
        ({"attention": "cudnn"}, 'dtype is \'float32\': give "bfloat16" for attention "cudnn"'),
    ],
)
def test_attention_that_cannot_be_is_told(settings, told):
    with pytest.raises(ValueError, match=told):
        transformer.TransformerConfig(**settings)
