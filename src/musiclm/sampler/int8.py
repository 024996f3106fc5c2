"""Arrays kept as int8 and a scale, which take a quarter of the memory of float32 to read.

Decoding reads all weights for every token, and all keys and values: with few rows, the time of a
step is that of reading.

Shapes: N rows, M features in, F features out.
"""

import math
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jax import lax

# Of the values; -128 would have no counterpart.
LARGEST = 127
# Rows of a matrix that a CPU makes float at a time. They stay in its cache until they are used.
BLOCK = 16
# With more rows a product takes longer than making the whole matrix float.
FEW_ROWS = 64


class Int8(NamedTuple):
    """Numbers `values` · `scale`.

    Attributes:
      values: int8, from -`LARGEST` to `LARGEST`.
      scale: f32, of the same rank, 1 long along the axis whose numbers share a scale.
    """

    values: jax.Array
    scale: jax.Array


def quantize(x: jax.Array, axis: int) -> Int8:
    """The nearest numbers that int8 holds, symmetric about zero: off by at most half a scale.

    Args:
      x: finite numbers.
      axis: along which numbers share a scale, such that the largest is `LARGEST`.
    """
    x32 = x.astype(jnp.float32)
    scale = jnp.max(jnp.abs(x32), axis=axis, keepdims=True) / LARGEST
    # Of zeros alone the scale is zero; so it is where it would be too small to divide by.
    scale = jnp.where(scale < jnp.finfo(jnp.float32).tiny, 0.0, scale)
    values = jnp.round(x32 / jnp.where(scale == 0, 1.0, scale))
    return Int8(jnp.clip(values, -LARGEST, LARGEST).astype(jnp.int8), scale)


def dequantize(x: Int8, dtype: jax.typing.DTypeLike) -> jax.Array:
    """The numbers that are meant, in another dtype."""
    return (x.values.astype(jnp.float32) * x.scale).astype(dtype)


def project(x: jax.Array, kernel_MF: jax.Array | Int8) -> jax.Array:
    """[…, M] to […, F] in the dtype of `x`, by a matrix or one that is kept as int8.

    Args:
      x: such rows.
      kernel_MF: if int8, with a scale a column.
    """
    if not isinstance(kernel_MF, Int8):
        return x @ kernel_MF
    x_NM = x.reshape(-1, x.shape[-1])
    on_cpu = _in_blocks if len(x_NM) <= FEW_ROWS else _at_once
    y_NF = lax.platform_dependent(x_NM, kernel_MF.values, cpu=on_cpu, default=_at_once)
    return (y_NF * kernel_MF.scale).astype(x.dtype).reshape(*x.shape[:-1], -1)


def _at_once(x_NM: jax.Array, values_MF: jax.Array) -> jax.Array:
    # What hangs on both can't be moved: or else XLA would make floats of all weights once and for
    # all before a loop of steps, and read those.
    x_NM, values_MF = lax.optimization_barrier((x_NM, values_MF))
    return jnp.matmul(x_NM, values_MF.astype(x_NM.dtype), preferred_element_type=jnp.float32)


def _in_blocks(x_NM: jax.Array, values_MF: jax.Array) -> jax.Array:
    # XLA:CPU has no product of floats and int8. It would write the whole matrix out as floats.
    num_features, size = x_NM.shape[1], math.gcd(x_NM.shape[1], BLOCK)

    def add(sum_NF, block):
        x_NB, values_BF = block
        part = jnp.matmul(x_NB, values_BF.astype(x_NB.dtype), preferred_element_type=jnp.float32)
        return sum_NF + part, None

    blocks = (
        x_NM.reshape(len(x_NM), -1, size).swapaxes(0, 1),
        values_MF.reshape(num_features // size, size, -1),
    )
    start = jnp.zeros((len(x_NM), values_MF.shape[1]), jnp.float32)
    return lax.scan(add, start, blocks)[0]
