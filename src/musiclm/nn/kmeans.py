"""k-means in bounded memory: semantic tokens, and the first codebooks of a vector quantizer.

Shapes: N points, K clusters, D dimensions, C points a chunk.
"""

import functools

import jax
import jax.numpy as jnp

_CHUNK_SIZE = 8192  # points whose distances to all clusters are held at once
_SEEDING_POINTS_PER_CLUSTER = 32  # k-means++ walks the data once a cluster, so it sees a sample


def assign(centroids_KD: jax.Array, x_ND: jax.Array, *, chunk_size: int = _CHUNK_SIZE) -> jax.Array:
    """Index of the nearest centroid of every point.

    Args:
      centroids_KD: float [K, D].
      x_ND: float [..., D], any leading axes.
      chunk_size: points handled at once; memory is chunk_size × K floats.

    Returns:
      int32 [...], in [0, K); the lowest index wins a tie.

    Raises:
      ValueError: when the last axes differ.
    """
    if centroids_KD.ndim != 2 or x_ND.shape[-1] != centroids_KD.shape[-1]:
        raise ValueError(
            f"centroids_KD {centroids_KD.shape} and x_ND {x_ND.shape} must agree on their last "
            "axis, and centroids_KD must have two axes"
        )
    chunks_MCD, _ = _chunked(x_ND.reshape(-1, x_ND.shape[-1]), chunk_size)
    ids_MC = jax.lax.map(lambda x_CD: _nearest(centroids_KD, x_CD)[0], chunks_MCD)
    num_points = x_ND[..., 0].size
    return ids_MC.reshape(-1)[:num_points].reshape(x_ND.shape[:-1])


@functools.partial(jax.jit, static_argnames=("num_clusters", "num_iters", "chunk_size"))
def kmeans(
    key: jax.Array,
    x_ND: jax.Array,
    num_clusters: int,
    num_iters: int,
    *,
    chunk_size: int = _CHUNK_SIZE,
) -> jax.Array:
    """Lloyd's k-means after k-means++ seeding on a random sample of the points.

    A cluster that owns no point moves onto one of the points that lie farthest from their own
    centroid, a different one for each empty cluster. An empty cluster contributes nothing to
    the inertia, so moving it can only lower it: the inertia never rises.

    Args:
      key: random key; the same key and data give the same centroids.
      x_ND: float [N, D]. With fewer points than clusters, some centroids coincide.
      num_clusters: K.
      num_iters: Lloyd iterations, at least 0 (0: the seeds themselves).
      chunk_size: points handled at once; memory is chunk_size × K floats.

    Returns:
      centroids_KD, float [K, D].
    """
    x_ND = x_ND.astype(jnp.float32)
    # Distances below are differences of squared norms: centred data keeps their digits.
    centre_D = jnp.mean(x_ND, axis=0)
    x_ND = x_ND - centre_D
    chunks_MCD, valid_MC = _chunked(x_ND, chunk_size)

    def lloyd(centroids_KD, _):
        def gather(totals, chunk):
            sums_KD, counts_K = totals
            x_CD, valid_C = chunk
            ids_C, distances_C = _nearest(centroids_KD, x_CD)
            owner_CK = jax.nn.one_hot(ids_C, num_clusters) * valid_C[:, None]
            sums_KD += jnp.matmul(owner_CK.T, x_CD, precision=jax.lax.Precision.HIGHEST)
            return (sums_KD, counts_K + owner_CK.sum(0)), jnp.where(valid_C, distances_C, -1.0)

        empty = (jnp.zeros_like(centroids_KD), jnp.zeros(num_clusters))
        (sums_KD, counts_K), distances_MC = jax.lax.scan(gather, empty, (chunks_MCD, valid_MC))
        means_KD = sums_KD / jnp.maximum(counts_K, 1.0)[:, None]
        seeds_KD = _farthest(x_ND, distances_MC.reshape(-1)[: x_ND.shape[0]], counts_K == 0)
        return jnp.where((counts_K > 0)[:, None], means_KD, seeds_KD), None

    seeds_KD = _plus_plus(key, x_ND, num_clusters)
    centroids_KD, _ = jax.lax.scan(lloyd, seeds_KD, None, length=num_iters)
    return centroids_KD + centre_D


def _nearest(centroids_KD, x_CD):
    """Index of, and squared distance to, the nearest centroid of each point of one chunk."""
    products_CK = jnp.matmul(x_CD, centroids_KD.T, precision=jax.lax.Precision.HIGHEST)
    partial_CK = jnp.sum(jnp.square(centroids_KD), axis=-1) - 2.0 * products_CK
    distances_C = partial_CK.min(-1) + jnp.sum(jnp.square(x_CD), axis=-1)
    return partial_CK.argmin(-1).astype(jnp.int32), jnp.maximum(distances_C, 0.0)


def _chunked(x_ND, chunk_size):
    """Splits points into equal chunks, the last one padded with zeros; and which are real."""
    num_points, dim = x_ND.shape
    chunk_size = max(1, min(chunk_size, num_points))
    num_chunks = -(-num_points // chunk_size)
    padded_ND = jnp.pad(x_ND, ((0, num_chunks * chunk_size - num_points), (0, 0)))
    valid_MC = (jnp.arange(num_chunks * chunk_size) < num_points).reshape(num_chunks, chunk_size)
    return padded_ND.reshape(num_chunks, chunk_size, dim), valid_MC


def _farthest(x_ND, distances_N, empty_K):
    """For each empty cluster its own one of the points farthest from their centroids."""
    num_candidates = min(empty_K.shape[0], distances_N.shape[0])
    _, order_N = jax.lax.top_k(distances_N, num_candidates)
    rank_K = jnp.clip(jnp.cumsum(empty_K) - 1, 0, num_candidates - 1)
    return x_ND[order_N[rank_K]]


def _plus_plus(key, x_ND, num_clusters):
    """k-means++: each seed drawn with probability proportional to its squared distance."""
    sample_key, first_key, rest_key = jax.random.split(key, 3)
    num_sampled = min(x_ND.shape[0], num_clusters * _SEEDING_POINTS_PER_CLUSTER)
    if num_sampled < x_ND.shape[0]:
        x_ND = jax.random.choice(sample_key, x_ND, (num_sampled,), replace=False)

    def squared_distance(point_D):
        return jnp.sum(jnp.square(x_ND - point_D), axis=-1)

    def draw(distances_N, key):
        # Where every point already is a seed, all distances are 0 and any point will do.
        index = jax.random.categorical(key, jnp.log(distances_N + 1e-30))
        return jnp.minimum(distances_N, squared_distance(x_ND[index])), x_ND[index]

    first_D = x_ND[jax.random.randint(first_key, (), 0, num_sampled)]
    _, rest_KD = jax.lax.scan(
        draw, squared_distance(first_D), jax.random.split(rest_key, num_clusters - 1)
    )
    return jnp.concatenate([first_D[None], rest_KD])
