"""Windows: they cover a clip, lie where they lie whatever its length, and steps count them."""

from hypothesis import given
from hypothesis import strategies as st

from musiclm.sampler import windows
from musiclm.sampler.windows import Steps, Window


def made(window_list):
    """The frames that each window makes, in order."""
    return [range(w.start + w.overlap, w.stop) for w in window_list]


@st.composite
def sizes(draw):
    size = draw(st.integers(2, 60))
    return draw(st.integers(1, 400)), size, draw(st.integers(0, size - 1))


@given(sizes())
def test_overlapping_windows_make_every_frame_once(sizes):
    num_frames, size, overlap = sizes
    found = windows.overlapping(num_frames, size, overlap)
    assert [frame for frames in made(found) for frame in frames] == list(range(num_frames))
    assert all(0 < w.stop - w.start <= size for w in found)
    assert all(w.overlap == (overlap if w.start else 0) for w in found)


@given(sizes(), st.integers(1, 100))
def test_overlapping_windows_of_a_longer_clip_begin_with_those_of_a_shorter(sizes, more):
    num_frames, size, overlap = sizes
    *whole, last = windows.overlapping(num_frames, size, overlap)
    longer = windows.overlapping(num_frames + more, size, overlap)
    assert longer[: len(whole)] == whole
    assert (longer[len(whole)].start, longer[len(whole)].index) == (last.start, last.index)


@given(st.integers(1, 60), st.integers(0, 400))
def test_windows_side_by_side_are_whole_and_cover(size, more):
    num_frames = size + more
    found = windows.side_by_side(num_frames, size)
    assert all(w.stop - w.start == size and w.overlap == 0 for w in found)
    assert {f for w in found for f in range(w.start, w.stop)} == set(range(num_frames))
    assert all(w.start == w.index * size for w in found[:-1])


@given(st.integers(1, 300), st.integers(2, 40), st.booleans())
def test_steps_count_what_windows_make(num_frames, size, swapped):
    steps = Steps(size=size)
    conditions = ["a", "b" if swapped else "a"]
    found = steps.windows(num_frames, conditions)
    assert [frame for frames in made(found) for frame in frames] == list(range(num_frames))
    for window, frames in zip(found, made(found), strict=True):
        assert steps.at(frames[0]) == window.index
        # Of one step each; the first has two if it may.
        last = steps.at(frames[-1])
        assert last == window.index or (last == 1 and window.index == 0 and not swapped)
    for step in range(1, 5):
        assert steps.at(int(steps.middle(step))) == step
        assert steps.at(steps.start(step)) == step
        assert not step or steps.at(steps.start(step) - 1) == step - 1


def test_semantic_windows_advance_by_half():
    same = ["a"] * 9
    assert Steps(size=750).windows(750, same) == [Window(index=0, start=0, stop=750, overlap=0)]
    assert Steps(size=750).windows(1300, same) == [
        Window(index=0, start=0, stop=750, overlap=0),
        Window(index=2, start=375, stop=1125, overlap=375),
        Window(index=3, start=750, stop=1300, overlap=375),
    ]
