import itertools

import hypothesis
import hypothesis.strategies as st
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from musiclm.nn import quantization

encode, decode = jax.jit(quantization.rvq_encode), jax.jit(quantization.rvq_decode)
update_codebooks = jax.jit(quantization.update_codebooks)
perplexity = jax.jit(quantization.perplexity)
MODULE = quantization.ResidualVectorQuantizer(num_codebooks=3, codebook_size=8, dim=4)
quantize = jax.jit(MODULE.apply, static_argnames="method")


def _clusters(seed, num_vectors=600, dim=4):
    rng = np.random.default_rng(seed)
    centres = rng.normal(size=(12, dim)) * rng.uniform(0.5, 4)
    noise = rng.normal(size=(num_vectors, dim)) * 0.3
    return (centres[rng.integers(0, 12, num_vectors)] + noise).astype(np.float32)


def _fit(x_ND, num_codebooks=3, codebook_size=8):
    return quantization.fit_rvq(
        jax.random.key(0), x_ND, num_codebooks=num_codebooks, codebook_size=codebook_size,
        num_iters=8,
    )  # fmt: skip


@hypothesis.given(seed=st.integers(0, 10_000))
@hypothesis.settings(max_examples=10, deadline=None)
def test_residuals_shrink_with_every_level_of_a_fitted_rvq(seed):
    x_ND = _clusters(seed)
    codebooks_QKD = _fit(x_ND)
    codes_NQ = np.asarray(encode(codebooks_QKD, x_ND))
    errors = [(x_ND**2).mean()]
    for levels in range(1, 4):
        decoded = decode(codebooks_QKD, codes_NQ[:, :levels])
        errors.append(((x_ND - decoded) ** 2).mean())
    assert all(after <= before + 1e-6 for before, after in itertools.pairwise(errors))
    assert errors[-1] < 0.1 * errors[0]


@hypothesis.given(seed=st.integers(0, 10_000))
@hypothesis.settings(max_examples=10, deadline=None)
def test_codes_choose_the_nearest_entry_at_every_level(seed):
    rng = np.random.default_rng(seed)
    codebooks_QKD = rng.normal(size=(3, 5, 4)).astype(np.float32)
    x_ND = rng.normal(size=(20, 4)).astype(np.float32)
    codes_NQ = np.asarray(encode(codebooks_QKD, x_ND))
    residual_ND = x_ND
    for level in range(3):
        distances_NK = ((residual_ND[:, None] - codebooks_QKD[level]) ** 2).sum(-1)
        chosen_N = distances_NK[np.arange(20), codes_NQ[:, level]]
        np.testing.assert_allclose(chosen_N, distances_NK.min(-1), atol=1e-4)
        residual_ND = residual_ND - codebooks_QKD[level, codes_NQ[:, level]]
    np.testing.assert_allclose(decode(codebooks_QKD, codes_NQ), x_ND - residual_ND, atol=1e-4)


def test_codes_take_any_leading_dimensions():
    codebooks_QKD = _fit(_clusters(0))
    x = _clusters(1).reshape(10, 20, 3, 4)
    codes = np.asarray(encode(codebooks_QKD, x))
    assert codes.shape == (10, 20, 3, 3)
    assert codes.dtype == np.int32
    flat = encode(codebooks_QKD, x.reshape(-1, 4))
    np.testing.assert_array_equal(codes.reshape(-1, 3), flat)


def test_moving_average_equals_the_hand_computation():
    codebooks_QKD = np.array([[[0.0, 0.0], [4.0, 4.0]]])
    stats = quantization.CodebookStats(
        counts_QK=np.array([[3.0, 5.0]]), sums_QKD=np.array([[[0.0, 0.0], [20.0, 20.0]]])
    )
    residuals_QND = np.array([[[1.0, 0.0], [0.0, 1.0], [5.0, 3.0]]])
    codes_QN = np.array([[0, 0, 1]])
    codebooks_QKD, stats = jax.device_get(
        update_codebooks(
            jax.random.key(0), codebooks_QKD, stats, residuals_QND, codes_QN,
            decay=0.9, dead_below=0.5,
        )
    )  # fmt: skip
    np.testing.assert_allclose(stats.counts_QK, [[0.9 * 3 + 0.1 * 2, 0.9 * 5 + 0.1]], rtol=1e-6)
    np.testing.assert_allclose(stats.sums_QKD[0, 0], [0.1, 0.1], rtol=1e-6)
    np.testing.assert_allclose(codebooks_QKD[0, 0], [0.1 / 2.9, 0.1 / 2.9], rtol=1e-6)
    np.testing.assert_allclose(codebooks_QKD[0, 1], [18.5 / 4.6, 18.3 / 4.6], rtol=1e-6)


def test_dead_entries_become_vectors_of_the_batch():
    x_ND = _clusters(3)
    far = np.full((1, 4), 1e3, np.float32)
    codebooks_QKD = np.concatenate([x_ND[:7], far])[None]
    stats = quantization.CodebookStats(
        counts_QK=np.array([[80.0] * 7 + [1.0]]),
        sums_QKD=np.concatenate([80.0 * x_ND[:7], far])[None],
    )
    codes_QN, residuals_QND, _ = quantization.rvq_residuals(codebooks_QKD, x_ND)
    codebooks_QKD, stats = jax.device_get(
        update_codebooks(
            jax.random.key(0), codebooks_QKD, stats, residuals_QND, codes_QN,
            decay=0.99, dead_below=2.0,
        )
    )  # fmt: skip
    fresh_D = codebooks_QKD[0, 7]
    assert np.abs(x_ND - fresh_D).max(-1).min() < 1e-5
    assert stats.counts_QK[0, 7] == 4.0
    assert (stats.counts_QK >= 2.0).all()


def test_the_loss_of_codebooks_is_least_at_the_means_of_what_chose_them():
    x_ND = _clusters(4)
    codes_QN, residuals_QND, _ = quantization.rvq_residuals(x_ND[None, :3], x_ND)
    means_QKD = np.array([[x_ND[codes_QN[0] == k].mean(0) for k in range(3)]])
    gradient_QKD = jax.grad(quantization.codebook_loss)
    at_means_QKD = gradient_QKD(means_QKD, residuals_QND, codes_QN)
    np.testing.assert_allclose(at_means_QKD, 0, atol=1e-5)
    # One away from it, by hand: 2 n / (N D) in each dimension.
    shares_K1 = np.bincount(codes_QN[0], minlength=3)[:, None] / len(x_ND)
    beyond_QKD = gradient_QKD(means_QKD + 1, residuals_QND, codes_QN)
    expected_KD = np.broadcast_to(2 * shares_K1 / x_ND.shape[1], (3, x_ND.shape[1]))
    np.testing.assert_allclose(beyond_QKD[0], expected_KD, rtol=1e-3)


def test_kmeans_start_beats_random_entries_and_counts_match():
    x_ND = _clusters(4)
    codebooks_QKD, stats = jax.device_get(
        quantization.init_codebooks(
            jax.random.key(0), x_ND, num_codebooks=2, codebook_size=12, num_iters=10,
            batch_vectors=60,
        )
    )  # fmt: skip
    np.testing.assert_allclose(stats.counts_QK.sum(-1), 60.0, rtol=1e-5)
    np.testing.assert_allclose(
        stats.sums_QKD, stats.counts_QK[..., None] * codebooks_QKD, rtol=1e-5, atol=1e-6
    )
    rng = np.random.default_rng(1)
    random_QKD = (x_ND.std() * rng.normal(size=codebooks_QKD.shape)).astype(np.float32)

    def error(codebooks_QKD):
        codes_NQ = encode(codebooks_QKD, x_ND)
        return ((x_ND - decode(codebooks_QKD, codes_NQ)) ** 2).mean()

    assert error(codebooks_QKD) < 0.3 * error(random_QKD)


def test_perplexity_spans_collapse_to_uniform():
    counts_QK = np.array([[5.0, 0.0, 0.0, 0.0], [2.0, 2.0, 2.0, 2.0]])
    np.testing.assert_allclose(perplexity(counts_QK), [1.0, 4.0], rtol=1e-5)


def _variables(x_BTD):
    centroids_QKD = _fit(x_BTD.reshape(-1, 4))
    bounds_2D = np.array([[-20.0] * 4, [20.0] * 4], np.float32)
    return {"codebooks": {"centroids_QKD": centroids_QKD, "bounds_2D": bounds_2D}}


def test_quantizer_dropout_uses_each_examples_first_levels():
    x_BTD = _clusters(5).reshape(3, 200, 4)
    variables = _variables(x_BTD)
    quantized = jax.device_get(quantize(variables, x_BTD, np.array([1, 2, 3])))
    codes_BTQ = np.moveaxis(quantized.codes_QBT, 0, -1)
    for example, levels in enumerate((1, 2, 3)):
        used_BTQ = codes_BTQ[example : example + 1, :, :levels]
        (expected_TD,) = np.asarray(quantize(variables, used_BTQ, method="decode"))
        np.testing.assert_allclose(quantized.values_BTD[example], expected_TD, atol=1e-4)


def test_gradient_passes_straight_through():
    x_BTD = _clusters(6).reshape(3, 200, 4)
    variables = _variables(x_BTD)
    cotangent_BTD = np.random.default_rng(0).normal(size=x_BTD.shape).astype(np.float32)
    gradient_BTD = jax.jit(
        jax.grad(lambda x_BTD: jnp.sum(quantize(variables, x_BTD).values_BTD * cotangent_BTD))
    )(x_BTD)
    np.testing.assert_allclose(gradient_BTD, cotangent_BTD, rtol=1e-5)


def test_commitment_is_the_mean_over_levels_and_pulls_to_the_entries():
    x_BTD = _clusters(7).reshape(3, 200, 4)
    variables = _variables(x_BTD)
    _, residuals_QND, chosen_QND = quantization.rvq_residuals(
        variables["codebooks"]["centroids_QKD"], x_BTD.reshape(-1, 4)
    )
    gap_QND = np.asarray(residuals_QND) - chosen_QND
    commitment, gradient_BTD = jax.jit(
        jax.value_and_grad(lambda x_BTD: quantize(variables, x_BTD).commitment)
    )(x_BTD)
    assert float(commitment) == pytest.approx(float((gap_QND**2).mean()), rel=1e-4)
    expected_ND = 2 * gap_QND.sum(0) / gap_QND.size
    np.testing.assert_allclose(np.reshape(gradient_BTD, (-1, 4)), expected_ND, atol=1e-7)


def test_decode_stays_within_what_training_saw():
    x_BTD = _clusters(8).reshape(3, 200, 4)
    variables = _variables(x_BTD)
    low_D, high_D = x_BTD.min((0, 1)), x_BTD.max((0, 1))
    variables["codebooks"]["bounds_2D"] = np.stack([low_D, high_D])
    codes_BTQ = np.random.default_rng(0).integers(0, 8, (2, 500, 3), dtype=np.int32)
    decoded_BTD = np.asarray(quantize(variables, codes_BTQ, method="decode"))
    assert ((decoded_BTD >= low_D) & (decoded_BTD <= high_D)).all()


def test_fit_rvq_asks_for_enough_vectors():
    with pytest.raises(ValueError, match="5 vectors for codebook_size=8"):
        _fit(_clusters(0)[:5])


def test_codes_do_not_depend_on_the_machine():
    """A TPU's own products are of bfloat16."""
    program = str(jax.make_jaxpr(quantization.rvq_encode)(jnp.ones((2, 8, 4)), jnp.ones((5, 4))))
    assert program.count("dot_general[") == 1
    assert "precision=(Precision.HIGHEST, Precision.HIGHEST)" in program
