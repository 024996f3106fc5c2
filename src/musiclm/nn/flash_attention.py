"""Causal attention with T5's relative positions in one kernel a pass, for GPUs.

No scores are written to memory (FlashAttention, Dao et al. 2022), in Triton through Pallas. What
general kernels do not know: softmax does not see what is added to a whole row, and T5's bias is one
constant from the greatest distance on. Less that constant it is zero but near the diagonal, where
tiles of it are the same all along. So a head has a few tiles of bias, and their gradient is summed
near the diagonal alone; cuDNN reads a bias for each pair of tokens, and writes as large a gradient.

Shapes: B batch, H heads, T tokens, S most distances, D head dimension, N tiles from the diagonal
on, R queries and C keys of a tile.
"""

import functools
import math
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax
from jax.ad_checkpoint import checkpoint_name
from jax.experimental import pallas as pl
from jax.experimental.pallas import triton

# Queries, and keys, of a tile: T must be a multiple.
TILE = 64
# What a policy of `jax.checkpoint` may keep: with it the forward kernel does not run twice.
KEPT = "flash_attention"
# What masked scores become: finite, so that differences of two stay so.
_MASKED = -1e30
# GPUs have powers of two.
_LOG2_E = math.log2(math.e)


def attend(
    query_BTHD: jax.Array,
    key_BTHD: jax.Array,
    value_BTHD: jax.Array,
    bias_HS: jax.Array,
    *,
    max_distance: int,
    interpret: bool = False,
) -> jax.Array:
    """Attention of every token on itself and those before it.

    Args:
      query_BTHD, key_BTHD, value_BTHD: T a multiple of `TILE`. Sums are float32; products have
        the precision of tensor cores, bfloat16 for bfloat16 and TF32 for float32.
      bias_HS: f32, by distance, S ≥ T; added to the scores.
      max_distance: from where on the bias is constant.
      interpret: computes step by step in XLA, on any device: for tests.

    Returns:
      [B, T, H, D], of the queries' dtype.

    Raises:
      ValueError: T is no multiple of `TILE`.
    """
    if query_BTHD.shape[1] % TILE:
        raise ValueError(f"{query_BTHD.shape[1]} tokens: give a multiple of {TILE}")
    tiles_HNRC = _bias_tiles(bias_HS, max_distance)
    return _attend(query_BTHD, key_BTHD, value_BTHD, tiles_HNRC, interpret)


def _bias_tiles(bias_HS, max_distance):
    """The bias less that of far tokens, of the tiles n = 0, 1, … below the diagonal's."""
    num_tiles = (max_distance + TILE - 2) // TILE + 1
    shifted_HS = bias_HS - bias_HS[:, -1:]
    below, row, column = np.ogrid[:num_tiles, :TILE, :TILE]
    distance_NRC = below * TILE + row - column
    nearest_NRC = np.clip(distance_NRC, 0, bias_HS.shape[1] - 1)
    return jnp.where(distance_NRC < 0, _MASKED, shifted_HS[:, nearest_NRC])


@functools.partial(jax.custom_vjp, nondiff_argnums=(4,))
def _attend(query_BTHD, key_BTHD, value_BTHD, tiles_HNRC, interpret):
    return _forward(query_BTHD, key_BTHD, value_BTHD, tiles_HNRC, interpret)[0]


def _attend_and_keep(query_BTHD, key_BTHD, value_BTHD, tiles_HNRC, interpret):
    made = _forward(query_BTHD, key_BTHD, value_BTHD, tiles_HNRC, interpret)
    mixed_BTHD, logsum_BHT = (checkpoint_name(x, KEPT) for x in made)
    return mixed_BTHD, (query_BTHD, key_BTHD, value_BTHD, tiles_HNRC, mixed_BTHD, logsum_BHT)


# Kernels -----------------------------------------------------------------------------------------
#
# A program has one tile of queries, or of keys, and goes through those of the other kind that it
# sees, with a bias or far off, in loops of their own. Scores are in powers of two.


def _forward_kernel(query_ref, key_ref, value_ref, bias_ref, mixed_ref, logsum_ref, *, scale):
    row = pl.program_id(0)
    query = query_ref[...]

    def step(column, carry, *, biased):
        mixed, top, total = carry
        scores = _dot(query, key_ref[_tile(column), :].T) * (scale * _LOG2_E)
        if biased:
            scores += bias_ref[row - column] * _LOG2_E
        new_top = jnp.maximum(top, jnp.max(scores, axis=1))
        shrink = jnp.exp2(top - new_top)
        weights = jnp.exp2(scores - new_top[:, None])
        added = _dot(weights.astype(query.dtype), value_ref[_tile(column), :])
        mixed = mixed * shrink[:, None] + added
        return mixed, new_top, total * shrink + jnp.sum(weights, axis=1)

    nothing = _zeros(query.shape), jnp.full(TILE, _MASKED, jnp.float32), _zeros(TILE)
    mixed, top, total = _through_keys(row, bias_ref, step, nothing)
    mixed_ref[...] = (mixed / total[:, None]).astype(mixed_ref.dtype)
    logsum_ref[...] = top + jnp.log2(total)


def _query_kernel(
    query_ref, key_ref, value_ref, bias_ref, dmixed_ref, logsum_ref, dot_ref, dquery_ref, *, scale
):
    row = pl.program_id(0)
    query, dmixed = query_ref[...], dmixed_ref[...]
    logsum, dot = logsum_ref[...], dot_ref[...]

    def step(column, dquery, *, biased):
        key = key_ref[_tile(column), :]
        scores = _dot(query, key.T) * (scale * _LOG2_E)
        if biased:
            scores += bias_ref[row - column] * _LOG2_E
        weights = jnp.exp2(scores - logsum[:, None])
        dscores = weights * (_dot(dmixed, value_ref[_tile(column), :].T) - dot[:, None])
        return dquery + _dot(dscores.astype(key.dtype), key)

    dquery = _through_keys(row, bias_ref, step, _zeros(query.shape))
    dquery_ref[...] = (dquery * scale).astype(dquery_ref.dtype)


def _key_value_kernel(
    query_ref, key_ref, value_ref, bias_ref, dmixed_ref, logsum_ref, dot_ref, dkey_ref, dvalue_ref,
    *, scale,
):  # fmt: skip
    # Tiles are [C, R] here, those of the bias too.
    column, num_rows = pl.program_id(0), pl.num_programs(0)
    key, value = key_ref[...], value_ref[...]

    def step(row, carry, *, biased):
        dkey, dvalue = carry
        query, dmixed = query_ref[_tile(row), :], dmixed_ref[_tile(row), :]
        scores = _dot(key, query.T) * (scale * _LOG2_E)
        if biased:
            scores += bias_ref[row - column] * _LOG2_E
        weights = jnp.exp2(scores - logsum_ref[_tile(row)][None, :])
        dvalue += _dot(weights.astype(dmixed.dtype), dmixed)
        dscores = weights * (_dot(value, dmixed.T) - dot_ref[_tile(row)][None, :])
        return dkey + _dot(dscores.astype(query.dtype), query), dvalue

    last = jnp.minimum(column + bias_ref.shape[0], num_rows)
    carry = _zeros(key.shape), _zeros(key.shape)
    carry = lax.fori_loop(column, last, functools.partial(step, biased=True), carry)
    dkey, dvalue = lax.fori_loop(last, num_rows, functools.partial(step, biased=False), carry)
    dkey_ref[...] = (dkey * scale).astype(dkey_ref.dtype)
    dvalue_ref[...] = dvalue.astype(dvalue_ref.dtype)


def _bias_kernel(
    query_ref, key_ref, value_ref, bias_ref, dmixed_ref, logsum_ref, dot_ref, dbias_ref, *, scale
):
    # A program has one tile of bias, and goes through all tiles of scores that it is added to.
    below, num_rows = pl.program_id(0), query_ref.shape[0] // TILE
    bias = bias_ref[...] * _LOG2_E

    def step(row, dbias):
        rows, columns = _tile(row), _tile(row - below)
        scores = _dot(query_ref[rows, :], key_ref[columns, :].T) * (scale * _LOG2_E) + bias
        weights = jnp.exp2(scores - logsum_ref[rows][:, None])
        dweights = _dot(dmixed_ref[rows, :], value_ref[columns, :].T)
        return dbias + weights * (dweights - dot_ref[rows][:, None])

    dbias_ref[...] = lax.fori_loop(below, num_rows, step, _zeros(bias.shape))


def _through_keys(row, bias_ref, step, carry):
    first = jnp.maximum(row + 1 - bias_ref.shape[0], 0)
    carry = lax.fori_loop(0, first, functools.partial(step, biased=False), carry)
    return lax.fori_loop(first, row + 1, functools.partial(step, biased=True), carry)


def _dot(x, y):
    return jnp.dot(x, y, preferred_element_type=jnp.float32)


def _tile(index):
    return pl.ds(index * TILE, TILE)


def _zeros(shape):
    return jnp.zeros(shape, jnp.float32)


# Passes ------------------------------------------------------------------------------------------


class _Specs(NamedTuple):
    """Of its row of the batch and its head, what a program sees of arrays of one kind.

    Attributes:
      vectors: of [B, T, H, D].
      numbers: of [B, H, T].
      bias: of [H, N, R, C].
    """

    vectors: pl.BlockSpec
    numbers: pl.BlockSpec
    bias: pl.BlockSpec


def _specs(length: int, dim: int, num_tiles: int) -> tuple[_Specs, _Specs]:
    """A program's own tile, and all of them."""
    own = _Specs(
        pl.BlockSpec((None, TILE, None, dim), lambda i, h, b: (b, i, h, 0)),
        pl.BlockSpec((None, None, TILE), lambda i, h, b: (b, h, i)),
        pl.BlockSpec((None, None, TILE, TILE), lambda i, h, b: (h, i, 0, 0)),
    )
    every = _Specs(
        pl.BlockSpec((None, length, None, dim), lambda i, h, b: (b, 0, h, 0)),
        pl.BlockSpec((None, None, length), lambda i, h, b: (b, h, 0)),
        pl.BlockSpec((None, num_tiles, TILE, TILE), lambda i, h, b: (h, 0, 0, 0)),
    )
    return own, every


def _run(
    name, kernel, num_programs, arrays, queries, keys, bias, outputs, interpret, *, num_stages=2
):
    """A kernel on queries, keys, values and bias; backward also on what is there of each query.

    `queries`, `keys`, `bias`: what a program sees of them. `outputs`: a shape, a dtype and a spec.
    `num_stages`: tiles under way at once; so, and in tiles of 64 by four warps, fastest on an H200.
    """
    batch, _, heads, dim = arrays[0].shape
    of_queries = [queries.vectors, queries.numbers, queries.numbers]
    in_specs = [queries.vectors, keys.vectors, keys.vectors, bias.bias, *of_queries]
    return pl.pallas_call(
        functools.partial(kernel, scale=dim**-0.5),
        grid=(num_programs, heads, batch),
        in_specs=in_specs[: len(arrays)],
        out_specs=[spec for _, _, spec in outputs],
        out_shape=[jax.ShapeDtypeStruct(shape, dtype) for shape, dtype, _ in outputs],
        compiler_params=triton.CompilerParams(num_warps=4, num_stages=num_stages),
        interpret=interpret,
        name=f"attention_{name}",
    )(*arrays)


def _forward(query_BTHD, key_BTHD, value_BTHD, tiles_HNRC, interpret):
    batch, length, heads, dim = query_BTHD.shape
    own, every = _specs(length, dim, tiles_HNRC.shape[1])
    mixed = query_BTHD.shape, query_BTHD.dtype, own.vectors
    logsum = (batch, heads, length), jnp.float32, own.numbers
    arrays = query_BTHD, key_BTHD, value_BTHD, tiles_HNRC
    return _run(
        "forward",
        _forward_kernel,
        length // TILE,
        arrays,
        queries=own,
        keys=every,
        bias=every,
        outputs=[mixed, logsum],
        interpret=interpret,
    )


def _backward(interpret, kept, dmixed_BTHD):
    query_BTHD, key_BTHD, value_BTHD, tiles_HNRC, mixed_BTHD, logsum_BHT = kept
    batch, length, _, dim = query_BTHD.shape
    num_tiles, num_rows = tiles_HNRC.shape[1], length // TILE
    own, every = _specs(length, dim, num_tiles)
    # What softmax's gradient takes off that of each weight.
    both = (x.astype(jnp.float32) for x in (mixed_BTHD, dmixed_BTHD))
    dot_BHT = jnp.einsum("bthd,bthd->bht", *both)
    vectors, of_queries = (query_BTHD, key_BTHD, value_BTHD), (dmixed_BTHD, logsum_BHT, dot_BHT)
    arrays = *vectors, tiles_HNRC, *of_queries
    turned = *vectors, tiles_HNRC.swapaxes(2, 3), *of_queries
    like_query = query_BTHD.shape, query_BTHD.dtype, own.vectors
    a_tile = pl.BlockSpec((None, None, None, TILE, TILE), lambda i, h, b: (b, h, i, 0, 0))
    (dquery_BTHD,) = _run(
        "query",
        _query_kernel,
        num_rows,
        arrays,
        queries=own,
        keys=every,
        bias=every,
        outputs=[like_query],
        interpret=interpret,
    )
    dkey_BTHD, dvalue_BTHD = _run(
        "key_value",
        _key_value_kernel,
        num_rows,
        turned,
        queries=every,
        keys=own,
        bias=every,
        outputs=[like_query, like_query],
        interpret=interpret,
        num_stages=3,
    )
    (dtiles_BHNRC,) = _run(
        "bias",
        _bias_kernel,
        num_tiles,
        arrays,
        queries=every,
        keys=every,
        bias=own,
        outputs=[((batch, *tiles_HNRC.shape), jnp.float32, a_tile)],
        interpret=interpret,
    )
    return dquery_BTHD, dkey_BTHD, dvalue_BTHD, dtiles_BHNRC.sum(0)


_attend.defvjp(_attend_and_keep, _backward)
