import jax
import numpy as np
import pytest

from musiclm.nn.spec_augment import SpecAugmentConfig, spec_augment


def test_masks_are_whole_bands_and_spans_within_their_widths():
    config = SpecAugmentConfig(
        num_frequency_masks=1, max_frequency_width=5, num_time_masks=1, max_time_width=9
    )
    spec_BTF = np.ones((64, 40, 20), np.float32)
    hidden_BTF = np.asarray(spec_augment(jax.random.key(0), spec_BTF, config)) == 0
    frames_BT, bands_BF = hidden_BTF.all(2), hidden_BTF.all(1)
    np.testing.assert_array_equal(hidden_BTF, frames_BT[:, :, None] | bands_BF[:, None, :])
    assert frames_BT.sum(1).max() == 9
    assert bands_BF.sum(1).max() == 5
    assert len(np.unique(frames_BT.sum(1))) > 5
    for row in (*frames_BT, *bands_BF):  # one run of ones
        assert np.abs(np.diff(row.astype(int))).sum() <= 2


def test_zero_masks_change_nothing():
    config = SpecAugmentConfig(num_frequency_masks=0, num_time_masks=0)
    spec_BTF = np.random.default_rng(0).normal(size=(2, 10, 5)).astype(np.float32)
    np.testing.assert_array_equal(spec_augment(jax.random.key(0), spec_BTF, config), spec_BTF)


def test_masks_wider_than_the_spectrogram_are_cut_to_it():
    config = SpecAugmentConfig(
        num_frequency_masks=0, num_time_masks=1, max_frequency_width=99, max_time_width=99
    )
    hidden_BTF = np.asarray(spec_augment(jax.random.key(0), np.ones((256, 6, 3)), config)) == 0
    widths, times = np.unique(hidden_BTF.all(2).sum(1), return_counts=True)
    np.testing.assert_array_equal(widths, np.arange(7))
    assert times.max() < 3 * times.min()  # none is preferred, such as the whole length


def test_negative_widths_are_refused():
    with pytest.raises(ValueError, match="max_time_width is -1"):
        SpecAugmentConfig(max_time_width=-1)
