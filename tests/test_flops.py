"""Operations counted by hand, and those of MusicLM's stages."""

import functools

import flax.linen as nn
import jax
import jax.numpy as jnp
import pytest
from jax.sharding import PartitionSpec as P

from musiclm import flops, sharding
from musiclm.nn import transformer


def array(*shape):
    return jax.ShapeDtypeStruct(shape, jnp.float32)


def test_a_product():
    assert flops.forward_flops(jnp.matmul, array(7, 3, 4), array(4, 5)) == 2 * 7 * 3 * 4 * 5


def test_elementwise_work_is_free():
    assert flops.forward_flops(lambda x: jnp.exp(x).sum(), array(8)) == 0


@pytest.mark.parametrize("groups", [1, 2])
def test_a_convolution(groups):
    conv = nn.Conv(6, (3,), (2,), feature_group_count=groups, use_bias=False)
    kernel = {"params": {"kernel": array(3, 4 // groups, 6)}}
    count = flops.forward_flops(conv.apply, kernel, array(5, 10, 4))
    assert count == 2 * (5 * 5 * 6) * (3 * 4 // groups)


def test_a_transposed_convolution_multiplies_no_zeros():
    conv = nn.ConvTranspose(6, (4,), (2,), use_bias=False)
    count = flops.forward_flops(conv.apply, {"params": {"kernel": array(4, 3, 6)}}, array(5, 10, 3))
    assert count == 2 * (5 * 20 * 6) * (4 * 3) // 2


SQUARE = 2 * 4**3


def _with_own_derivative(f):
    if isinstance(f, jax.custom_vjp):
        f.defvjp(lambda x: (x @ x @ x, x), lambda x, g: (g @ x,))
    else:
        f.defjvp(lambda x, dx: (x[0] @ x[0], dx[0] @ dx[0]))
    return f


@pytest.mark.parametrize(
    ("wrapped", "times"),
    [
        (jax.jit, 1),
        (jax.checkpoint, 1),
        (jax.vmap, 5),
        (lambda f: functools.partial(jax.lax.scan, lambda x, _: (f(x), None), length=9), 9),
        (lambda f: lambda x: jax.lax.cond(x.sum() > 0, f, lambda x: f(f(x)), x), 2),
        (lambda f: _with_own_derivative(jax.custom_vjp(f)), 1),
        (lambda f: _with_own_derivative(jax.custom_jvp(f)), 1),
    ],
)
def test_through_what_functions_are_wrapped_in(wrapped, times):
    shape = (5, 4, 4) if wrapped is jax.vmap else (4, 4)
    assert flops.forward_flops(wrapped(lambda x: x @ x), array(*shape)) == times * SQUARE


def test_shards_count_for_all_devices():
    mesh = sharding.MeshConfig(data=1).make(jax.devices()[:1])
    sharded = jax.shard_map(lambda x: x @ x.T, mesh=mesh, in_specs=P("data"), out_specs=P("data"))
    assert flops.forward_flops(sharded, array(4, 4)) == SQUARE


def test_a_transformer_takes_two_operations_a_weight_and_token_and_those_of_attention():
    cfg = transformer.TransformerConfig(
        num_layers=3, model_dim=8, num_heads=2, head_dim=4, mlp_dim=16, query_block=4
    )
    model = transformer.Transformer(cfg)
    x = array(2, 8, 8)
    variables = jax.eval_shape(functools.partial(model.init, deterministic=True), _key(), x)
    layer = variables["params"]["layers"]
    kernels = sum(leaf.size for leaf in jax.tree.leaves(layer) if leaf.ndim == 3)
    # Two blocks of four queries, on four and on eight keys; scores and mixing.
    scores = 3 * 2 * (2 * 2 * 4 * (4 * 4 + 4 * 8))
    counted = flops.forward_flops(functools.partial(model.apply, deterministic=True), variables, x)
    assert counted == 2 * kernels * 2 * 8 + 2 * scores


def _key():
    return jax.eval_shape(lambda: jax.random.key(0))
