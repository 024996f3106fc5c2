import dataclasses
import functools
import math
import pathlib

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from musiclm.audio import ChromagramConfig, MelConfig, TempogramConfig
from musiclm.models.ast import AstConfig
from musiclm.models.bert import POOLINGS, Bert, BertConfig
from musiclm.models.mulan import MuLan, MuLanConfig
from musiclm.models.resnet import ResNet, ResNetConfig
from musiclm.nn.encoder import EncoderConfig
from musiclm.nn.spec_augment import SpecAugmentConfig

GIN = pathlib.Path(__file__).parents[2] / "gin" / "models" / "mulan"

SMALL_RESNET = ResNetConfig(
    stage_sizes=(1, 1), widths=(8, 16), bottleneck=False, stage_strides=((1, 1), (2, 2)),
    norm_groups=4,
)  # fmt: skip
SMALL_ENCODER = EncoderConfig(num_layers=2, model_dim=16, num_heads=2, ffn_dim=32)
SMALL = MuLanConfig(
    resnet=SMALL_RESNET,
    bert=BertConfig(encoder=SMALL_ENCODER, vocab_size=50, max_length=12),
    mel=MelConfig(sample_rate=1600, num_mels=16, window_size=64, hop_size=16, floor=1e-2),
    spec_augment=SpecAugmentConfig(max_frequency_width=4, max_time_width=10),
    embedding_dim=8,
    window_seconds=2.0,
    window_stride_seconds=0.5,
)
TOWERS = {
    "resnet": SMALL,
    "resnet over time": dataclasses.replace(
        SMALL, resnet=dataclasses.replace(SMALL_RESNET, frequency_as_channels=True)
    ),
    "resnet with a tempogram": dataclasses.replace(
        SMALL, tempogram=TempogramConfig(num_bands=2, num_lags=20)
    ),
    "resnet with a chromagram": dataclasses.replace(
        SMALL, chromagram=ChromagramConfig(f_max=700.0)
    ),
    "ast": dataclasses.replace(
        SMALL,
        resnet=None,
        ast=AstConfig(
            encoder=dataclasses.replace(SMALL_ENCODER, norm_first=True),
            patch_size=(8, 8), patch_strides=(8, 8), max_frames=200, num_mels=16,
        ),
    ),
}  # fmt: skip


def sounds(batch, length, seed=0):
    return np.random.default_rng(seed).normal(size=(batch, length)).astype(np.float32)


@functools.cache
def initialised(config):
    waveform_BT = np.zeros((1, config.window_samples), np.float32)
    return jax.jit(functools.partial(MuLan(config).init, train=False))(
        jax.random.key(0), waveform_BT, np.array([[2, 5, 3]], np.int32)
    )


@functools.cache
def method(config, name):
    """A method of the small model, compiled."""
    return jax.jit(functools.partial(MuLan(config).apply, initialised(config), method=name))


def sizes(config):
    """Parameters by tower, without allocating any."""
    model = MuLan(config)
    params = jax.eval_shape(
        lambda: model.init(
            jax.random.key(0),
            jnp.zeros((1, config.window_samples)),
            jnp.zeros((1, 8), jnp.int32),
            train=False,
        )
    )["params"]
    return {
        name: sum(math.prod(leaf.shape) for leaf in jax.tree.leaves(tree))
        for name, tree in params.items()
    }


def test_base_has_the_published_sizes():
    # ResNet-50: 25.557 M with its 1000-way head, 23.508 M without. BERT-base: 109.482 M.
    base = sizes(MuLanConfig())
    assert sum(base.values()) == pytest.approx(25_557_032 + 109_482_240, rel=0.02)
    assert sum(base.values()) == pytest.approx(23_508_032 + 109_482_240, rel=0.02)
    assert base["audio_tower"] == pytest.approx(23_508_032, rel=0.001)
    assert base["text_tower"] == pytest.approx(109_482_240, rel=0.001)


def test_the_ast_tower_has_the_size_of_a_base_vit():
    config = MuLanConfig(resnet=None, ast=AstConfig(), mel=MelConfig(num_mels=128))
    assert config.ast.grid == (63, 8)
    assert sizes(config)["audio_tower"] == pytest.approx(86e6, rel=0.01)


@pytest.mark.parametrize(("name", "low", "high"), [("base", 131e6, 136e6), ("mini", 6e5, 1.2e6)])
def test_gin_files_give_the_sizes_that_they_promise(name, low, high):
    gin = pytest.importorskip("gin")
    with gin.unlock_config():
        gin.clear_config()
        gin.parse_config_file(str(GIN / f"{name}.gin"))
        config = MuLanConfig(**gin.get_bindings(MuLanConfig))
        gin.clear_config()
    assert low < sum(sizes(config).values()) < high
    if name == "base":  # but for the type that fits its batch on a chip
        encoder = dataclasses.replace(BertConfig().encoder, dtype="bfloat16")
        assert config == MuLanConfig(
            resnet=ResNetConfig(dtype="bfloat16"),
            bert=dataclasses.replace(BertConfig(), encoder=encoder),
        )


@pytest.mark.slow
@pytest.mark.parametrize("tower", TOWERS)
def test_audio_embeddings_are_unit_vectors(tower):
    config = TOWERS[tower]
    waveform_BT = sounds(3, config.window_samples)
    waveform_BT[2] = 0.0  # silence
    audio_BD = np.asarray(method(config, "embed_audio")(waveform_BT))
    assert audio_BD.shape == (3, 8)
    assert audio_BD.dtype == np.float32
    assert np.isfinite(audio_BD).all()
    np.testing.assert_allclose(np.linalg.norm(audio_BD[:2], axis=1), 1.0, rtol=1e-5)


def test_text_embeddings_are_unit_vectors():
    text_ids_BL = np.array([[2, 7, 3, 0], [2, 8, 9, 3], [2, 3, 0, 0]], np.int32)
    text_BD = np.asarray(method(SMALL, "embed_text")(text_ids_BL))
    assert text_BD.shape == (3, 8)
    assert text_BD.dtype == np.float32
    np.testing.assert_allclose(np.linalg.norm(text_BD, axis=1), 1.0, rtol=1e-5)


@pytest.mark.slow
@pytest.mark.parametrize("tower", TOWERS)
def test_an_embedding_does_not_depend_on_its_batch(tower):
    config = TOWERS[tower]
    waveform_BT = sounds(3, config.window_samples)
    embed = method(config, "embed_audio")
    np.testing.assert_allclose(embed(waveform_BT)[1:2], embed(waveform_BT[1:2]), atol=1e-5)


def test_loudness_hardly_matters():
    waveform_BT = sounds(3, SMALL.window_samples)
    embed = method(SMALL, "embed_audio")
    soft_BD, loud_BD = (np.asarray(embed(x_BT)) for x_BT in (waveform_BT, 2 * waveform_BT))
    louder = 1 - (soft_BD * loud_BD).sum(1).min()
    other = 1 - (soft_BD[0] * soft_BD[1:]).sum(1).max()
    assert louder < 1e-3
    assert louder < other / 100  # noises sound nearly alike, untrained


@pytest.mark.parametrize("pooling", POOLINGS)
def test_padding_does_not_change_a_text(pooling):
    config = dataclasses.replace(SMALL, bert=dataclasses.replace(SMALL.bert, pooling=pooling))
    short_BL = np.array([[2, 5, 6, 3]] * 3, np.int32)
    long_BL = np.pad(short_BL, ((0, 0), (0, 8)))
    embed = method(config, "embed_text")
    short_BD, long_BD, other_BD = (
        np.asarray(embed(ids_BL)) for ids_BL in (short_BL, long_BL, short_BL[:, [0, 2, 1, 3]])
    )
    np.testing.assert_allclose(short_BD, long_BD, atol=1e-6)
    assert np.abs(short_BD - other_BD).max() > 1e-4  # order does


def test_in_the_mean_every_word_is_heard_whatever_attention_does():
    ids_BL = jnp.array([[2, 5, 6, 3]], jnp.int32)
    changed_BL = ids_BL.at[0, 2].set(9)

    def difference(pooling):
        tower = Bert(dataclasses.replace(SMALL.bert, pooling=pooling))
        params = tower.init(jax.random.key(0), ids_BL, train=False)["params"]
        attention = params["encoder"]["layers"]["attention"]
        params["encoder"]["layers"]["attention"] = jax.tree.map(jnp.zeros_like, attention)
        one_BD, other_BD = (
            tower.apply({"params": params}, x_BL, train=False) for x_BL in (ids_BL, changed_BL)
        )
        return jnp.abs(one_BD - other_BD).max()

    assert difference("mean") > 0.1
    assert difference("first") == 0.0


def test_a_wrong_window_is_refused():
    with pytest.raises(ValueError, match="got 3000 samples, one window has 3200"):
        MuLan(SMALL).apply(initialised(SMALL), sounds(1, 3000), method="embed_audio")


@pytest.mark.slow
@pytest.mark.parametrize("tower", ["resnet", "resnet over time"])
def test_spec_augment_acts_in_training_only(tower):
    config = TOWERS[tower]
    waveform_BT, variables = sounds(2, config.window_samples), initialised(config)

    @functools.partial(jax.jit, static_argnums=0)
    def embed(train, seed):
        return MuLan(config).apply(
            variables, waveform_BT, train=train, method="embed_audio",
            rngs={"spec_augment": jax.random.key(seed)},
        )  # fmt: skip

    np.testing.assert_array_equal(embed(False, 0), embed(False, 1))
    assert jnp.abs(embed(True, 0) - embed(True, 1)).max() > 1e-3


@pytest.mark.parametrize("logit", [-1e4, -1.0, 0.0, 1e4])
def test_temperature_stays_above_its_floor_and_at_most_one(logit):
    params = initialised(SMALL)["params"] | {"temperature_logit": jnp.float32(logit)}
    tau = MuLan(SMALL).apply({"params": params}, method="temperature")
    assert SMALL.min_temperature <= tau <= 1.0


def test_temperature_starts_where_the_config_says():
    tau = MuLan(SMALL).apply(initialised(SMALL), method="temperature")
    assert tau == pytest.approx(SMALL.initial_temperature, rel=1e-4)


@pytest.mark.slow
@pytest.mark.parametrize(("alone", "dropped"), [(0.0, 0.0), (0.5, 0.0), (0.0, 0.5), (0.25, 0.5)])
def test_so_many_rows_are_heard_by_the_chromagram_alone_or_without_it(alone, dropped):
    config = dataclasses.replace(
        TOWERS["resnet with a chromagram"], chromagram_alone=alone, chromagram_dropped=dropped
    )
    variables = initialised(config)
    rngs = {"dropout": jax.random.key(1), "spec_augment": jax.random.key(2)}
    embed = jax.jit(functools.partial(MuLan(config).apply, train=True, method="embed_audio"))
    waveform_BT = sounds(64, config.window_samples)
    whole_BD = embed(variables, waveform_BT, rngs=rngs)

    def unmoved_by(part):
        deaf = jax.tree.map(np.zeros_like, variables["params"][part])
        without = {"params": {**variables["params"], part: deaf}}
        return np.isclose(whole_BD, embed(without, waveform_BT, rngs=rngs), atol=1e-6).all(axis=1)

    alone_B, dropped_B = unmoved_by("audio_tower"), unmoved_by("harmony")
    assert not (alone_B & dropped_B).any()
    for found_B, share in ((alone_B, alone), (dropped_B, dropped)):
        assert abs(found_B.sum() - 64 * share) <= (10 if share else 0)


@pytest.mark.slow
def test_a_fresh_residual_block_is_the_identity_and_strides_shrink():
    config = dataclasses.replace(SMALL_RESNET, stem_pool=False)
    spec_BTF = sounds(1, 40 * 16).reshape(1, 40, 16)
    tower = ResNet(config)

    @jax.jit
    def run(key):
        return tower.init_with_output(key, spec_BTF, capture_intermediates=True, mutable=True)[1]

    inside = run(jax.random.key(0))["intermediates"]
    block = inside["stage0_0"]["__call__"][0]
    stem = jax.nn.relu(inside["stem_norm"]["__call__"][0])
    np.testing.assert_allclose(block, stem, atol=1e-6)
    assert inside["stage1_0"]["__call__"][0].shape == (1, 10, 4, 16)


@pytest.mark.parametrize(
    ("change", "field"),
    [
        ({"ast": AstConfig()}, "resnet is .* and ast is"),
        ({"resnet": None}, "resnet is None and ast is None"),
        ({"resnet": None, "ast": AstConfig()}, "ast.num_mels is 128"),
        ({"resnet": None, "ast": AstConfig(num_mels=16, max_frames=100)}, "ast.max_frames is 100"),
        ({"window_stride_seconds": 3.0}, "window_stride_seconds is 3.0"),
        ({"initial_temperature": 1.5}, "initial_temperature is 1.5"),
        ({"min_temperature": 0.2}, "min_temperature"),
        ({"embedding_dim": 1}, "embedding_dim is 1"),
        ({"chromagram": ChromagramConfig(f_max=900.0)}, "chromagram is .* at 1600 Hz"),
        ({"chromagram_alone": -0.1}, "chromagram_alone is -0.1"),
        (
            {"chromagram_alone": 0.5, "chromagram_dropped": 0.5},
            "chromagram_alone is 0.5, chromagram_dropped is 0.5",
        ),
    ],
)
def test_bad_configs_name_the_field(change, field):
    with pytest.raises(ValueError, match=f"MuLanConfig.{field}|{field}"):
        dataclasses.replace(SMALL, **change)


def test_bad_tower_configs_name_the_field():
    with pytest.raises(ValueError, match="describe different numbers of stages"):
        ResNetConfig(stage_sizes=(1, 1))
    with pytest.raises(ValueError, match="multiple of norm_groups"):
        ResNetConfig(widths=(24, 128, 256, 512))
    with pytest.raises(ValueError, match="dtype is 'float64'; set"):
        ResNetConfig(dtype="float64")
    with pytest.raises(ValueError, match="leaves gaps"):
        AstConfig(patch_strides=(20, 16))
    with pytest.raises(ValueError, match="norm_first is True"):
        BertConfig(encoder=EncoderConfig(norm_first=True))
    with pytest.raises(ValueError, match="max_length is 2"):
        BertConfig(max_length=2)
    with pytest.raises(ValueError, match="pooling is 'max'; set it to one of first, mean"):
        BertConfig(pooling="max")
