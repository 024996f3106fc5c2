"""Cached decoding against teacher forcing, what it depends on, and where its cache lies."""

import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from musiclm.models.token_lm import TokenLM, TokenLMConfig
from musiclm.nn import attention
from musiclm.nn.transformer import TransformerConfig
from musiclm.sampler import decode, int8, kernels, logits, products
from musiclm.sampler.logits import Sampling
from musiclm.sampler.stages import Stage
from musiclm.token_spec import TokenSpec
from musiclm.tokens.layout import StageLayout

SPEC = TokenSpec(
    num_acoustic_codebooks=5,
    acoustic_codebook_size=13,
    num_coarse_codebooks=2,
    semantic_vocab_size=11,
    num_mulan_codebooks=3,
    mulan_codebook_size=7,
    semantic_window_seconds=0.8,
    coarse_window_seconds=0.4,
    fine_window_seconds=0.2,
)
TUNED = dataclasses.replace(
    SPEC, num_melody_codebooks=2, melody_codebook_size=9, num_melody_embeddings=3
)
GREEDY = Sampling(temperature=0.0)
INT8 = {"int8_weights": True, "int8_cache": True}


@functools.cache
def model(stage, gated=True, time_embedding=True, rotary=False, spec=SPEC):
    """A small model with random weights, large enough that greedy choices are no ties."""
    sizes = TransformerConfig(
        num_layers=2,
        model_dim=16,
        num_heads=2,
        head_dim=8,
        mlp_dim=24,
        max_distance=40,
        query_block=32,
        remat=False,
        gated=gated,
        rotary=rotary,
    )
    layout = StageLayout.of(stage, spec)
    config = TokenLMConfig(
        layout=layout,
        transformer=sizes,
        time_embedding=time_embedding,
        tied_embedding=time_embedding,
        aligned_prefix=time_embedding,
    )
    ids = jnp.zeros((1, layout.sequence_length), jnp.int32)
    shapes = jax.eval_shape(TokenLM(config).init, jax.random.key(0), ids)
    rng = np.random.default_rng(0)
    params = jax.tree.map(lambda x: rng.normal(0, 0.4, x.shape).astype(np.float32), shapes)
    return config, params["params"]


def conditions(layout, batch, seed=0):
    rng = np.random.default_rng(seed)
    shapes = {
        "mulan": (SPEC.num_mulan_codebooks,),
        "melody": TUNED.melody_shape,
        "semantic": (layout.prefix[-1].num_frames,),
        "acoustic": (layout.prefix[-1].num_frames, SPEC.num_coarse_codebooks),
    }
    return {
        segment.source: rng.integers(
            0, segment.codebook_size, (batch, *shapes[segment.source]), dtype=np.int32
        )
        for segment in layout.prefix
    }


def keys(*seeds):
    return jax.vmap(jax.random.key)(jnp.asarray(seeds, jnp.uint32))


@functools.partial(jax.jit, static_argnums=0)
def score(config, params, ids_BS):
    return TokenLM(config).apply({"params": params}, ids_BS)


def teacher_forced(config, params, condition, codes_BTQ):
    """The likeliest code at every place of the target, given the codes before it."""
    prefix_BP = config.layout.flatten_prefix(condition)
    ids_BS = np.concatenate([prefix_BP, config.layout.flatten_target(codes_BTQ)], axis=1)
    return np.argmax(score(config, params, ids_BS), -1)


@pytest.fixture
def short_spans(monkeypatch):
    """Several lengths of attention and many calls, even in short sequences."""
    monkeypatch.setattr(products, "reads_what_is_known", lambda platform: False)
    monkeypatch.setattr(decode, "SPAN", 32)
    monkeypatch.setattr("musiclm.sampler.stages.FRAMES_PER_CALL", 7)


@pytest.fixture
def by_xla(short_spans, monkeypatch):
    """Decoding as on a GPU or TPU, where no kernel is LLVM's."""
    compiled = decode._start, decode.decode_until
    for function in compiled:
        function.clear_cache()
    monkeypatch.setattr(kernels, "product", products._product)
    monkeypatch.setattr(kernels, "attend", products._attend)
    yield
    for function in compiled:
        function.clear_cache()


@pytest.mark.parametrize(
    ("stage", "gated", "time_embedding", "rotary"),
    [
        ("semantic", True, False, False),
        ("semantic", False, False, True),
        ("coarse", True, True, False),
        ("fine", False, True, True),
    ],
)
def test_greedy_equals_teacher_forcing(short_spans, stage, gated, time_embedding, rotary):
    config, params = model(stage, gated, time_embedding, rotary)
    condition = conditions(config.layout, 3)
    codes = Stage(config, params).generate(condition, keys(0, 1, 2), [GREEDY] * 3)
    np.testing.assert_array_equal(codes, teacher_forced(config, params, condition, codes))
    assert len(np.unique(codes)) > 3  # not one code over and over, which would prove little


@pytest.mark.slow
@pytest.mark.parametrize("kept", [{}, INT8])
def test_xla_decodes_what_our_kernels_do(request, kept):
    config, params = model("coarse")
    condition = conditions(config.layout, 3)
    asked = (condition, keys(0, 1, 2), [GREEDY, Sampling(), Sampling(guidance=2.0)])
    ours = Stage(config, params, **kept).generate(*asked)
    request.getfixturevalue("by_xla")
    np.testing.assert_array_equal(Stage(config, params, **kept).generate(*asked), ours)


def test_a_cpu_decodes_a_bfloat16_model_in_float32():
    config, params = model("semantic")
    asked = (conditions(config.layout, 2), keys(0, 1), [GREEDY, Sampling()])
    half = dataclasses.replace(config.transformer, dtype="bfloat16")
    codes = Stage(dataclasses.replace(config, transformer=half), params).generate(*asked)
    np.testing.assert_array_equal(codes, Stage(config, params).generate(*asked))


@pytest.mark.slow
@pytest.mark.parametrize("stage", ["semantic", "coarse"])
def test_a_melody_is_followed_as_in_training(short_spans, stage):
    config, params = model(stage, spec=TUNED)
    condition = conditions(config.layout, 2)
    sampling = [GREEDY, Sampling(temperature=0.0, guidance=2.5)]
    codes = Stage(config, params).generate(condition, keys(0, 1), sampling)
    forced = teacher_forced(config, params, condition, codes)
    np.testing.assert_array_equal(codes[0], forced[0])
    # Guided: away from what comes without the text and without the melody.
    layout = config.layout
    prefix_BP, target_BN = layout.flatten_prefix(condition), layout.flatten_target(codes)
    ids_BS = np.concatenate([prefix_BP, target_BN], axis=1)
    with_BTQK, without_BTQK = (
        np.asarray(score(config, params, layout.drop_condition(ids_BS, np.full(2, dropped))))
        for dropped in (False, True)
    )
    guided_BTQK = without_BTQK + 2.5 * (with_BTQK - without_BTQK)
    np.testing.assert_array_equal(codes[1], guided_BTQK[1].argmax(-1))
    other = condition | {"melody": (condition["melody"] + 1) % 9}
    assert (Stage(config, params).generate(other, keys(0, 1), sampling) != codes).any()


@pytest.mark.slow
@pytest.mark.parametrize("prompt_frames", [1, 9])
@pytest.mark.parametrize("rotary", [False, True])
def test_prompt_is_kept_and_continued(short_spans, prompt_frames, rotary):
    config, params = model("coarse", rotary=rotary)
    layout = config.layout
    condition = conditions(layout, 3)
    size = (3, prompt_frames, layout.target_levels)
    prompt = np.random.default_rng(7).integers(0, layout.target_codebook_size, size, dtype=np.int32)
    codes = Stage(config, params).generate(
        condition, keys(0, 1, 2), [GREEDY] * 3, prompts=prompt, prefilled=prompt_frames
    )
    np.testing.assert_array_equal(codes[:, :prompt_frames], prompt)
    expected = teacher_forced(config, params, condition, codes)
    np.testing.assert_array_equal(codes[:, prompt_frames:], expected[:, prompt_frames:])


@pytest.mark.parametrize("stage", ["semantic", "coarse"])
def test_guidance_equals_teacher_forcing_with_and_without_the_condition(short_spans, stage):
    config, params = model(stage)
    layout, condition = config.layout, conditions(config.layout, 3)
    sampling = Sampling(temperature=0.0, guidance=3.0)
    codes = Stage(config, params).generate(condition, keys(0, 1, 2), [sampling] * 3)
    ids = np.concatenate([layout.flatten_prefix(condition), layout.flatten_target(codes)], axis=1)
    given, null = (
        np.asarray(score(config, params, layout.drop_condition(ids, np.full(3, dropped))))
        for dropped in (False, True)
    )
    np.testing.assert_array_equal(codes, (null + 3.0 * (given - null)).argmax(-1))
    assert (codes != given.argmax(-1)).any()


def test_what_a_row_depends_on(short_spans):
    config, params = model("coarse")
    stage = Stage(config, params)
    condition = conditions(config.layout, 3)
    sampling = [Sampling(temperature=0.9)] * 3
    codes = stage.generate(condition, keys(4, 5, 6), sampling)
    np.testing.assert_array_equal(stage.generate(condition, keys(4, 5, 6), sampling), codes)
    # Other neighbours, another place in the batch.
    order = [2, 0, 1]
    other = {source: array[order] for source, array in condition.items()}
    other = {source: np.concatenate([a[:2], a[:1]]) for source, a in other.items()}
    again = stage.generate(other, keys(6, 4, 9), sampling)
    np.testing.assert_array_equal(again[:2], codes[order[:2]])
    assert (again[2] != codes[2]).any()
    # The same condition under two seeds.
    assert (again[2] != again[0]).any()


def test_a_shorter_target_is_the_beginning_of_a_longer():
    config, params = model("semantic")
    stage = Stage(config, params)
    condition = conditions(config.layout, 1)
    moves = []
    whole = stage.generate(condition, keys(1), [Sampling()])
    part = stage.generate(condition, keys(1), [Sampling()], num_frames=6, progress=moves.append)
    np.testing.assert_array_equal(part, whole[:, :6])
    assert moves == [6]


def test_sampling_follows_the_temperature():
    config, params = model("semantic")
    stage = Stage(config, params)
    condition = {"mulan": np.repeat(conditions(config.layout, 1)["mulan"], 64, axis=0)}
    first = {
        t: stage.generate(condition, keys(*range(64)), [Sampling(temperature=t)] * 64, num_frames=1)
        for t in (0.2, 5.0)
    }
    assert len(np.unique(first[0.2])) < len(np.unique(first[5.0]))


MIXED = [
    Sampling(temperature=0.0),
    Sampling(guidance=2.5),
    Sampling(temperature=0.7, top_k=4),
    Sampling(guidance=0.5, top_p=0.8),
]


@pytest.mark.slow
@pytest.mark.parametrize(("stage", "kept"), [("semantic", {}), ("coarse", {}), ("coarse", INT8)])
def test_rows_of_different_settings_are_those_that_each_makes_alone(stage, kept):
    config, params = model(stage)
    stage = Stage(config, params, **kept)
    condition = conditions(config.layout, 4)
    together = stage.generate(condition, keys(0, 1, 2, 3), MIXED)
    for i, sampling in enumerate(MIXED):
        row = {source: codes[i : i + 1] for source, codes in condition.items()}
        np.testing.assert_array_equal(stage.generate(row, keys(i), [sampling])[0], together[i])


def test_settings_compile_nothing():
    config, params = model("semantic")
    stage, condition = Stage(config, params), conditions(config.layout, 4)
    stage.generate(condition, keys(0, 1, 2, 3), MIXED)
    compiled = decode.decode_until._cache_size()
    others = [Sampling(guidance=0.3), Sampling(top_p=0.4), Sampling(top_k=7), GREEDY]
    stage.generate(condition, keys(5, 6, 7, 8), others)
    assert decode.decode_until._cache_size() == compiled


@pytest.mark.slow
@pytest.mark.parametrize(("guidance", "kept"), [(1.0, {}), (3.0, {}), (3.0, INT8)])
def test_prompts_of_any_length_share_a_batch(short_spans, guidance, kept):
    """Whether a prompt is looked at in one go or step by step, it is kept and continued."""
    config, params = model("coarse")
    condition = conditions(config.layout, 3)
    sampling = [Sampling(temperature=0.0, guidance=guidance)] * 3
    stage = Stage(config, params, **kept)
    whole = stage.generate(condition, keys(0, 1, 2), sampling)
    # Not its own codes: those that are given must be kept against the model's will.
    prompts = [(whole[i, :n] + 1) % 13 for i, n in enumerate([4, 0, 11])]
    stepwise = stage.generate(condition, keys(0, 1, 2), sampling, prompts=prompts)
    for i, prompt in enumerate(prompts):
        np.testing.assert_array_equal(stepwise[i, : len(prompt)], prompt)
        in_one_go = stage.generate(
            condition, keys(0, 1, 2), sampling, prompts=[prompt] * 3, prefilled=len(prompt)
        )
        np.testing.assert_array_equal(stepwise[i], in_one_go[i])
    np.testing.assert_array_equal(stepwise[1], whole[1])
    assert (stepwise[0, 4:] != whole[0, 4:]).any()


def memory_of_a_step(num_layers, *, guided=False, filtered=False, **int8):
    """Bytes of the cache of 8 rows, and what the compiled loop takes beside its arguments."""
    layout = StageLayout.fine(TokenSpec(num_acoustic_codebooks=8, fine_window_seconds=1.0))
    sizes = TransformerConfig(
        num_layers=num_layers, model_dim=64, num_heads=4, head_dim=32, mlp_dim=64
    )
    config, mesh = TokenLMConfig(layout=layout, transformer=sizes), decode.make_mesh()
    ids = jax.ShapeDtypeStruct((8, layout.sequence_length), jnp.int32)
    shapes = jax.eval_shape(TokenLM(config).init, jax.random.key(0), ids)
    params = jax.tree.map(lambda x: np.zeros(x.shape, np.float32), shapes["params"])
    weights = decode.unroll(config, params, int8_weights=int8.get("int8_weights", False))
    start = functools.partial(
        decode.start,
        config,
        mesh,
        known=layout.prefix_length,
        guided=guided,
        int8_cache=int8.get("int8_cache", False),
    )
    state = jax.eval_shape(start, weights, ids)
    compiled = decode.decode_until.lower(
        config,
        mesh,
        layout.sequence_length,
        filtered,
        weights,
        state,
        jax.eval_shape(lambda: keys(*range(8))),
        jnp.zeros(8, jnp.int32),
        jax.ShapeDtypeStruct((), jnp.int32),
        logits.by_row([Sampling()] * 8),
    ).compile()
    cache_bytes = sum(x.size * x.dtype.itemsize for x in jax.tree.leaves(state.cache))
    return cache_bytes, compiled.memory_analysis()


@pytest.mark.slow
@pytest.mark.parametrize("guided", [False, True])
@pytest.mark.parametrize(
    "kept", [{}, {"filtered": True}, {"int8_weights": True}, {"int8_cache": True}]
)
def test_cache_is_updated_in_place(guided, kept):
    cache_bytes, memory = memory_of_a_step(8, guided=guided, **kept)
    assert cache_bytes > (7e6 if "int8_cache" in kept else 26e6) * (1 + guided)
    assert memory.temp_size_in_bytes < 0.1 * cache_bytes
    # The donated state comes back in the memory in which it came.
    assert memory.alias_size_in_bytes >= cache_bytes


@pytest.mark.slow
@pytest.mark.parametrize(("kept", "most"), [({}, 0.1), ({"int8_cache": True}, 0.2)])
def test_cache_is_updated_in_place_by_xla(by_xla, kept, most):
    """It copies a layer before it reads it, of int8 as floats: of 24 as of many."""
    cache_bytes, memory = memory_of_a_step(24, **kept)
    assert memory.temp_size_in_bytes < most * cache_bytes
    assert memory.alias_size_in_bytes >= cache_bytes


def test_what_steps_read_is_counted(short_spans):
    config, params = model("coarse")
    stage, layout = Stage(config, params), config.layout
    sizes = config.transformer
    attention_and_mlp = 16 * 3 * 16 + 16 * 16 + 16 * 2 * 24 + 24 * 16
    aligned = 16 * 16
    every_step = 2 * (attention_and_mlp + 2 * 16) + 16 + sizes.num_buckets * 2 + 16 * 13 + aligned
    first, prompt = layout.prefix_length, np.zeros((3, 3, 2), np.int32)
    steps = [first + 6, first + 7, first + 8, first + 9]  # tokens that each of them looks at
    numbers = len(steps) * every_step + 3 * sum(steps) * 2 * 2 * 16
    condition = conditions(layout, 3)
    for i in (1, 2):  # with the null condition, twice the rows
        samplings = [GREEDY, GREEDY, Sampling(guidance=float(i))]
        options = {"num_frames": 5, "prompts": prompt, "prefilled": 3}
        stage.generate(condition, keys(0, 1, 2), samplings, **options)
        assert stage.bytes_read == 4 * numbers
        numbers += len(steps) * every_step + 6 * sum(steps) * 2 * 2 * 16


def test_int8_is_counted_as_it_is_kept():
    config, params = model("coarse", time_embedding=False)
    sizes, layout = config.transformer, config.layout
    weights = decode.unroll(config, params, int8_weights=True)
    matrices = 16 * 3 * 16 + 16 * 16 + 16 * 2 * 24 + 24 * 16
    scales = 3 * 16 + 16 + 2 * 24 + 16
    floats = 2 * (scales + 2 * 16) + 16 + sizes.num_buckets * 2 + 16 * 13
    tokens = 9 + 10  # that two steps look at
    vectors = tokens * 3 * 2 * 2 * sizes.num_heads
    read = decode.bytes_read(config, weights, 3, 9, 11, int8_cache=True)
    assert read == 2 * (2 * matrices + 4 * floats) + vectors * (sizes.head_dim + 4)
    ids = jnp.zeros((3, layout.sequence_length), jnp.int32)
    state = decode.start(config, decode.make_mesh(), weights, ids, 9, guided=False, int8_cache=True)
    kept = sum(leaf.nbytes for leaf in jax.tree.leaves(state.cache))
    assert kept == vectors // tokens * layout.sequence_length * (sizes.head_dim + 4)


@pytest.mark.slow
def test_weights_of_int8_have_no_copy_of_floats():
    sizes = TransformerConfig(num_layers=8, model_dim=64, num_heads=2, head_dim=32, mlp_dim=256)
    config = TokenLMConfig(layout=StageLayout.of("semantic", SPEC), transformer=sizes)
    ids = jnp.zeros((1, config.layout.sequence_length), jnp.int32)
    shapes = jax.eval_shape(TokenLM(config).init, jax.random.key(0), ids)
    params = jax.tree.map(lambda x: np.zeros(x.shape, np.float32), shapes["params"])
    weights, mesh = decode.unroll(config, params, int8_weights=True), decode.make_mesh()
    state = decode.start(config, mesh, weights, ids, 3, guided=False)
    compiled = decode.decode_until.lower(
        config,
        mesh,
        config.layout.sequence_length,
        False,
        weights,
        state,
        keys(0),
        jnp.zeros(1, jnp.int32),
        jnp.int32(9),
        logits.by_row([GREEDY]),
    ).compile()
    matrix_bytes = sum(leaf.nbytes for leaf in jax.tree.leaves(weights["layers"]))
    assert matrix_bytes > 4e5
    assert compiled.memory_analysis().temp_size_in_bytes < matrix_bytes / 2


def test_bad_lengths_are_named():
    config, params = model("semantic")
    stage = Stage(config, params)
    condition = conditions(config.layout, 1)
    with pytest.raises(ValueError, match="up to 20"):
        stage.generate(condition, keys(0), [GREEDY], num_frames=21)
    with pytest.raises(ValueError, match="prompts of 20"):
        stage.generate(condition, keys(0), [GREEDY], prompts=np.zeros((1, 20, 1), np.int32))
    with pytest.raises(ValueError, match="3 in one go"):
        stage.generate(
            condition, keys(0), [GREEDY], prompts=np.zeros((1, 2, 1), np.int32), prefilled=3
        )


# Last, since all programs are forgotten for them.


@pytest.fixture
def coarse_int8(monkeypatch):
    """So few values that it is heard: small models take 255 as well as all floats."""
    programs = decode._start, decode.decode_until, score

    def forget():
        for program in programs:
            program.clear_cache()

    forget()
    monkeypatch.setattr(int8, "LARGEST", 1)
    yield
    forget()


def rounded(x, axis):
    return int8.dequantize(int8.quantize(jnp.asarray(x), axis), jnp.float32)


@pytest.mark.slow
@pytest.mark.parametrize(("stage", "gated"), [("coarse", True), ("semantic", False)])
def test_int8_weights_are_a_model_of_rounded_ones(coarse_int8, short_spans, stage, gated):
    config, params = model(stage, gated)
    layers = params["decoder"]["layers"]
    matrices = {module: layers[module] for module in ("attention", "mlp")}
    nearest = {**layers, **jax.jit(lambda m: jax.tree.map(lambda x: rounded(x, 1), m))(matrices)}
    near = {**params, "decoder": {**params["decoder"], "layers": nearest}}
    condition = conditions(config.layout, 3)
    stage = Stage(config, params, int8_weights=True)
    codes = stage.generate(condition, keys(0, 1, 2), [GREEDY] * 3)
    np.testing.assert_array_equal(codes, teacher_forced(config, near, condition, codes))
    assert (codes != teacher_forced(config, params, condition, codes)).any()


@pytest.mark.slow
@pytest.mark.parametrize(("stage", "rotary"), [("coarse", False), ("fine", True)])
def test_an_int8_cache_is_attention_to_rounded_vectors(
    coarse_int8, short_spans, monkeypatch, stage, rotary
):
    config, params = model(stage, rotary=rotary)
    condition = conditions(config.layout, 3)
    stage = Stage(config, params, int8_cache=True)
    codes = stage.generate(condition, keys(0, 1, 2), [GREEDY] * 3)
    exact = teacher_forced(config, params, condition, codes)
    attend = attention.causal_attention
    monkeypatch.setattr(
        attention,
        "causal_attention",
        lambda query, key, value, *more: attend(query, rounded(key, -1), rounded(value, -1), *more),
    )
    score.clear_cache()  # it has the attention of before
    np.testing.assert_array_equal(codes, teacher_forced(config, params, condition, codes))
    assert (codes != exact).any()
