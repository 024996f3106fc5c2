"""k-means: recovers clusters, never gets worse, and its chunks do not show."""

import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from musiclm.nn import kmeans as clustering
from musiclm.nn.kmeans import _farthest, kmeans

assign = jax.jit(clustering.assign, static_argnames="chunk_size")


@jax.jit
def inertia(centroids_KD, x_ND):
    """Mean squared distance of the points to their nearest centroid."""
    gap_ND = x_ND - centroids_KD[clustering.assign(centroids_KD, x_ND)]
    return jnp.mean(jnp.sum(jnp.square(gap_ND), axis=-1))


def _normal(*shape):
    return np.random.default_rng(1).normal(size=shape).astype(np.float32)


def _blobs(num_clusters=12, per_cluster=40, dim=5, seed=0):
    rng = np.random.default_rng(seed)
    centres_KD = rng.normal(size=(num_clusters, dim)) * 20
    labels_N = np.repeat(np.arange(num_clusters), per_cluster)
    x_ND = centres_KD[labels_N] + rng.normal(size=(len(labels_N), dim)) * 0.1
    order = rng.permutation(len(labels_N))
    return x_ND[order].astype(np.float32), labels_N[order], centres_KD


def test_recovers_separated_blobs_far_from_the_origin():
    x_ND, labels_N, centres_KD = _blobs()
    centroids_KD = np.asarray(kmeans(jax.random.key(0), x_ND + 300.0, 12, 15)) - 300.0
    distances = np.linalg.norm(centres_KD[:, None] - centroids_KD[None], axis=-1)
    assert distances.min(axis=1).max() < 0.2
    ids_N = np.asarray(assign(centroids_KD, x_ND))
    assert len(set(zip(ids_N.tolist(), labels_N.tolist(), strict=True))) == 12


def test_inertia_never_rises():
    x_ND = _normal(600, 4)
    history = [float(inertia(kmeans(jax.random.key(2), x_ND, 40, n), x_ND)) for n in (0, 1, 3, 8)]
    assert all(later <= earlier + 1e-5 for earlier, later in itertools.pairwise(history))
    assert history[-1] < 0.95 * history[0]


def test_empty_clusters_move_to_distinct_far_points():
    x_ND = jnp.arange(6.0)[:, None]
    distances_N = jnp.array([0.0, 5.0, 1.0, 9.0, 2.0, 0.5])
    seeds = jax.jit(_farthest)(x_ND, distances_N, jnp.array([False, True, False, True]))
    assert float(seeds[1, 0]) == 3.0
    assert float(seeds[3, 0]) == 1.0


def test_every_cluster_owns_a_point_though_most_points_coincide():
    # Nearly all the mass in one place: clusters that start there would stay empty.
    x_ND = np.zeros((500, 3), np.float32)
    x_ND[:30] = np.random.default_rng(0).normal(size=(30, 3)) * 5
    centroids_KD = kmeans(jax.random.key(3), x_ND, 16, 20)
    assert len(np.unique(np.asarray(assign(centroids_KD, x_ND)))) == 16


def test_fewer_points_than_clusters_keeps_every_point():
    x_ND = _normal(5, 3)
    assert float(inertia(kmeans(jax.random.key(5), x_ND, 8, 4), x_ND)) < 1e-6


@settings(max_examples=8, deadline=None)
@given(
    num_points=st.integers(1, 70),
    num_clusters=st.integers(1, 9),
    chunk_size=st.integers(1, 80),
    seed=st.integers(0, 99),
)
def test_assign_is_the_brute_force_argmin(num_points, num_clusters, chunk_size, seed):
    rng = np.random.default_rng(seed)
    centroids_KD = rng.normal(size=(num_clusters, 3)).astype(np.float32)
    x_ND = rng.normal(size=(num_points, 3)).astype(np.float32)
    expected = ((x_ND[:, None] - centroids_KD[None]) ** 2).sum(-1).argmin(-1)
    ids_N = assign(centroids_KD, x_ND, chunk_size=chunk_size)
    assert ids_N.dtype == jnp.int32
    np.testing.assert_array_equal(ids_N, expected)


def test_chunked_equals_whole_and_leading_axes_are_kept():
    x_ND = _normal(7, 31, 4)
    flat_ND = x_ND.reshape(-1, 4)
    whole_KD = kmeans(jax.random.key(7), flat_ND, 10, 6)
    chunked_KD = kmeans(jax.random.key(7), flat_ND, 10, 6, chunk_size=50)
    np.testing.assert_allclose(whole_KD, chunked_KD, atol=1e-5)
    ids = assign(whole_KD, x_ND, chunk_size=13)
    assert ids.shape == (7, 31)
    np.testing.assert_array_equal(np.ravel(ids), assign(whole_KD, flat_ND))


def test_same_key_same_centroids():
    x_ND = _normal(500, 3)
    first, second = (kmeans(jax.random.key(9), x_ND, 16, 20) for _ in range(2))
    np.testing.assert_array_equal(first, second)


def test_assign_names_shapes_that_do_not_fit():
    with pytest.raises(ValueError, match=r"centroids_KD \(4, 3\) and x_ND \(2, 5\)"):
        assign(jnp.zeros((4, 3)), jnp.zeros((2, 5)))
