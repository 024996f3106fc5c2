"""The language model of the stages: sizes, causality, what its heads see."""

import dataclasses
import functools
import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from musiclm.models.token_lm import TokenLM, TokenLMConfig
from musiclm.nn.transformer import Transformer, TransformerConfig
from musiclm.token_spec import TokenSpec
from musiclm.tokens.layout import STAGES, StageLayout

SPEC = TokenSpec(
    num_acoustic_codebooks=5,
    acoustic_codebook_size=13,
    num_coarse_codebooks=2,
    semantic_vocab_size=11,
    num_mulan_codebooks=3,
    mulan_codebook_size=7,
    semantic_window_seconds=0.4,
    coarse_window_seconds=0.2,
    fine_window_seconds=0.1,
)
TINY = TransformerConfig(
    num_layers=2,
    model_dim=16,
    num_heads=2,
    head_dim=8,
    mlp_dim=24,
    max_distance=40,
    query_block=20,
    remat=False,
)


@functools.cache
def tiny(stage):
    """A small model, weights larger than at the start so that all parts matter, and tokens."""
    layout = StageLayout.of(stage, SPEC)
    config = TokenLMConfig(layout=layout, transformer=TINY, time_embedding=True)
    rng = np.random.default_rng(1)
    ids = rng.integers(2, layout.vocab_size, (2, layout.sequence_length), dtype=np.int32)
    return config, weights(config, rng), ids


def weights(config, rng):
    ids = jax.ShapeDtypeStruct((1, config.layout.sequence_length), jnp.int32)
    shapes = jax.eval_shape(TokenLM(config).init, jax.random.key(0), ids)
    return jax.tree.map(lambda x: rng.normal(0, 0.5, x.shape).astype(np.float32), shapes)


@functools.partial(jax.jit, static_argnums=0)
def apply(config, variables, ids):
    return TokenLM(config).apply(variables, ids)


def parameters(config):
    ids = jax.ShapeDtypeStruct((1, config.layout.sequence_length), jnp.int32)
    shapes = jax.eval_shape(TokenLM(config).init, jax.random.key(0), ids)
    return sum(math.prod(leaf.shape) for leaf in jax.tree.leaves(shapes))


@pytest.mark.parametrize("stage", STAGES)
def test_base_has_430_million_parameters(stage):
    layout = StageLayout.of(stage, TokenSpec())
    count = parameters(TokenLMConfig(layout=layout, transformer=TransformerConfig()))
    assert count == pytest.approx(430e6, rel=0.03)


@pytest.mark.parametrize("stage", STAGES)
def test_causal(stage):
    config, variables, ids = tiny(stage)
    layout = config.layout
    base = np.asarray(apply(config, variables, ids))
    assert base.shape == (
        2,
        layout.target.num_frames,
        layout.target_levels,
        layout.target_codebook_size,
    )
    for position in (0, layout.prefix_length - 1, layout.prefix_length, layout.sequence_length - 2):
        changed = ids.copy()
        changed[:, position] = 2 + (ids[:, position] - 1) % (layout.vocab_size - 2)
        moved = np.abs(apply(config, variables, changed) - base).max((0, 3)).reshape(-1)
        # Token i of the target sees the prefix and the i tokens before it.
        first = max(0, position + 1 - layout.prefix_length)
        assert (moved[:first] == 0).all()
        assert moved[first] > 0
    last = ids.copy()
    last[:, -1] = 2
    np.testing.assert_array_equal(apply(config, variables, last), base)


def test_config_changes_what_it_says():
    layout = StageLayout.coarse(SPEC)

    def count(*, time_embedding=True, tied_embedding=False, **sizes):
        config = TokenLMConfig(
            layout=layout,
            transformer=dataclasses.replace(TINY, **sizes),
            time_embedding=time_embedding,
            tied_embedding=tied_embedding,
        )
        return parameters(config)

    layers, width, inner = TINY.num_layers, TINY.model_dim, TINY.mlp_dim
    assert count() - count(gated=False) == layers * width * inner
    assert count(head_dim=16) - count() == layers * 4 * width * TINY.num_heads * 8
    # Five semantic frames and the moment of what has none.
    assert count() - count(time_embedding=False) == 6 * width
    assert count() - count(tied_embedding=True) == layout.target.num_codes * width


@pytest.mark.slow
def test_a_tied_embedding_scores_codes_by_their_own_vectors():
    config, _, ids = tiny("coarse")
    config = dataclasses.replace(config, tied_embedding=True)
    params = weights(config, np.random.default_rng(0))["params"]
    layout = config.layout
    # One more vector for a code moves its score, in its level alone (it is no input here).
    code = layout.target_codebook_size - 1
    row = layout.target_offset + layout.target_codebook_size + code
    doubled_VM = params["tokens"]["embedding"].copy()
    doubled_VM[row] *= 2.0
    unseen = np.full_like(ids, layout.target_offset)
    expected_BTQK, doubled_BTQK = (
        np.array(apply(config, {"params": params | changed}, unseen))
        for changed in ({}, {"tokens": {"embedding": doubled_VM}})
    )
    expected_BTQK[:, :, 1, code] *= 2.0
    np.testing.assert_allclose(doubled_BTQK, expected_BTQK, atol=1e-6)


@functools.partial(jax.jit, static_argnums=0)
def gradients(config, variables, ids):
    return jax.grad(lambda v: jnp.square(TokenLM(config).apply(v, ids)).mean())(variables)


@pytest.mark.slow
@pytest.mark.parametrize("keeps", ["nothing", "products"])
def test_remat_and_blocks_change_nothing(keeps):
    config, variables, ids = tiny("fine")
    sizes = dataclasses.replace(config.transformer, remat=True, remat_keeps=keeps, query_block=100)
    other = dataclasses.replace(config, transformer=sizes)
    pairs = zip(
        jax.tree.leaves(gradients(config, variables, ids)),
        jax.tree.leaves(gradients(other, variables, ids)),
        strict=True,
    )
    for one, two in pairs:
        np.testing.assert_allclose(one, two, atol=1e-4 * np.abs(one).max())


def test_dropout_is_for_training_only():
    config, variables, ids = tiny("semantic")
    sizes = dataclasses.replace(config.transformer, dropout=0.5)
    noisy = TokenLM(dataclasses.replace(config, transformer=sizes))
    noisy_apply = jax.jit(functools.partial(noisy.apply, deterministic=False))
    one, two = (noisy_apply(variables, ids, rngs={"dropout": jax.random.key(i)}) for i in (0, 1))
    assert np.abs(one - two).max() > 0.01


def test_bfloat16_is_near_float32():
    config, variables, ids = tiny("coarse")
    half = dataclasses.replace(
        config, transformer=dataclasses.replace(config.transformer, dtype="bfloat16")
    )
    variables = jax.tree.map(lambda x: x / 3, variables)
    logits, rounded = (np.asarray(apply(c, variables, ids)) for c in (config, half))
    assert rounded.dtype == np.float32
    np.testing.assert_allclose(rounded, logits, atol=0.1 * np.abs(logits).max())


def test_layers_are_stacked_and_apart():
    config, _, ids = tiny("semantic")
    variables = jax.jit(TokenLM(config).init)(jax.random.key(0), ids)
    kernel = variables["params"]["decoder"]["layers"]["attention"]["query"]["kernel"]
    assert kernel.shape[0] == config.transformer.num_layers
    assert np.abs(kernel[0] - kernel[1]).max() > 0.01


def test_bad_input_is_named():
    config, variables, ids = tiny("coarse")
    with pytest.raises(ValueError, match="coarse stage: give 28"):
        TokenLM(config).apply(variables, ids[:, :-1])
    for bad, name in (
        ({"num_heads": 0}, "num_heads"),
        ({"max_distance": 16}, "max_distance"),
        ({"dropout": 1.0}, "dropout"),
        ({"dtype": "float16"}, "dtype"),
    ):
        with pytest.raises(ValueError, match=name):
            TransformerConfig(**bad)


def test_transformer_alone_takes_any_length():
    model = Transformer(TINY)
    x = np.random.default_rng(0).normal(size=(1, 20, TINY.model_dim)).astype(np.float32)
    init, run = (
        jax.jit(functools.partial(f, deterministic=True)) for f in (model.init, model.apply)
    )
    variables = init(jax.random.key(1), x)
    whole, part = run(variables, x), run(variables, x[:, :9])
    np.testing.assert_allclose(part, whole[:, :9], atol=1e-5)
