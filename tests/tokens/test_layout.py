"""Sequences of the stages: lengths, ranges of identifiers, exact round trips."""

import subprocess
import sys

import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from musiclm.token_spec import TokenSpec
from musiclm.tokens import layout as layouts
from musiclm.tokens.layout import StageLayout


def random_codes(layout, batch, seed):
    rng = np.random.default_rng(seed)
    codes = {}
    for segment in (*layout.prefix, layout.target):
        shape = (batch, segment.num_frames, segment.num_levels)
        new = rng.integers(0, segment.codebook_size, shape, dtype=np.int32)
        old = codes.get(segment.source)
        codes[segment.source] = new if old is None else np.concatenate([old, new], axis=2)
    for source, axis in (("mulan", 1), ("semantic", 2)):
        if source in codes:
            codes[source] = codes[source].squeeze(axis)
    return codes


specs = st.builds(
    TokenSpec,
    num_acoustic_codebooks=st.integers(3, 6),
    acoustic_codebook_size=st.integers(1, 9),
    num_coarse_codebooks=st.integers(1, 2),
    semantic_vocab_size=st.integers(1, 9),
    num_mulan_codebooks=st.integers(1, 4),
    mulan_codebook_size=st.integers(1, 9),
    num_melody_codebooks=st.integers(0, 2),
    melody_codebook_size=st.integers(1, 9),
    num_melody_embeddings=st.integers(1, 3),
    semantic_frame_rate=st.sampled_from([25, 50]),
    semantic_window_seconds=st.sampled_from([0.2, 0.4]),
    coarse_window_seconds=st.sampled_from([0.08, 0.2]),
    fine_window_seconds=st.sampled_from([0.02, 0.1]),
)


@pytest.mark.parametrize(
    ("stage", "length", "prefix"),
    [
        ("semantic", 762, 12),
        ("coarse", 2262, 262),
        ("fine", 1800, 600),
        ("parallel", 6262, 262),
    ],
)
def test_lengths_are_the_papers(stage, length, prefix):
    layout = StageLayout.of(stage, TokenSpec())
    assert (layout.sequence_length, layout.prefix_length) == (length, prefix)
    assert len(layout.times) == length


@pytest.mark.parametrize(
    ("stage", "sources", "prefix"),
    [
        ("semantic", ["mulan", "melody"], 12 + 72),
        ("coarse", ["mulan", "melody", "semantic"], 12 + 72 + 250),
        ("fine", ["acoustic"], 600),
        ("parallel", ["mulan", "semantic"], 12 + 250),
    ],
)
def test_a_melody_follows_the_text(stage, sources, prefix):
    plain = StageLayout.of(stage, TokenSpec())
    layout = StageLayout.of(stage, TokenSpec(num_melody_codebooks=24))
    assert [segment.source for segment in layout.prefix] == sources
    assert layout.prefix_length == prefix
    assert layout.target == plain.target
    more = 24 * 512 if "melody" in sources else 0
    assert layout.target_offset == plain.target_offset + more
    assert layout.vocab_size == plain.vocab_size + more
    # For the clip as a whole, as the text: nothing else is at another moment than before.
    assert np.trim_zeros(layout.times).tolist() == np.trim_zeros(plain.times).tolist()


def test_a_melody_has_identifiers_of_its_own():
    spec = TokenSpec(
        num_mulan_codebooks=2,
        mulan_codebook_size=4,
        num_melody_codebooks=2,
        melody_codebook_size=3,
        num_melody_embeddings=2,
        semantic_vocab_size=5,
        semantic_window_seconds=0.04,
    )
    codes = {
        "mulan": np.array([[0, 3]]),
        "melody": np.array([[[0, 1], [2, 2]]]),
        "semantic": np.array([[4]]),
    }
    layout = StageLayout.semantic(spec)
    ids = layout.flatten(codes)
    #         mulan: 2, 2 + 4 + 3    melody from 10, levels 3 apart    semantic from 16
    np.testing.assert_array_equal(ids, [[2, 9, 10, 13 + 1, 10 + 2, 13 + 2, 16 + 4]])
    dropped = layout.drop_condition(ids, np.array([True]))
    np.testing.assert_array_equal(dropped, [[layouts.NULL] * 6 + [20]])
    with pytest.raises(ValueError, match=r"'melody'.*2 frames of at least 2 levels"):
        layout.flatten(codes | {"melody": codes["melody"][:, :1]})
    with pytest.raises(ValueError, match="no 'melody'"):
        layout.flatten({"mulan": codes["mulan"], "semantic": codes["semantic"]})


@settings(max_examples=60, deadline=None)
@given(spec=specs, stage=st.sampled_from(layouts.LAYOUTS), seed=st.integers(0, 2**16))
def test_round_trip_is_exact(spec, stage, seed):
    layout = StageLayout.of(stage, spec)
    codes = random_codes(layout, 2, seed)
    ids = layout.flatten(codes)
    assert ids.dtype == np.int32
    assert ids.shape == (2, layout.sequence_length)
    assert ids.min() >= layouts.NUM_SPECIAL
    assert ids.max() < layout.vocab_size
    assert codes.keys() == layout.unflatten(ids).keys()
    for source, array in layout.unflatten(ids).items():
        np.testing.assert_array_equal(array, codes[source])
    target = ids[:, layout.prefix_length :]
    np.testing.assert_array_equal(layout.flatten_prefix(codes), ids[:, : layout.prefix_length])
    np.testing.assert_array_equal(layout.flatten_target(layout.unflatten_target(target)), target)


@settings(max_examples=30, deadline=None)
@given(spec=specs, stage=st.sampled_from(layouts.LAYOUTS))
def test_every_code_has_an_identifier_of_its_own(spec, stage):
    layout = StageLayout.of(stage, spec)
    seen = []
    offset = layouts.NUM_SPECIAL
    for segment in (*layout.prefix, layout.target):
        seen += range(offset, offset + segment.num_codes)
        offset += segment.num_codes
    assert sorted(seen) == list(range(layouts.NUM_SPECIAL, layout.vocab_size))


def test_acoustic_tokens_go_frame_by_frame():
    spec = TokenSpec(
        num_acoustic_codebooks=3,
        num_coarse_codebooks=2,
        acoustic_codebook_size=10,
        num_mulan_codebooks=2,
        mulan_codebook_size=4,
        semantic_vocab_size=5,
        coarse_window_seconds=0.04,
        fine_window_seconds=0.04,
    )
    codes = {
        "mulan": np.array([[0, 3]]),
        "semantic": np.array([[4]]),
        "acoustic": np.array([[[0, 1, 2], [9, 8, 7]]]),
    }
    coarse = StageLayout.coarse(spec).flatten(codes)
    #             mulan: 2, 2 + 4 + 3    semantic: 2 + 8 + 4    acoustic from 15, levels 10 apart
    np.testing.assert_array_equal(coarse, [[2, 9, 14, 15, 15 + 11, 15 + 9, 15 + 18]])
    fine = StageLayout.fine(spec).flatten(codes)
    np.testing.assert_array_equal(fine, [[2, 2 + 11, 2 + 9, 2 + 18, 22 + 2, 22 + 7]])


def test_a_coarse_stage_without_semantic_codes():
    spec = TokenSpec(coarse_window_seconds=0.04, num_mulan_codebooks=2, mulan_codebook_size=4)
    heard, unheard = (StageLayout.coarse(spec, semantic=semantic) for semantic in (True, False))
    assert unheard.target == heard.target
    codes = {"mulan": np.array([[0, 3]]), "acoustic": np.zeros((1, 2, 4), int)}
    np.testing.assert_array_equal(unheard.flatten(codes)[0, :3], [2, 9, 10])
    # All that is left of the prefix holds for the clip: every token hears all of it.
    assert unheard.prefix_length == 2
    np.testing.assert_array_equal(unheard.aligned[1:-1], [[0, 1]] * 8)


def test_times_align_segments():
    layout = StageLayout.coarse(TokenSpec(coarse_window_seconds=0.08, num_mulan_codebooks=2))
    np.testing.assert_array_equal(layout.times, [0, 0, 1, 2] + [1] * 8 + [2] * 8)
    layout = StageLayout.fine(TokenSpec(fine_window_seconds=0.04))
    np.testing.assert_array_equal(layout.times, [1] * 4 + [2] * 4 + [1] * 8 + [2] * 8)


def test_jax_arrays_give_the_same_as_numpy():
    layout = StageLayout.fine(TokenSpec(fine_window_seconds=0.1))
    codes = random_codes(layout, 3, 0)
    ids = layout.flatten(codes)
    on_device = layout.flatten({name: jnp.asarray(array) for name, array in codes.items()})
    np.testing.assert_array_equal(on_device, ids)
    back = layout.unflatten(on_device)["acoustic"]
    np.testing.assert_array_equal(back, codes["acoustic"])


def test_dropping_the_condition_leaves_the_target():
    layout = StageLayout.coarse(TokenSpec(coarse_window_seconds=0.2))
    ids = layout.flatten(random_codes(layout, 3, 0))
    dropped = layout.drop_condition(ids, np.array([True, False, True]))
    prefix = layout.prefix_length
    np.testing.assert_array_equal(dropped[:, prefix:], ids[:, prefix:])
    np.testing.assert_array_equal(dropped[1], ids[1])
    assert (dropped[[0, 2], :prefix] == layouts.NULL).all()


def test_wrong_shapes_are_named():
    layout = StageLayout.semantic(TokenSpec(semantic_window_seconds=0.2))
    with pytest.raises(ValueError, match=r"'semantic'.*5 frames"):
        layout.flatten({"mulan": np.zeros((1, 12), int), "semantic": np.zeros((1, 6), int)})
    with pytest.raises(ValueError, match="no 'mulan'"):
        layout.flatten({"semantic": np.zeros((1, 5), int)})
    with pytest.raises(ValueError, match="choose one of"):
        StageLayout.of("middle", TokenSpec())


def test_imports_neither_jax_nor_flax():
    code = "import musiclm.tokens.layout, sys; print({'jax', 'flax'} & set(sys.modules))"
    result = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=True
    )
    assert result.stdout.strip() == "set()"


@settings(max_examples=30, deadline=None)
@given(spec=specs, stage=st.sampled_from(layouts.LAYOUTS))
def test_aligned_is_what_the_prefix_has_at_the_moment_of_the_next_token(spec, stage):
    layout = StageLayout.of(stage, spec)
    aligned, times, first = layout.aligned, layout.times, layout.prefix_length
    assert len(aligned) == layout.sequence_length
    assert (aligned[: first - 1] == -1).all()
    assert (aligned[-1] == -1).all()
    for position in range(first - 1, layout.sequence_length - 1):
        found = aligned[position][aligned[position] >= 0]
        wanted = [p for p in range(first) if times[p] == times[position + 1]]
        assert found.tolist() == (list(range(first)) if stage == "semantic" else wanted)
    count = {
        "semantic": spec.num_mulan_codebooks
        + spec.num_melody_codebooks * spec.num_melody_embeddings,
        "coarse": 1,
        "fine": spec.num_coarse_codebooks,
        "parallel": 1,
    }[stage]
    assert aligned.shape[1] == count
