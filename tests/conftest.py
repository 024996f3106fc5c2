"""Fixtures that several folders of tests share."""

import functools
import importlib.metadata
import os
import pathlib
import shutil

import hypothesis
import pytest

# libtpu is here to compile for TPUs, and JAX would look for one with it.
os.environ.setdefault("JAX_PLATFORMS", "cpu")

# Tests run side by side, one on each core: more threads would only wait, and spin while they do.
os.environ.setdefault("OPENBLAS_NUM_THREADS", "1")

# Most programs of the tests run a few times: LLVM's optimisation takes longer than it saves. XLA's
# own stays, and with it what the tests say of programs and their memory. In one piece they compile
# sooner than in pieces for cores that are busy. Processes that a test starts add their flags to
# these: compiled otherwise, they differ in the last bit.
_FLAGS = [
    os.environ.get("XLA_FLAGS", ""),
    "--xla_backend_optimization_level=0",
    "--xla_cpu_parallel_codegen_split_count=1",
]
if importlib.metadata.version("jaxlib").startswith("0.10."):
    # It compiles twice as fast without its newer code generator, which later ones insist on.
    _FLAGS.append("--xla_cpu_use_fusion_emitters=false")
os.environ["XLA_FLAGS"] = " ".join(_FLAGS).strip()

# A first example compiles; how long that takes says nothing about what is tested.
hypothesis.settings.register_profile("no_deadline", deadline=None)
hypothesis.settings.load_profile("no_deadline")


@pytest.fixture(scope="module")
def own_compilation_cache(tmp_path_factory):
    """Commands keep what they compile out of the person's home, and leave no variable set."""
    with pytest.MonkeyPatch.context() as patch:
        folder = tmp_path_factory.getbasetemp() / "compiled"
        patch.setenv("JAX_COMPILATION_CACHE_DIR", str(folder))
        yield


@pytest.fixture(scope="session")
def moved():
    """Moves all weights, as training does: branches that start at zero would hide the rest."""
    import jax
    import jax.numpy as jnp
    import numpy as np

    def moved(params):
        rng = np.random.default_rng(9)
        return jax.tree.map(
            lambda x: jnp.asarray((x + 0.1 * rng.normal(size=x.shape)).astype(x.dtype)),
            jax.device_get(params),
        )

    return moved


@pytest.fixture
def flash_interpreted(monkeypatch):
    """Lets XLA compute what flash attention's kernels do, on any machine."""
    import jax

    from musiclm.nn import flash_attention

    interpreted = functools.partial(flash_attention.attend, interpret=True)
    monkeypatch.setattr(flash_attention, "attend", interpreted)
    monkeypatch.setattr(jax, "default_backend", lambda: "gpu")


def _untrained(rng, model, *arguments, **options):
    """Random variables of a model; compiles nothing, as `init` would."""
    import jax

    keys = {"params": jax.random.key(0), "mask": jax.random.key(0)}
    shapes = jax.eval_shape(functools.partial(model.init, **options), keys, *arguments)

    def draw(path, leaf):
        values = rng.normal(scale=0.3, size=leaf.shape).astype(leaf.dtype)
        # Of a negative variance the root would be NaN, and so would all features.
        return abs(values) if path[-1].key == "var" else values

    return jax.tree_util.tree_map_with_path(draw, shapes)


@pytest.fixture(scope="session")
def tiny_bundle(tmp_path_factory) -> pathlib.Path:
    """A sealed bundle of untrained models, as small as the chain allows: noise, but whole."""
    import jax
    import jax.numpy as jnp
    import numpy as np

    from musiclm import bundle
    from musiclm.audio import MelConfig
    from musiclm.models import bert, mulan, resnet, soundstream, token_lm, w2v_bert
    from musiclm.nn import encoder, transformer
    from musiclm.token_spec import TokenSpec
    from musiclm.tokens import layout, wordpiece

    spec = TokenSpec(
        sample_rate=1_600,
        num_acoustic_codebooks=3,
        acoustic_codebook_size=8,
        num_coarse_codebooks=2,
        semantic_vocab_size=8,
        num_mulan_codebooks=2,
        mulan_codebook_size=8,
        semantic_window_seconds=2.0,
        coarse_window_seconds=1.0,
        fine_window_seconds=0.5,
    )
    folder = tmp_path_factory.mktemp("tiny_bundle")
    numpy_rng = np.random.default_rng(0)
    untrained = functools.partial(_untrained, numpy_rng)

    def save(name, config, variables):
        bundle.save_component(folder, name, bundle.Component(config, variables))

    codec = soundstream.SoundStreamConfig(
        sample_rate=spec.sample_rate,
        encoder_channels=4,
        decoder_channels=4,
        strides=(4, 8),
        latent_dim=8,
        dilations=(1,),
        num_codebooks=spec.num_acoustic_codebooks,
        codebook_size=spec.acoustic_codebook_size,
        dtype="float32",
    )
    variables = untrained(soundstream.SoundStream(codec), jnp.zeros((1, 4 * codec.hop_length)))
    # Numbers at random would leave no room between the lower and the upper bound.
    bounds_2D = np.array([[-1.0], [1.0]], np.float32).repeat(codec.latent_dim, axis=1)
    variables["codebooks"]["quantizer"]["bounds_2D"] = bounds_2D
    save("soundstream", codec, variables)

    semantic = w2v_bert.W2vBertConfig(
        sample_rate=spec.sample_rate,
        num_mels=8,
        mel_window_size=64,
        conv_channels=(4, 4),
        model_dim=16,
        num_heads=2,
        ffn_dim=16,
        contrastive_blocks=1,
        mlm_blocks=1,
        codebook_size=8,
        codebook_dim=8,
        feature_layer=1,
    )
    variables = untrained(
        w2v_bert.W2vBert(semantic),
        jnp.zeros((1, spec.sample_rate)),
        jnp.zeros((1, 25), bool),
        1.0,
        deterministic=True,
    )
    # Its own frames of noise are the clusters: untrained, it tells others hardly apart.
    waveform_BT = numpy_rng.normal(size=(1, 2 * spec.sample_rate)).astype(np.float32)
    features = jax.jit(functools.partial(w2v_bert.W2vBert(semantic).apply, method="features"))
    features_ND = np.asarray(features(variables, waveform_BT))[0]
    mean_D, std_D = features_ND.mean(0), features_ND.std(0)
    frames = np.linspace(0, len(features_ND) - 1, spec.semantic_vocab_size).astype(int)
    centroids_KD = (features_ND[frames] - mean_D) / std_D
    clusters = {"mean_D": mean_D, "std_D": std_D, "centroids_KD": centroids_KD}
    save("w2v_bert", semantic, {**variables, "clusters": clusters})

    vocabulary = wordpiece.WordPiece.train(["slow piano", "fast flute"], 200)
    joint = mulan.MuLanConfig(
        resnet=resnet.ResNetConfig(
            stage_sizes=(1,), widths=(8,), bottleneck=False, stage_strides=((2, 2),), norm_groups=2
        ),
        bert=bert.BertConfig(
            encoder=encoder.EncoderConfig(num_layers=1, model_dim=16, num_heads=2, ffn_dim=16),
            vocab_size=vocabulary.vocab_size,
            max_length=64,
        ),
        mel=MelConfig(sample_rate=spec.sample_rate, num_mels=8, window_size=64, hop_size=32),
        embedding_dim=8,
    )
    params = untrained(
        mulan.MuLan(joint),
        jnp.zeros((1, joint.window_samples)),
        jnp.ones((1, 4), jnp.int32),
        train=False,
    )["params"]
    # As with the clusters: towers that are untrained tell texts and sounds hardly apart.
    texts_NL = vocabulary.encode(["slow piano", "fast flute", "fast piano", "slow flute"], 64)
    noise_NT = numpy_rng.normal(size=(4, joint.window_samples)).astype(np.float32)
    noise_NT = np.cumsum(noise_NT, axis=1) * np.array([[0], [1], [0], [1]]) + noise_NT
    embed = jax.jit(functools.partial(mulan.MuLan(joint).apply, train=False))
    output = embed({"params": params}, noise_NT, texts_NL)
    vectors = {"audio": np.asarray(output.audio_BD), "text": np.asarray(output.text_BD)}
    means = {name: vectors_BD.mean(0) for name, vectors_BD in vectors.items()}
    spread = np.std([vectors[name] - means[name] for name in vectors])
    shape = (spec.num_mulan_codebooks, spec.mulan_codebook_size, 8)
    quantizer = {
        "audio_mean_D": means["audio"],
        "text_mean_D": means["text"],
        "codebooks_QKD": numpy_rng.normal(scale=spread, size=shape).astype(np.float32),
    }
    save(
        "mulan",
        {"model": joint, "vocabulary": vocabulary.vocab},
        {"params": params, "quantizer": quantizer},
    )

    for stage in layout.STAGES:
        config = token_lm.TokenLMConfig(
            layout=layout.StageLayout.of(stage, spec),
            transformer=transformer.TransformerConfig(
                num_layers=1, model_dim=16, num_heads=2, head_dim=8, mlp_dim=16
            ),
        )
        ids_BS = jnp.ones((1, config.layout.sequence_length), jnp.int32)
        save(stage, config, untrained(token_lm.TokenLM(config), ids_BS))

    bundle.seal(folder, "tiny", spec)
    return folder


@pytest.fixture(scope="session")
def melody_bundle(tiny_bundle, tmp_path_factory) -> pathlib.Path:
    """The same, of stages that want a melody: three embeddings of two levels of 8 codes."""
    import dataclasses

    import jax
    import jax.numpy as jnp
    import numpy as np

    from musiclm import bundle
    from musiclm.models import token_lm
    from musiclm.tokens import layout

    folder = tmp_path_factory.mktemp("melody_bundle")
    shutil.copytree(tiny_bundle, folder, dirs_exist_ok=True)
    plain = bundle.load(tiny_bundle)
    spec = dataclasses.replace(plain.token_spec, num_melody_codebooks=2, melody_codebook_size=8)
    for stage in ("semantic", "coarse"):
        config = dataclasses.replace(
            plain.components[stage].config, layout=layout.StageLayout.of(stage, spec)
        )
        ids_BS = jnp.ones((1, config.layout.sequence_length), jnp.int32)
        variables = _untrained(np.random.default_rng(2), token_lm.TokenLM(config), ids_BS)
        variables = jax.tree.map(lambda leaf: 5 * leaf, variables)  # else it is hardly heard
        bundle.save_component(folder, stage, bundle.Component(config, variables))
    bundle.seal(folder, "tiny-melody", spec)
    return folder


@pytest.fixture(scope="session")
def soundstorm_bundle(tiny_bundle, tmp_path_factory) -> pathlib.Path:
    """The same with a SoundStorm."""
    import jax.numpy as jnp
    import numpy as np

    from musiclm import bundle
    from musiclm.models import soundstorm
    from musiclm.nn import conformer
    from musiclm.tokens import layout

    folder = tmp_path_factory.mktemp("soundstorm_bundle")
    shutil.copytree(tiny_bundle, folder, dirs_exist_ok=True)
    spec = bundle.load(tiny_bundle).token_spec
    config = soundstorm.SoundStormConfig(
        layout=layout.StageLayout.parallel(spec),
        conformer=conformer.ConformerConfig(num_blocks=1, model_dim=16, num_heads=2, ffn_dim=16),
    )
    target = config.layout.target
    variables = _untrained(
        np.random.default_rng(1),
        soundstorm.SoundStorm(config),
        jnp.ones((1, config.layout.sequence_length), jnp.int32),
        jnp.ones((1, target.num_frames, target.num_levels), bool),
        jnp.zeros(1, jnp.int32),
    )
    bundle.save_component(folder, "soundstorm", bundle.Component(config, variables))
    bundle.seal(folder, "tiny", spec)
    return folder
