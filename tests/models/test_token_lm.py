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
    layout = StageLayout.of(stage, SPEC)
    config = TokenLMConfig(
        layout=layout,
        transformer=TINY,
        time_embedding=True,
    )
    ids = jax.random.randint(
        jax.random.key(1), (2, layout.sequence_length), 2, layout.vocab_size, jnp.int32
    )
    variables = jax.jit(TokenLM(config).init)(jax.random.key(0), ids)
    # Larger than at the start, so that all parts matter.
    return config, jax.tree.map(lambda x: 3 * x, variables), ids


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
    apply, layout = jax.jit(TokenLM(config).apply), config.layout
    base = apply(variables, ids)
    assert base.shape == (
        2,
        layout.target.num_frames,
        layout.target_levels,
        layout.target_codebook_size,
    )
    for position in (0, layout.prefix_length - 1, layout.prefix_length, layout.sequence_length - 2):
        changed = ids.at[:, position].set(2 + (ids[:, position] - 1) % (layout.vocab_size - 2))
        moved = np.abs(apply(variables, changed) - base).max((0, 3)).reshape(-1)
        # Token i of the target sees the prefix and the i tokens before it.
        first = max(0, position + 1 - layout.prefix_length)
        assert (moved[:first] == 0).all()
        assert moved[first] > 0
    last = ids.at[:, -1].set(2)
    np.testing.assert_array_equal(apply(variables, last), base)


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
    variables = TokenLM(config).init(jax.random.key(0), ids)
    layout = config.layout
    embedding_VM = variables["params"]["tokens"]["embedding"]
    # One more vector for a code moves its score, in its level alone (it is no input here).
    code = layout.target_codebook_size - 1
    row = layout.target_offset + layout.target_codebook_size + code
    unseen = jnp.full_like(ids, layout.target_offset)
    logits_BTQK = TokenLM(config).apply(variables, unseen)
    moved = {"tokens": {"embedding": embedding_VM.at[row].multiply(2.0)}}
    doubled_BTQK = TokenLM(config).apply({"params": variables["params"] | moved}, unseen)
    expected_BTQK = logits_BTQK.at[:, :, 1, code].multiply(2.0)
    np.testing.assert_allclose(doubled_BTQK, expected_BTQK, atol=1e-6)


@pytest.mark.slow
@pytest.mark.parametrize("keeps", ["nothing", "products"])
def test_remat_and_blocks_change_nothing(keeps):
    config, variables, ids = tiny("fine")
    sizes = dataclasses.replace(config.transformer, remat=True, remat_keeps=keeps, query_block=100)
    other = dataclasses.replace(config, transformer=sizes)

    @functools.partial(jax.jit, static_argnums=0)
    def gradients(config, variables):
        return jax.grad(lambda v: jnp.square(TokenLM(config).apply(v, ids)).mean())(variables)

    pairs = zip(
        jax.tree.leaves(gradients(config, variables)),
        jax.tree.leaves(gradients(other, variables)),
        strict=True,
    )
    for one, two in pairs:
        np.testing.assert_allclose(one, two, atol=1e-4 * np.abs(one).max())


def test_dropout_is_for_training_only():
    config, variables, ids = tiny("semantic")
    sizes = dataclasses.replace(config.transformer, dropout=0.5)
    noisy = TokenLM(dataclasses.replace(config, transformer=sizes))
    apply = jax.jit(functools.partial(noisy.apply, deterministic=False))
    one, two = (apply(variables, ids, rngs={"dropout": jax.random.key(i)}) for i in (0, 1))
    assert np.abs(one - two).max() > 0.01


def test_bfloat16_is_near_float32():
    config, variables, ids = tiny("coarse")
    half = dataclasses.replace(
        config, transformer=dataclasses.replace(config.transformer, dtype="bfloat16")
    )
    variables = jax.tree.map(lambda x: x / 3, variables)
    logits = jax.jit(TokenLM(config).apply)(variables, ids)
    rounded = jax.jit(TokenLM(half).apply)(variables, ids)
    assert rounded.dtype == jnp.float32
    np.testing.assert_allclose(rounded, logits, atol=0.1 * float(jnp.abs(logits).max()))


def test_layers_are_stacked_and_apart():
    config, variables, _ = tiny("semantic")
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
    x = jax.random.normal(jax.random.key(0), (1, 20, TINY.model_dim))
    apply = jax.jit(functools.partial(model.apply, deterministic=True))
    variables = jax.jit(functools.partial(model.init, deterministic=True))(jax.random.key(1), x)
    whole, part = apply(variables, x), apply(variables, x[:, :9])
    np.testing.assert_allclose(part, whole[:, :9], atol=1e-5)
