import dataclasses
import functools
import pathlib

import gin
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from musiclm.models import w2v_bert
from musiclm.models.w2v_bert import W2vBert, W2vBertConfig

pytestmark = pytest.mark.slow

GIN = pathlib.Path(__file__).parents[2] / "gin" / "models" / "w2v_bert"
SMALL = W2vBertConfig(
    sample_rate=1_600, num_mels=8, mel_window_size=64, conv_channels=(4, 4), model_dim=16,
    num_heads=2, ffn_dim=24, contrastive_blocks=1, mlm_blocks=3, codebook_size=12, codebook_dim=6,
    feature_layer=2, dropout=0.0,
)  # fmt: skip
MODEL = W2vBert(SMALL)
QUANTIZER = w2v_bert.GumbelQuantizer(codebook_size=16, codebook_dim=6)


def _compiled(model):
    """Op by op it takes seconds a call."""
    return jax.jit(model.apply, static_argnames=("deterministic", "method", "mutable"))


apply, quantize = _compiled(MODEL), _compiled(QUANTIZER)


def _streams(seed):
    keys = jax.random.split(jax.random.key(seed), 4)
    return dict(zip(("params", "mask", "gumbel", "dropout"), keys, strict=True))


@pytest.fixture(scope="module")
def variables(moved):
    fresh = jax.jit(lambda: MODEL.init(_streams(0), *_inputs(), 1.0, deterministic=True))()
    return fresh | {"params": moved(fresh["params"])}


def _inputs(batch=2, frames=25, seed=0):
    rng = np.random.default_rng(seed)
    waveform_BT = 0.3 * rng.normal(size=(batch, frames * SMALL.hop_length)).astype(np.float32)
    return waveform_BT, rng.random((batch, frames)) < 0.5


def _gin_config(name):
    gin.clear_config()
    gin.parse_config_file(str(GIN / name))
    try:
        return gin.get_configurable(W2vBertConfig)()
    finally:
        gin.clear_config()


def _num_parameters(config):
    hop = config.hop_length
    shapes = jax.eval_shape(
        lambda: W2vBert(config).init(
            _streams(0), jnp.zeros((1, hop)), jnp.zeros((1, 1), bool), 1.0, deterministic=False
        )
    )
    return sum(leaf.size for leaf in jax.tree.leaves(shapes))


def test_base_has_the_published_size():
    config = _gin_config("base.gin")
    assert _num_parameters(config) == pytest.approx(0.6e9, rel=0.05)
    assert config == W2vBertConfig(remat=True, remat_keeps="products", dtype="bfloat16")


def test_mini_is_small():
    assert _num_parameters(_gin_config("mini.gin")) < 3.5e6


@pytest.mark.parametrize("name", ["base.gin", "mini.gin"])
@pytest.mark.parametrize("seconds", [1, 7, 10])
def test_whole_seconds_give_exactly_25_frames_each(name, seconds):
    config = _gin_config(name)
    model = W2vBert(config)
    waveform_BT = jax.ShapeDtypeStruct((2, seconds * 16_000), jnp.float32)

    def run(waveform_BT):
        params = model.init(
            _streams(0), waveform_BT, jnp.zeros((2, seconds * 25), bool), 1.0, deterministic=True
        )
        return model.apply(params, waveform_BT, method="features")

    assert jax.eval_shape(run, waveform_BT).shape == (2, seconds * 25, config.model_dim)
    assert config.frame_rate == 25


def test_a_part_of_a_frame_is_left_off(variables):
    waveform_BT, _ = _inputs(frames=4)
    longer = np.pad(waveform_BT, ((0, 0), (0, SMALL.hop_length - 1)), constant_values=0.5)
    features = apply(variables, waveform_BT, method="features")
    np.testing.assert_array_equal(features, apply(variables, longer, method="features"))
    with pytest.raises(ValueError, match="holds no frame"):
        MODEL.apply(variables, waveform_BT[:, : SMALL.hop_length - 1], method="features")


def _outputs(variables, waveform_BT, mask_BN, seed):
    rngs = {"mask": jax.random.key(seed)}
    return apply(variables, waveform_BT, mask_BN, 1.0, deterministic=True, rngs=rngs)


def test_logits_are_not_rounded(variables):
    """In bfloat16 a code's would be, by more than it is above the next."""
    model = W2vBert(dataclasses.replace(SMALL, dtype="bfloat16"))
    rngs = {"mask": jax.random.key(0)}
    logits_BNK = jax.jit(functools.partial(model.apply, deterministic=True, rngs=rngs))(
        variables, *_inputs(frames=4), 1.0
    ).mlm_logits_BNK
    assert logits_BNK.dtype == jnp.float32
    assert (logits_BNK != logits_BNK.astype(jnp.bfloat16)).mean() > 0.9


def test_features_of_a_layer_are_those_on_the_way_to_the_logits(variables):
    waveform_BT, _ = _inputs()
    output = _outputs(variables, waveform_BT, np.zeros((2, 25), bool), 1)

    @jax.jit
    def features(variables, waveform_BT):
        layers = 0, None, 2, SMALL.mlm_blocks
        return [MODEL.apply(variables, waveform_BT, layer, method="features") for layer in layers]

    bottom, default, second, top = map(np.asarray, features(variables, waveform_BT))
    head = jax.device_get(variables["params"]["mlm_head"])
    np.testing.assert_allclose(
        top @ head["kernel"] + head["bias"], output.mlm_logits_BNK, atol=1e-4
    )
    head = jax.device_get(variables["params"]["context_head"])
    np.testing.assert_allclose(
        bottom @ head["kernel"] + head["bias"], output.context_BNC, atol=1e-4
    )
    np.testing.assert_array_equal(default, second)
    assert np.abs(default - top).max() > 0.01


def test_outputs_do_not_see_what_is_masked(variables):
    waveform_BT, mask_BN = _inputs()
    features_BNF = apply(variables, waveform_BT, method="encode")

    def total(features_BNF):
        output = MODEL.apply(
            variables, features_BNF, mask_BN, 1.0, deterministic=True, method="predict",
            rngs=_streams(1),
        )  # fmt: skip
        return jnp.sum(output.context_BNC**2) + jnp.sum(output.mlm_logits_BNK**2)

    reach_BN = np.abs(jax.jit(jax.grad(total))(features_BNF)).sum(-1)
    assert (reach_BN[mask_BN] == 0).all()
    assert (reach_BN[~mask_BN] > 0).all()


def test_masked_places_hold_fresh_random_vectors(variables):
    waveform_BT, _ = _inputs()
    everything = np.ones((2, 25), bool)
    first, other_sound, other_noise = (
        _outputs(variables, sound_BT, everything, seed).mlm_logits_BNK
        for sound_BT, seed in ((waveform_BT, 0), (waveform_BT[::-1], 0), (waveform_BT, 1))
    )
    np.testing.assert_array_equal(first, other_sound)
    assert np.abs(np.asarray(first) - other_noise).max() > 0.01


def test_targets_come_from_unmasked_features(variables):
    waveform_BT, mask_BN = _inputs()
    ids_BN, others_BN = (
        _outputs(variables, waveform_BT, hidden_BN, 1).targets.ids_BN
        for hidden_BN in (mask_BN, ~mask_BN)
    )
    np.testing.assert_array_equal(ids_BN, others_BN)


@pytest.fixture(scope="module")
def untrained():
    """Parameters of the quantizer, and features for it."""
    x_BNF = np.random.default_rng(2).normal(size=(2, 40, 10)).astype(np.float32)
    init = jax.jit(QUANTIZER.init, static_argnames="deterministic")
    return init(_streams(3), x_BNF, 1.0, deterministic=True), x_BNF


def test_quantizer_hands_out_codebook_vectors(untrained):
    params, x_BNF = untrained
    codebook_KC = np.asarray(params["params"]["codebook"])
    exact = quantize(params, x_BNF, 1.0, deterministic=True)
    ids_BN = np.asarray(exact.ids_BN)
    assert ids_BN.dtype == np.int32
    np.testing.assert_array_equal(exact.vectors_BNC, codebook_KC[ids_BN])
    np.testing.assert_array_equal(ids_BN, np.argmax(exact.probs_BNK, -1))
    noisy = quantize(params, x_BNF, 2.0, deterministic=False, rngs=_streams(4))
    np.testing.assert_array_equal(noisy.ids_BN, ids_BN)
    gaps = np.asarray(noisy.vectors_BNC)[..., None, :] - codebook_KC
    distance = np.linalg.norm(gaps, axis=-1)
    assert distance.min(-1).max() < 1e-4  # one code each, though sampled softly
    assert (distance.argmin(-1) != ids_BN).mean() > 0.02


def test_untrained_quantizer_uses_much_of_its_codebook(untrained):
    quantized = quantize(*untrained, 1.0, deterministic=True)
    assert len(np.unique(quantized.ids_BN)) > 10


def test_features_are_standardised_by_the_batch_and_by_what_was_seen(variables):
    """A large common part, as spectra have, must decide nothing."""
    waveform_BT, _ = _inputs(batch=8)

    def encode(variables, deterministic):
        return apply(
            variables, waveform_BT, deterministic=deterministic, method="encode",
            mutable="batch_stats",
        )  # fmt: skip

    now_BNF, _ = encode(variables, False)
    assert np.abs(np.mean(now_BNF, (0, 1))).max() < 1e-4
    for _ in range(800):  # the moving averages forget 1 % a step
        variables = variables | encode(variables, False)[1]
    later_BNF, _ = encode(variables, True)
    np.testing.assert_allclose(later_BNF, now_BNF, atol=0.05)


def test_gradients_reach_codebook_logits_and_features(untrained):
    def loss(params, x_BNF):
        out = QUANTIZER.apply(params, x_BNF, 1.0, deterministic=False, rngs=_streams(5))
        return jnp.sum(out.vectors_BNC * jnp.arange(6.0))

    gradients, to_features = jax.jit(jax.grad(loss, argnums=(0, 1)))(*untrained)
    assert np.abs(gradients["params"]["codebook"]).max() > 0
    assert np.abs(gradients["params"]["logits"]["kernel"]).max() > 0
    assert np.abs(to_features).max() > 0


def test_config_survives_json_lists():
    fields = dataclasses.asdict(SMALL) | {"conv_channels": [4, 4]}
    assert W2vBertConfig(**fields) == SMALL


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"sample_rate": 22_040}, "sample_rate 22040 must be a multiple of 100"),
        ({"num_mels": 6}, "num_mels 6"),
        ({"conv_channels": (4,)}, "conv_channels"),
        ({"mel_floor": 0.0}, "mel_floor"),
        ({"feature_layer": 4}, r"feature_layer 4 must lie in 0 to mlm_blocks \(3\)"),
        ({"codebook_size": 1}, "codebook_size 1"),
        ({"model_dim": 17}, "model_dim 17"),
        ({"dtype": "int8"}, "int8"),
    ],
)
def test_config_names_what_is_wrong(change, message):
    with pytest.raises(ValueError, match=message):
        dataclasses.replace(SMALL, **change)
