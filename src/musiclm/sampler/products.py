"""The products that decoding is made of, as each platform does them best.

On a CPU those of few rows are kernels of our own (`kernels`); everything else is XLA's.

Shapes: G rows, M features in, F features out; L layers, H heads, S sequence, T of it that a step
may see, D head dimension.
"""

import functools

import jax
import jax.numpy as jnp
from jax import lax

from musiclm.sampler import int8, kernels
from musiclm.sampler.int8 import Int8

# With more rows XLA's products are the faster ones on a CPU too.
FEW_ROWS = 32


def project(x: jax.Array, kernel_MF: jax.Array | Int8) -> jax.Array:
    """[…, M] to […, F] in the dtype of `x`, by a matrix or one that is kept as int8.

    Args:
      x: such rows.
      kernel_MF: if int8, with a scale a column.
    """
    is_int8 = isinstance(kernel_MF, Int8)
    matrix_MF = kernel_MF.values if is_int8 else kernel_MF
    x_GM = x.reshape(-1, x.shape[-1])
    few = len(x_GM) <= FEW_ROWS and matrix_MF.dtype in kernels.DTYPES
    on_cpu = kernels.product if few else _product
    y_GF = lax.platform_dependent(x_GM, matrix_MF, cpu=on_cpu, default=_product)
    if is_int8:
        y_GF = y_GF * kernel_MF.scale
    return y_GF.astype(x.dtype).reshape(*x.shape[:-1], -1)


def _product(x_GM, matrix_MF):
    if matrix_MF.dtype != jnp.int8:
        return x_GM @ matrix_MF
    # What hangs on both can't be moved: or else XLA would make floats of all weights once and for
    # all before a loop of steps, and read those.
    x_GM, matrix_MF = lax.optimization_barrier((x_GM, matrix_MF))
    return jnp.matmul(x_GM, matrix_MF.astype(x_GM.dtype), preferred_element_type=jnp.float32)


def reads_what_is_known(platform: str) -> bool:
    """Whether `attend` reads the cache of a `Stage` up to `position` only, wherever T ends."""
    return platform == "cpu"


def attend(
    query_GHD: jax.Array,
    keys: jax.Array | Int8,
    values: jax.Array | Int8,
    bias_HT: jax.Array,
    layer: int,
    position: jax.Array,
) -> jax.Array:
    """What a token takes from those up to its own: [G, H, D] in the query's dtype.

    Args:
      query_GHD: of the token.
      keys, values: the cache, [L, G, H, S, D].
      bias_HT: f32, added to the scores; hides what comes after `position`.
      layer: whose.
      position: int32, the token's, less than T.
    """
    scaled_GHD = query_GHD * query_GHD.shape[-1] ** -0.5
    on_cpu = kernels.attend if jax.tree.leaves(keys)[0].dtype in kernels.DTYPES else _attend
    return lax.platform_dependent(
        *(scaled_GHD, keys, values, bias_HT, position),
        cpu=functools.partial(on_cpu, layer),
        default=functools.partial(_attend, layer),
    )


def _attend(layer, query_GHD, keys, values, bias_HT, position):
    del position

    def seen(cached):
        part = jax.tree.map(lambda x: x[layer, :, :, : bias_HT.shape[1]], cached)
        return int8.read(part, query_GHD.dtype)

    # As in training: bfloat16 would round scores by as much as 3 % of a weight.
    scores_GHT = jnp.einsum(
        "ghd,ghtd->ght", query_GHD, seen(keys), preferred_element_type=jnp.float32
    )
    probs_GHT = jax.nn.softmax(scores_GHT + bias_HT, axis=-1)
    return jnp.einsum("ght,ghtd->ghd", probs_GHT.astype(query_GHD.dtype), seen(values))
