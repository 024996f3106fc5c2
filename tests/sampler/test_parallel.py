"""Parallel decoding: its passes, what it keeps, what a row depends on, what it has by heart."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from musiclm.models.soundstorm import SoundStorm, SoundStormConfig
from musiclm.nn.conformer import ConformerConfig
from musiclm.sampler import parallel
from musiclm.sampler.logits import Sampling
from musiclm.sampler.parallel import ParallelStage
from musiclm.token_spec import TokenSpec
from musiclm.tokens.layout import StageLayout
from musiclm.training import optim
from musiclm.training.soundstorm import SoundStormTask

LEVELS, FRAMES, CODES = 3, 10, 13
LAYOUT = StageLayout.parallel(
    TokenSpec(
        num_acoustic_codebooks=LEVELS,
        acoustic_codebook_size=CODES,
        num_coarse_codebooks=2,
        semantic_vocab_size=11,
        num_mulan_codebooks=3,
        mulan_codebook_size=7,
        coarse_window_seconds=FRAMES / 50,
    )
)
CONFIG = SoundStormConfig(
    layout=LAYOUT,
    conformer=ConformerConfig(num_blocks=1, model_dim=16, num_heads=2, ffn_dim=24),
)
GREEDY = Sampling(temperature=0.0)


@functools.cache
def stage(iterations=(4, 2)):
    """A small model with random weights, large enough that greedy choices are no ties."""
    ids_BS = jnp.zeros((1, LAYOUT.sequence_length), jnp.int32)
    masked_BTQ = jnp.zeros((1, FRAMES, LEVELS), bool)
    shapes = jax.eval_shape(
        SoundStorm(CONFIG).init, jax.random.key(0), ids_BS, masked_BTQ, jnp.zeros(1, jnp.int32)
    )
    rng = np.random.default_rng(0)
    params = jax.tree.map(lambda x: rng.normal(0, 0.4, x.shape).astype(np.float32), shapes)
    return ParallelStage(CONFIG, params["params"], iterations=iterations)


def conditions(rows, seed=0):
    rng = np.random.default_rng(seed)
    return {
        "mulan": rng.integers(0, 7, (rows, 3), dtype=np.int32),
        "semantic": rng.integers(0, 11, (rows, FRAMES // 2), dtype=np.int32),
    }


def made(rows, frames, seed=7):
    return np.random.default_rng(seed).integers(0, CODES, (rows, frames, LEVELS), dtype=np.int32)


def keys(*seeds):
    return jax.vmap(jax.random.key)(jnp.asarray(seeds, jnp.uint32))


@jax.jit
def apply(ids_BS, masked_BTQ, level):
    level_B = jnp.full(len(ids_BS), level)
    return SoundStorm(CONFIG).apply({"params": stage()._params}, ids_BS, masked_BTQ, level_B)


log_softmax = jax.jit(jax.nn.log_softmax)


def scores(condition, codes_BTQ, masked_BTQ, level):
    return np.asarray(apply(LAYOUT.flatten(condition | {"acoustic": codes_BTQ}), masked_BTQ, level))


def reference(condition, prompt_BTQ, iterations):
    """Greedy decoding of all rows, written out: one frame, level and pass at a time."""
    rows, prompt = prompt_BTQ.shape[:2]
    codes_BTQ = np.zeros((rows, FRAMES, LEVELS), np.int32)
    codes_BTQ[:, :prompt] = prompt_BTQ
    unknown_BTQ = np.zeros(codes_BTQ.shape, bool)
    unknown_BTQ[:, prompt:] = True
    for level in range(LEVELS):
        passes = iterations[level] if level < len(iterations) else 1
        for i in range(1, passes + 1):
            logits_BTK = scores(condition, codes_BTQ, unknown_BTQ, level)
            log_probs_BTK = np.asarray(log_softmax(logits_BTK))
            left = int(np.float32(np.cos(np.pi / 2 * i / passes)) * (FRAMES - prompt) + 1e-6)
            for row in range(rows):
                masked = np.flatnonzero(unknown_BTQ[row, :, level])
                sure = sorted(masked, key=lambda t: log_probs_BTK[row, t].max())
                for frame in sure[left:]:
                    codes_BTQ[row, frame, level] = log_probs_BTK[row, frame].argmax()
                    unknown_BTQ[row, frame, level] = False
    assert not unknown_BTQ.any()
    return codes_BTQ


def test_the_papers_passes():
    passes = parallel.plan(parallel.ITERATIONS, 12)
    np.testing.assert_array_equal(passes.levels, [0] * 16 + list(range(1, 12)))
    np.testing.assert_allclose(passes.remaining[:16], 1 - np.arange(1, 17) / 16)
    assert (passes.remaining[15:] == 0).all()


@pytest.mark.parametrize("iterations", [(1, 1, 1, 1), (0,), (4, -1)])
def test_impossible_passes_are_named(iterations):
    with pytest.raises(ValueError, match=r"iterations is .* for 3 levels"):
        ParallelStage(CONFIG, {}, iterations=iterations)


@given(
    # XLA takes subnormal numbers for zero.
    confidence=st.lists(st.floats(-9, 0, width=32, allow_subnormal=False), min_size=6, max_size=6),
    masked=st.lists(st.booleans(), min_size=6, max_size=6),
    count=st.integers(0, 6),
)
def test_the_least_sure_stay_masked(confidence, masked, count):
    confidence, masked = np.array(confidence, np.float32), np.array(masked)
    (still,) = np.asarray(parallel.least_sure(confidence[None], masked[None], jnp.array([count])))
    assert not still[~masked].any()
    assert still.sum() == min(count, masked.sum())
    gone = masked & ~still
    if still.any() and gone.any():
        assert confidence[still].max() <= confidence[gone].min()


@pytest.mark.slow
@pytest.mark.parametrize("prompt_frames", [0, 3])
def test_greedy_decoding_equals_the_algorithm_written_out(prompt_frames):
    condition, prompt_BTQ = conditions(3), made(3, prompt_frames)
    codes_BTQ = stage().generate(condition, keys(0, 1, 2), [GREEDY] * 3, prompts=prompt_BTQ)
    np.testing.assert_array_equal(codes_BTQ, reference(condition, prompt_BTQ, (4, 2)))
    assert len(np.unique(codes_BTQ)) > 3  # not one code over and over, which would prove little


@pytest.mark.slow
def test_guidance_moves_away_from_the_null_condition():
    condition, prompt_BTQ = conditions(3), made(3, 2)
    sampling = Sampling(temperature=0.0, guidance=3.0)
    codes_BTQ = stage().generate(
        condition, keys(0, 1, 2), [sampling, GREEDY, GREEDY], prompts=prompt_BTQ
    )
    plain_BTQ = stage().generate(condition, keys(0, 1, 2), [GREEDY] * 3, prompts=prompt_BTQ)
    # A neighbour's guidance changes nothing.
    np.testing.assert_array_equal(codes_BTQ[1:], plain_BTQ[1:])
    assert (codes_BTQ[0] != plain_BTQ[0]).any()
    # The last level in one pass: all of it at once by the guided scores.
    masked_BTQ = np.zeros(codes_BTQ.shape, bool)
    masked_BTQ[:, 2:, 2] = True
    given_BTK = scores(condition, codes_BTQ, masked_BTQ, 2)
    ids_BS = LAYOUT.flatten(condition | {"acoustic": codes_BTQ})
    null_BS = LAYOUT.drop_condition(ids_BS, np.ones(3, bool))
    null_BTK = np.asarray(apply(null_BS, masked_BTQ, 2))
    guided_BTK = null_BTK + 3.0 * (given_BTK - null_BTK)
    np.testing.assert_array_equal(codes_BTQ[0, 2:, 2], guided_BTK[0, 2:].argmax(-1))


@given(
    prompt_frames=st.integers(0, FRAMES - 1),
    temperature=st.sampled_from([0.0, 0.7, 1.0]),
    seed=st.integers(0, 2**31),
)
def test_prompts_are_kept_and_every_place_is_filled(prompt_frames, temperature, seed):
    prompt_BTQ = made(3, prompt_frames, seed)
    samplings = [Sampling(temperature=temperature)] * 3
    whole = functools.partial(
        stage().generate, conditions(3), keys(seed, 1, 2), samplings, prompts=prompt_BTQ
    )
    moves = []
    codes_BTQ = whole(progress=moves.append)
    assert codes_BTQ.shape == (3, FRAMES, LEVELS)
    assert codes_BTQ.dtype == np.int32
    assert codes_BTQ.min() >= 0
    assert codes_BTQ.max() < CODES
    np.testing.assert_array_equal(codes_BTQ[:, :prompt_frames], prompt_BTQ)
    assert moves == [FRAMES]
    part_BTQ = whole(num_frames=prompt_frames + 1)
    np.testing.assert_array_equal(part_BTQ, codes_BTQ[:, : prompt_frames + 1])


def test_what_a_row_depends_on():
    condition = conditions(3)
    samplings = [Sampling(temperature=t) for t in (1.0, 0.5, 0.9)]
    codes_BTQ = stage().generate(condition, keys(4, 5, 6), samplings)
    again_BTQ = stage().generate(condition, keys(4, 5, 6), samplings)
    np.testing.assert_array_equal(again_BTQ, codes_BTQ)
    # Prompts of other lengths beside it.
    beside = [made(1, frames)[0] for frames in (0, 4, 9)]
    beside_BTQ = stage().generate(condition, keys(4, 5, 6), samplings, prompts=beside)
    np.testing.assert_array_equal(beside_BTQ[0], codes_BTQ[0])
    np.testing.assert_array_equal(beside_BTQ[1, :4], beside[1])
    alone_BTQ = stage().generate(condition, keys(4, 5, 6), samplings, prompts=[beside[1]] * 3)
    np.testing.assert_array_equal(beside_BTQ[1], alone_BTQ[1])
    # Other neighbours, another place in the batch.
    order = [2, 0, 0]
    other = {source: array[order] for source, array in condition.items()}
    moved_BTQ = stage().generate(other, keys(6, 4, 9), [samplings[i] for i in order])
    np.testing.assert_array_equal(moved_BTQ[:2], codes_BTQ[[2, 0]])
    # A neighbour that draws from few codes.
    narrow = [*samplings[:2], Sampling(top_k=2, temperature=0.9)]
    narrow_BTQ = stage().generate(condition, keys(4, 5, 6), narrow)
    np.testing.assert_array_equal(narrow_BTQ[:2], codes_BTQ[:2])
    # The same condition under another seed; and under another temperature.
    assert (moved_BTQ[2] != moved_BTQ[1]).any()
    cold_BTQ = stage().generate(condition, keys(4, 5, 6), [GREEDY, *samplings[1:]])
    assert (cold_BTQ[0] != codes_BTQ[0]).any()
    np.testing.assert_array_equal(cold_BTQ[1:], codes_BTQ[1:])


def test_the_last_pass_is_greedy():
    """One pass a level leaves nothing to chance."""
    drawn = [
        stage((1,)).generate(conditions(1), keys(seed), [Sampling(temperature=1.0)])
        for seed in (0, 1)
    ]
    np.testing.assert_array_equal(*drawn)


def test_top_k_of_one_is_greedy_but_for_the_order():
    condition = conditions(3)
    only_one = [Sampling(top_k=1)] * 3
    codes_BTQ = stage((2,)).generate(condition, keys(0, 1, 2), only_one)
    masked_BTQ = np.zeros(codes_BTQ.shape, bool)
    masked_BTQ[:, :, 1:] = True
    second = scores(condition, codes_BTQ, masked_BTQ, 1).argmax(-1)
    np.testing.assert_array_equal(codes_BTQ[:, :, 1], second)
    everything = scores(condition, codes_BTQ, np.ones(codes_BTQ.shape, bool), 0).argmax(-1)
    # What the first pass kept: more than half of the frames at cos(π/4) … 0.
    kept = FRAMES - int(np.cos(np.pi / 4) * FRAMES)
    assert ((codes_BTQ[:, :, 0] == everything).sum(1) >= kept).all()


def test_what_is_wrong_is_named():
    condition = conditions(2)
    with pytest.raises(ValueError, match=f"up to {FRAMES}"):
        stage().generate(condition, keys(0, 1), [GREEDY] * 2, num_frames=FRAMES + 1)
    with pytest.raises(ValueError, match=f"prompts of {FRAMES} or more in the parallel"):
        stage().generate(condition, keys(0, 1), [GREEDY] * 2, prompts=made(2, FRAMES))


@pytest.mark.slow
def test_a_trained_model_makes_what_it_was_shown():
    """Four clips by heart: the learned model has nine codes in ten right, the untrained few."""
    rng = np.random.default_rng(3)
    codes = conditions(4, 3) | {
        "acoustic": rng.integers(0, CODES, (4, FRAMES, LEVELS), dtype=np.int32)
    }
    batch = {"tokens": np.tile(LAYOUT.flatten(codes), (4, 1))}
    steps = 300
    task = SoundStormTask(
        config=CONFIG,
        optimizer=optim.OptimizerConfig(learning_rate=1e-2, warmup_steps=20, total_steps=steps),
    )
    state = jax.jit(task.init)(jax.random.key(0), batch)

    def right(state):
        made = ParallelStage(CONFIG, state.params).generate(codes, keys(0, 1, 2, 3), [GREEDY] * 4)
        return (made == codes["acoustic"]).mean()

    untrained = right(state)
    step = jax.jit(task.step)
    for i in range(steps):
        state, _ = step(state, batch, jax.random.key(i))
    assert untrained < 0.3
    assert right(state) > 0.9
