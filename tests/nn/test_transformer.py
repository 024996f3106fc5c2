"""The decoder's parts against what they are, written down plainly."""

import dataclasses
import functools

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
    x_BTM = jnp.asarray(x_BTM, dtype)
    kernels = {name: leaf["kernel"].astype(dtype) for name, leaf in params.items()}
    up_BTF = jnp.einsum("btm,mf->btf", x_BTM, kernels["up"])
    if "gate" in kernels:
        inner_BTF = jax.nn.gelu(jnp.einsum("btm,mf->btf", x_BTM, kernels["gate"])) * up_BTF
    else:
        inner_BTF = jax.nn.relu(up_BTF)
    return jnp.einsum("btf,fm->btm", inner_BTF, kernels["down"])


@pytest.mark.slow
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


def test_a_decoder_is_the_one_written_down(moved):
    """T5's: norms before and residuals around; one bias by distance for all layers."""
    model = transformer.Transformer(transformer.TransformerConfig(**SIZES))
    x_BTM = np.random.default_rng(0).normal(size=(3, 7, 12)).astype(np.float32)
    run = functools.partial(model.apply, deterministic=True)
    params = moved(model.init(jax.random.key(1), x_BTM, deterministic=True)["params"])

    def norm(x_BTM, scale):
        return x_BTM / np.sqrt((x_BTM**2).mean(-1, keepdims=True) + 1e-6) * scale["scale"]

    # Up to 15 tokens apart, every distance has a bucket of its own.
    earlier_TS = np.arange(7)[:, None] - np.arange(7)
    bias_TSH = params["relative_bias"]["embedding"][np.maximum(earlier_TS, 0)]
    bias_HTS = np.where(earlier_TS >= 0, bias_TSH.transpose(2, 0, 1), -np.inf)
    expected_BTM = x_BTM
    for layer in range(2):
        block = jax.tree.map(lambda leaf, layer=layer: leaf[layer], params["layers"])
        kernels = {name: part["kernel"] for name, part in block["attention"].items()}
        h_BTM = norm(expected_BTM, block["attention_norm"])
        query, key, value = (
            (h_BTM @ kernels[name]).reshape(3, 7, 2, 4) for name in ("query", "key", "value")
        )
        scores_BHTS = np.einsum("bthd,bshd->bhts", query, key) / np.sqrt(4) + bias_HTS
        weights_BHTS = jax.nn.softmax(scores_BHTS, axis=-1)
        mixed_BTM = np.einsum("bhts,bshd->bthd", weights_BHTS, value).reshape(3, 7, 8)
        expected_BTM = expected_BTM + mixed_BTM @ kernels["out"]
        h_BTM = norm(expected_BTM, block["mlp_norm"])
        expected_BTM = expected_BTM + np.asarray(written_down(block["mlp"], h_BTM, "float32"))
    expected_BTM = norm(expected_BTM, params["final_norm"])
    np.testing.assert_allclose(run({"params": params}, x_BTM), expected_BTM, atol=2e-5)


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
@pytest.mark.parametrize("change", [{"attention": "flash"}, {"scan_unroll": 2}])
def test_how_a_step_is_computed_changes_nothing(flash_interpreted, change):
    """Neither does the padding before flash attention: 7 tokens are no tile."""
    plain = transformer.TransformerConfig(**SIZES, rotary=True, dtype="bfloat16")
    x_BTM = np.random.default_rng(0).normal(size=(3, 7, 12)).astype(np.float32)
    init = lambda key: transformer.Transformer(plain).init(key, x_BTM, deterministic=True)  # noqa: E731
    params = jax.jit(init)(jax.random.key(1))

    def value_and_gradients(config):
        def loss(params, x_BTM):
            out_BTM = transformer.Transformer(config).apply(
                params, x_BTM, deterministic=False, rngs={"dropout": jax.random.key(2)}
            )
            return jnp.sum(jnp.sin(out_BTM.astype(jnp.float32))), out_BTM

        return jax.jit(jax.grad(loss, argnums=(0, 1), has_aux=True))(params, x_BTM)

    ours = value_and_gradients(dataclasses.replace(plain, **change))
    reference = value_and_gradients(plain)
    for a, b in zip(jax.tree.leaves(ours), jax.tree.leaves(reference), strict=True):
        assert (a.shape, a.dtype) == (b.shape, b.dtype)
        a, b = np.asarray(a, np.float32), np.asarray(b, np.float32)
        assert np.linalg.norm(a - b) < 0.02 * np.linalg.norm(b)


@pytest.mark.parametrize(("keeps", "times"), [("nothing", 2), ("products", 1)])
def test_what_flash_attention_makes_is_kept_with_the_products(flash_interpreted, keeps, times):
    """How often its forward kernel is in a block's two passes."""
    config = transformer.TransformerConfig(
        **SIZES, attention="flash", dtype="bfloat16", remat_keeps=keeps
    )
    model = transformer.Transformer(config)
    x_BTM = jnp.zeros((3, 7, 12))
    params = jax.eval_shape(lambda: model.init(jax.random.key(0), x_BTM, deterministic=True))
    loss = lambda params: model.apply(params, x_BTM, deterministic=True).sum()  # noqa: E731
    program = jax.make_jaxpr(jax.grad(loss))(params)
    every = list(equations(program.jaxpr))
    used = {id(variable) for equation in every for variable in equation.invars}
    kernels = [
        str(equation.params["name"])
        for equation in every
        # JAX leaves one whose outputs are there already; XLA does not.
        if equation.primitive.name == "pallas_call" and used & set(map(id, equation.outvars))
    ]
    assert kernels.count("attention_forward") == times
    assert kernels.count("attention_query") == 1


@pytest.mark.parametrize(
    ("settings", "told"),
    [
        ({"attention": "cudnn"}, "attention is 'cudnn': give one of .*flash"),
        ({"attention": "flash"}, 'dtype is \'float32\': give "bfloat16" for attention "flash"'),
        ({"scan_unroll": 0}, "scan_unroll is 0: give 1 or more"),
    ],
)
def test_attention_that_cannot_be_is_told(settings, told):
    with pytest.raises(ValueError, match=told):
        transformer.TransformerConfig(**settings)
