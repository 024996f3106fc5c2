"""Residual vector quantisation with codebooks learned by moving averages.

SoundStream (arXiv 2107.03312, III-C): level q quantises what levels 0..q-1 left over. Codebooks
are no parameters of the gradient: each entry is a moving average of the residuals that chose it;
`codebook_loss` is the alternative, to compare.
Everything here is a pure function of arrays; sums over a sharded batch are global under `jit`.

Shape legend: N vectors, D dimension, Q levels, K entries a codebook, B batch, T frames.
`...` stands for any leading dimensions.
"""

import functools

import flax.struct
import jax
import jax.numpy as jnp
from flax import linen as nn
from jax import lax

from musiclm import errors
from musiclm.nn import kmeans

# Bounds of a codec that saw no data yet: wide, and finite in half precision.
_UNBOUNDED = 1e4
# Of the moving averages over a fixed set of vectors.
_FITTED_DECAY = 0.95


def _nearest(codebook_KD: jax.Array, x: jax.Array) -> jax.Array:
    """Index of the nearest entry, int32, for `[..., D]` vectors; the same on any machine."""
    half_norms_K = 0.5 * jnp.sum(codebook_KD**2, axis=-1)
    products = jnp.matmul(x, codebook_KD.T, precision=lax.Precision.HIGHEST)
    return jnp.argmax(products - half_norms_K, axis=-1).astype(jnp.int32)


@jax.jit
def rvq_residuals(codebooks_QKD: jax.Array, x: jax.Array) -> tuple[jax.Array, jax.Array, jax.Array]:
    """Quantises level by level and keeps what each level saw.

    Args:
      codebooks_QKD: the codebooks.
      x: `[..., D]` vectors.

    Returns:
      codes `[Q, ...]` int32, residuals `[Q, ..., D]` (the input of each level) and the chosen
      entries `[Q, ..., D]`. Entries carry no gradient.
    """

    def level(residual, codebook_KD):
        codes = _nearest(codebook_KD, residual)
        chosen = lax.stop_gradient(codebook_KD[codes])
        return residual - chosen, (codes, residual, chosen)

    _, outputs = lax.scan(level, x, codebooks_QKD)
    return outputs


def rvq_encode(codebooks_QKD: jax.Array, x: jax.Array) -> jax.Array:
    """Codes `[..., Q]` int32 of vectors `[..., D]`."""
    codes, _, _ = rvq_residuals(codebooks_QKD, x)
    return jnp.moveaxis(codes, 0, -1)


@jax.jit
def rvq_decode(codebooks_QKD: jax.Array, codes: jax.Array) -> jax.Array:
    """Vectors `[..., D]` of codes `[..., Q']`; Q' ≤ Q decodes from the first levels alone."""
    levels = jnp.arange(codes.shape[-1])
    return codebooks_QKD[levels, codes].sum(axis=-2)


@flax.struct.dataclass
class CodebookStats:
    """Moving averages behind the codebooks; needed to train, not to use them.

    Attributes:
      counts_QK: vectors a batch that choose each entry.
      sums_QKD: their sum; entry = sum / count.
    """

    counts_QK: jax.Array
    sums_QKD: jax.Array


@functools.partial(
    jax.jit, static_argnames=("num_codebooks", "codebook_size", "num_iters", "batch_vectors")
)
def init_codebooks(
    key: jax.Array, x_ND: jax.Array, *, num_codebooks: int, codebook_size: int, num_iters: int,
    batch_vectors: int | None = None,
) -> tuple[jax.Array, CodebookStats]:  # fmt: skip
    """Fits codebooks by k-means, each level on the residuals of the levels before it.

    Args:
      key: randomness of the starting centroids.
      x_ND: vectors; many more than `codebook_size`, or the later levels fit next to nothing.
      num_codebooks: levels Q.
      codebook_size: entries K a level.
      num_iters: k-means iterations a level.
      batch_vectors: vectors in one later training batch, what the moving counts are relative to;
        N when None.

    Returns:
      codebooks_QKD and statistics that reproduce them.
    """

    def level(residual_ND, key):
        centroids_KD = kmeans.kmeans(key, residual_ND, codebook_size, num_iters)
        codes_N = _nearest(centroids_KD, residual_ND)
        count_K = jnp.zeros(codebook_size).at[codes_N].add(1.0)
        return residual_ND - centroids_KD[codes_N], (centroids_KD, count_K)

    _, (codebooks_QKD, counts_QK) = lax.scan(level, x_ND, jax.random.split(key, num_codebooks))
    counts_QK = counts_QK * ((batch_vectors or x_ND.shape[0]) / x_ND.shape[0])
    return codebooks_QKD, CodebookStats(
        counts_QK=counts_QK, sums_QKD=counts_QK[..., None] * codebooks_QKD
    )


def update_codebooks(
    key: jax.Array, codebooks_QKD: jax.Array, stats: CodebookStats, residuals_QND: jax.Array,
    codes_QN: jax.Array, *, decay: float, dead_below: float,
) -> tuple[jax.Array, CodebookStats]:  # fmt: skip
    """One moving-average step, then replaces entries that hardly anything chooses.

    Args:
      key: picks the replacements.
      codebooks_QKD: the codebooks that made the codes.
      stats: their statistics.
      residuals_QND: the vectors each level saw.
      codes_QN: what they chose.
      decay: of the moving averages, 0.99 in the paper.
      dead_below: see `replace_dead`.

    Returns:
      codebooks_QKD and statistics.
    """
    stats = update_stats(stats, residuals_QND, codes_QN, decay=decay)
    counts_QK1 = stats.counts_QK[..., None]
    # With no bar (dead_below 0) a count can decay to nothing: the entry then stays where it was.
    codebooks_QKD = jnp.where(
        counts_QK1 > 1e-8, stats.sums_QKD / jnp.maximum(counts_QK1, 1e-8), codebooks_QKD
    )
    return replace_dead(key, codebooks_QKD, stats, residuals_QND, dead_below=dead_below)


def update_stats(
    stats: CodebookStats, residuals_QND: jax.Array, codes_QN: jax.Array, *, decay: float
) -> CodebookStats:
    """One step of the moving averages, see `update_codebooks`."""

    def gather(residuals_ND, codes_N, sums_KD):
        counts_K = jnp.zeros(sums_KD.shape[0]).at[codes_N].add(1.0)
        return counts_K, jnp.zeros_like(sums_KD).at[codes_N].add(residuals_ND)

    counts_QK, sums_QKD = jax.vmap(gather)(residuals_QND, codes_QN, stats.sums_QKD)
    return CodebookStats(
        counts_QK=decay * stats.counts_QK + (1 - decay) * counts_QK,
        sums_QKD=decay * stats.sums_QKD + (1 - decay) * sums_QKD,
    )


def replace_dead(
    key: jax.Array, codebooks_QKD: jax.Array, stats: CodebookStats, residuals_QND: jax.Array,
    *, dead_below: float,
) -> tuple[jax.Array, CodebookStats]:  # fmt: skip
    """Makes entries that hardly anything chooses random vectors of the batch.

    Args:
      key: picks them.
      codebooks_QKD: the codebooks.
      stats: their statistics.
      residuals_QND: the vectors each level saw.
      dead_below: the moving count below which an entry is dead. The paper's 2 belongs to its
        batch; a count is about N / K for an average entry.

    Returns:
      codebooks_QKD and statistics.
    """
    num_levels, codebook_size, _ = codebooks_QKD.shape
    dead_QK = stats.counts_QK < dead_below
    picks_QK = jax.random.randint(key, (num_levels, codebook_size), 0, residuals_QND.shape[1])
    fresh_QKD = jnp.take_along_axis(residuals_QND, picks_QK[..., None], axis=1)
    dead_QK1 = dead_QK[..., None]
    return jnp.where(dead_QK1, fresh_QKD, codebooks_QKD), CodebookStats(
        # A fresh entry starts at twice the bar, or it would be dead again after the next batch.
        counts_QK=jnp.where(dead_QK, 2 * dead_below, stats.counts_QK),
        sums_QKD=jnp.where(dead_QK1, 2 * dead_below * fresh_QKD, stats.sums_QKD),
    )


def codebook_loss(
    codebooks_QKD: jax.Array, residuals_QND: jax.Array, codes_QN: jax.Array
) -> jax.Array:
    """What codebooks that gradients learn minimise, in place of moving averages.

    The mean squared distance of entries from the residuals that chose them, a sum over the levels
    (VQ-VAE, arXiv 1711.00937, the second term of equation 3). Residuals carry no gradient.
    """
    chosen_QND = jnp.take_along_axis(codebooks_QKD, codes_QN[..., None], axis=1)
    return jnp.sum(jnp.mean((chosen_QND - lax.stop_gradient(residuals_QND)) ** 2, axis=(1, 2)))


def perplexity(counts_QK: jax.Array) -> jax.Array:
    """exp(entropy) of the use of entries, per level `[Q]`: 1 (collapsed) to K (uniform)."""
    p_QK = counts_QK / jnp.maximum(counts_QK.sum(axis=-1, keepdims=True), 1e-8)
    return jnp.exp(-jnp.sum(p_QK * jnp.log(jnp.maximum(p_QK, 1e-12)), axis=-1))


@functools.partial(jax.jit, static_argnames=("num_codebooks", "codebook_size", "num_iters"))
def fit_rvq(
    key: jax.Array, x_ND: jax.Array, *, num_codebooks: int, codebook_size: int, num_iters: int
) -> jax.Array:
    """Fits an RVQ to a fixed set of vectors: k-means levels, then moving-average passes over it.

    MusicLM (arXiv 2301.11325, 3.1) quantises frozen MuLan embeddings so.

    Args:
      key: randomness.
      x_ND: the vectors, float32.
      num_codebooks: levels Q.
      codebook_size: entries K a level.
      num_iters: k-means iterations a level, and moving-average passes after them.

    Returns:
      codebooks_QKD.

    Raises:
      UserError: fewer vectors than entries.
    """
    if x_ND.shape[0] < codebook_size:
        raise errors.UserError(
            f"fit_rvq has {x_ND.shape[0]} vectors for codebook_size={codebook_size}: give more "
            "batches or ask for fewer entries"
        )
    init_key, key = jax.random.split(key)
    codebooks_QKD, stats = init_codebooks(
        init_key, x_ND, num_codebooks=num_codebooks, codebook_size=codebook_size,
        num_iters=num_iters,
    )  # fmt: skip

    def sweep(carry, key):
        codebooks_QKD, stats = carry
        codes_QN, residuals_QND, _ = rvq_residuals(codebooks_QKD, x_ND)
        codebooks_QKD, stats = update_codebooks(
            key, codebooks_QKD, stats, residuals_QND, codes_QN, decay=_FITTED_DECAY, dead_below=0.5
        )
        return (codebooks_QKD, stats), None

    keys = jax.random.split(key, num_iters)
    (codebooks_QKD, _), _ = lax.scan(sweep, (codebooks_QKD, stats), keys)
    return codebooks_QKD


@flax.struct.dataclass
class Quantized:
    """Result of quantising a batch of latents.

    Attributes:
      values_BTD: sum of the chosen entries of the levels in use, straight-through gradient.
      codes_QBT: int32, all levels.
      residuals_QBTD: input of each level.
      commitment: mean squared distance of residuals from the entries chosen, levels in use.
    """

    values_BTD: jax.Array
    codes_QBT: jax.Array
    residuals_QBTD: jax.Array
    commitment: jax.Array


class ResidualVectorQuantizer(nn.Module):
    """The codebooks (collection "codebooks") and their use; `update_codebooks` trains them.

    Collection entries: `centroids_QKD`, and `bounds_2D`: least and greatest value of each
    dimension that quantised latents took in training. Codes sampled by a language model can sum
    to a point that no encoder makes and that a decoder would amplify; `decode` clips to the
    bounds.

    Attributes:
      num_codebooks: levels Q.
      codebook_size: entries K.
      dim: dimension D.
    """

    num_codebooks: int
    codebook_size: int
    dim: int

    def setup(self):
        shape = (self.num_codebooks, self.codebook_size, self.dim)
        self.centroids = self.variable("codebooks", "centroids_QKD", jnp.zeros, shape)
        self.bounds = self.variable(
            "codebooks", "bounds_2D",
            lambda: jnp.stack([jnp.full(self.dim, -_UNBOUNDED), jnp.full(self.dim, _UNBOUNDED)]),
        )  # fmt: skip

    def __call__(self, z_BTD: jax.Array, num_levels_B: jax.Array | None = None) -> Quantized:
        """Quantises, with the first `num_levels_B` levels of each example (all when None)."""
        z_BTD = z_BTD.astype(jnp.float32)
        codes_QBT, residuals_QBTD, chosen_QBTD = rvq_residuals(self.centroids.value, z_BTD)
        levels_Q = jnp.arange(self.num_codebooks)
        if num_levels_B is None:
            num_levels_B = jnp.full(z_BTD.shape[0], self.num_codebooks)
        used_QB = (levels_Q[:, None] < num_levels_B).astype(z_BTD.dtype)
        values_BTD = jnp.einsum("qbtd,qb->btd", chosen_QBTD, used_QB)
        errors_QB = jnp.mean((residuals_QBTD - chosen_QBTD) ** 2, axis=(2, 3))
        return Quantized(
            values_BTD=z_BTD + lax.stop_gradient(values_BTD - z_BTD),
            codes_QBT=codes_QBT,
            residuals_QBTD=lax.stop_gradient(residuals_QBTD),
            commitment=jnp.sum(errors_QB * used_QB) / jnp.sum(used_QB),
        )

    def encode(self, z_BTD: jax.Array) -> jax.Array:
        """Codes `[B, T, Q]` int32."""
        return rvq_encode(self.centroids.value, z_BTD.astype(jnp.float32))

    def decode(self, codes_BTQ: jax.Array) -> jax.Array:
        """Latents `[B, T, D]` of codes of the first one to Q levels, within the bounds."""
        low_D, high_D = self.bounds.value
        return jnp.clip(rvq_decode(self.centroids.value, codes_BTQ), low_D, high_D)
