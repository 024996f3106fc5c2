"""Causal self-attention with T5's relative positions, and rotary ones.

Shapes: B batch, H heads, T tokens, S most tokens, D head dimension, M model dimension.
"""

import functools

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import PartitionSpec as P

from musiclm import errors, sharding
from musiclm.nn import flash_attention

# What masked scores become: far below any score, and finite, so that gradients stay so too.
MASKED = -1e30
# What a bias starts from at most far away: softmax still lets some gradient through.
LEAST_START = -6.0
# Of rotary positions: tokens in about the slowest pair's turn, divided by 2π.
_LONGEST_PERIOD = 10_000.0


def relative_buckets(num_distances: int, num_buckets: int, max_distance: int) -> np.ndarray:
    """T5's bucket of each distance 0, 1, … to an earlier token.

    The first half of the buckets holds one distance each; the others grow logarithmically up to
    `max_distance`, and everything beyond shares the last.

    Returns:
      int32 [num_distances].
    """
    distances = np.arange(num_distances)
    exact = num_buckets // 2
    logs = np.log(np.maximum(distances, exact) / exact) / np.log(max_distance / exact)
    # The small addend keeps a distance on a bucket's edge out of the bucket below.
    coarse = exact + np.floor(logs * (num_buckets - exact) + 1e-6).astype(np.int32)
    buckets = np.where(distances < exact, distances, np.minimum(coarse, num_buckets - 1))
    return buckets.astype(np.int32)


class RelativeBias(nn.Module):
    """A learned bias for each head and bucket of distances; one for all layers, as in T5.

    Attributes:
      num_heads, num_buckets, max_distance: sizes, see `relative_buckets`.
      slopes: one a head, by which its bias starts to fall with every token nearer or farther than
        `centre`, down to `LEAST_START`; none start flat.
      centre: the distance that is preferred at the start.
    """

    num_heads: int
    num_buckets: int
    max_distance: int
    slopes: tuple[float, ...] = ()
    centre: int = 0

    @nn.compact
    def __call__(self, num_distances: int) -> jax.Array:
        """The bias of distances 0 to `num_distances` - 1: f32 [H, num_distances]."""
        table = self.param("embedding", self._init, (self.num_buckets, self.num_heads))
        return table[relative_buckets(num_distances, self.num_buckets, self.max_distance)].T

    def _init(self, key: jax.Array, shape: tuple[int, int]) -> jax.Array:
        noise = nn.initializers.normal(0.02)(key, shape)
        if not self.slopes:
            return noise
        buckets = relative_buckets(self.max_distance, self.num_buckets, self.max_distance)
        nearest = np.searchsorted(buckets, np.arange(self.num_buckets))
        off_centre = np.abs(nearest - self.centre)
        return noise + np.maximum(-np.outer(off_centre, self.slopes), LEAST_START)


def bias_of_block(bias_HS: jax.Array, start: int, stop: int) -> jax.Array:
    """The bias of queries [start, stop) on keys [0, stop), later keys masked.

    Every row is the one above moved by one place: a repetition read with a stride one shorter than
    its period gives them all without a gather.

    Returns:
      [H, stop - start, stop].
    """
    num_heads, rows = bias_HS.shape[0], stop - start
    later = jnp.full((num_heads, rows), MASKED, bias_HS.dtype)
    line = jnp.concatenate([bias_HS[:, :stop][:, ::-1], later], axis=1)
    period = stop + rows
    flat = jnp.broadcast_to(line[:, None], (num_heads, rows, period)).reshape(num_heads, -1)
    skewed = flat[:, : rows * (period - 1)].reshape(num_heads, rows, period - 1)
    return skewed[:, :, rows - 1 :]


def causal_attention(
    query_BHTD: jax.Array,
    key_BHTD: jax.Array,
    value_BHTD: jax.Array,
    bias_HS: jax.Array,
    block_size: int,
) -> jax.Array:
    """Attention of every token on itself and those before it.

    Queries go in blocks, each against its own prefix only: nearly half of the scores, those that
    the mask would hide, are never computed.

    Args:
      query_BHTD, key_BHTD, value_BHTD: heads before tokens.
      bias_HS: by distance, S ≥ T, added to the scores.
      block_size: queries a block.

    Returns:
      [B, H, T, D].
    """
    attend = _by_rows_and_heads(functools.partial(_attend_in_blocks, block_size=block_size))
    return attend(query_BHTD, key_BHTD, value_BHTD, bias_HS)


def fused_attention(
    query_BHTD: jax.Array,
    key_BHTD: jax.Array,
    value_BHTD: jax.Array,
    bias_HS: jax.Array,
    max_distance: int,
) -> jax.Array:
    """`causal_attention` by `flash_attention`, which writes no scores to memory.

    Args:
      query_BHTD, key_BHTD, value_BHTD: T a multiple of `flash_attention.TILE`.
      bias_HS: by distance, S ≥ T, constant from `max_distance` on.
      max_distance: in tokens.

    Returns:
      [B, H, T, D].

    Raises:
      UserError: JAX has no GPU here.
    """
    if jax.default_backend() != "gpu":
        raise errors.UserError(
            'TransformerConfig.attention is "flash", and JAX computes on '
            f'{jax.default_backend()} here: give "blocks", or a GPU of NVIDIA\'s'
        )
    attend = _by_rows_and_heads(functools.partial(_attend_in_flash, max_distance=max_distance))
    return attend(query_BHTD, key_BHTD, value_BHTD, bias_HS)


def _by_rows_and_heads(attend):
    # Rows and heads know nothing of one another. Sharded so, the gradient of the bias is summed
    # over devices at [H, S], where XLA would sum it at [H, T, T].
    of_heads = P(sharding.ROWS, "tensor")
    return sharding.shard_map(
        attend, in_specs=(of_heads, of_heads, of_heads, P("tensor")), out_specs=of_heads
    )


def _attend_in_flash(query_BHTD, key_BHTD, value_BHTD, bias_HS, *, max_distance):
    # Tokens before heads, as projections leave them: XLA merges these swaps with `split_heads`'.
    by_token = (x.swapaxes(1, 2) for x in (query_BHTD, key_BHTD, value_BHTD))
    return flash_attention.attend(*by_token, bias_HS, max_distance=max_distance).swapaxes(1, 2)


def _attend_in_blocks(query_BHTD, key_BHTD, value_BHTD, bias_HS, *, block_size):
    length = query_BHTD.shape[2]
    blocks = []
    for start in range(0, length, block_size):
        stop = min(start + block_size, length)
        prefix = key_BHTD[:, :, :stop], value_BHTD[:, :, :stop]
        bias = bias_of_block(bias_HS, start, stop)
        blocks.append(_attend_block(query_BHTD[:, :, start:stop], *prefix, bias))
    return jnp.concatenate(blocks, axis=2)


@jax.custom_vjp
def _add_to_rows(scores_BHQK, bias_HQK):
    return scores_BHQK + bias_HQK


def _add_to_rows_backward(_, gradient_BHQK):
    # On a CPU XLA sums slowly over rows, unless it is a product.
    def by_product(x_BHQK):
        sum_1N = jnp.ones((1, len(x_BHQK))) @ x_BHQK.reshape(len(x_BHQK), -1)
        return sum_1N.reshape(x_BHQK.shape[1:])

    gradient_HQK = jax.lax.platform_dependent(
        gradient_BHQK, cpu=by_product, default=lambda x_BHQK: x_BHQK.sum(axis=0)
    )
    return gradient_BHQK, gradient_HQK


_add_to_rows.defvjp(lambda *args: (_add_to_rows(*args), None), _add_to_rows_backward)


# Scores are by far the largest arrays of a model: computing them again in the backward pass costs
# less than writing and reading them. Inside a scan nothing merges the two passes; XLA may where all
# blocks are unrolled, which keeps the scores.
@functools.partial(jax.checkpoint, prevent_cse=False)
def _attend_block(query_BHQD, key_BHKD, value_BHKD, bias_HQK):
    scale = query_BHQD.shape[-1] ** -0.5
    scores_BHQK = jnp.einsum(
        "bhqd,bhkd->bhqk", query_BHQD * scale, key_BHKD, preferred_element_type=jnp.float32
    )
    weights_BHQK = jax.nn.softmax(_add_to_rows(scores_BHQK, bias_HQK), axis=-1).astype(
        value_BHKD.dtype
    )
    return jnp.einsum("bhqk,bhkd->bhqd", weights_BHQK, value_BHKD)


def rotary(x: jax.Array, positions: jax.Array | np.ndarray) -> jax.Array:
    """Turns each pair of channels by an angle that grows with the token's position.

    The product of a query and a key turned so depends on their distance alone (RoFormer, Su et al.
    2021, section 3.2).

    Args:
      x: [..., D] with even D; channel i is paired with channel i + D/2.
      positions: of the vectors, int; broadcast to the other axes of `x`.

    Returns:
      The same shape and dtype.
    """
    half = x.shape[-1] // 2
    speed_D = _LONGEST_PERIOD ** (-np.arange(half) / half)
    angle = (positions[..., None] * speed_D).astype(np.float32)
    cos, sin = jnp.cos(angle), jnp.sin(angle)
    first, second = jnp.split(x.astype(jnp.float32), 2, axis=-1)
    turned = jnp.concatenate([first * cos - second * sin, second * cos + first * sin], axis=-1)
    return turned.astype(x.dtype)


def split_heads(x_BTM: jax.Array, num_heads: int) -> jax.Array:
    """[B, T, H · D] to [B, H, T, D]."""
    return x_BTM.reshape(*x_BTM.shape[:2], num_heads, -1).swapaxes(1, 2)


def join_heads(x_BHTD: jax.Array) -> jax.Array:
    """[B, H, T, D] to [B, T, H · D]."""
    return x_BHTD.swapaxes(1, 2).reshape(x_BHTD.shape[0], x_BHTD.shape[2], -1)
