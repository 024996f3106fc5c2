"""Arrays kept as int8 and a scale, which take a quarter of the memory of float32 to read.

Decoding reads all weights for every token, and all keys and values: with few rows, the time of a
step is that of reading.
"""

from typing import NamedTuple

import jax
import jax.numpy as jnp

# Of the values; -128 would have no counterpart.
LARGEST = 127


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


def read(x: jax.Array | Int8, dtype: jax.typing.DTypeLike) -> jax.Array:
    """The numbers that are meant, whichever way they are kept; `dtype` is for those of int8."""
    return dequantize(x, dtype) if isinstance(x, Int8) else x
