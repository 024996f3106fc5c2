"""Where windows meet nothing is heard: long clips of the bundled model.

Shapes: T samples, N frames of 10 ms, S seams.
"""

import numpy as np
import pytest

from musiclm import MusicLM, audio

RATE = 16_000
MEL = audio.MelConfig(sample_rate=RATE, num_mels=64, window_size=512, hop_size=160)
# Frames on either side of a seam in which a click would show.
REACH = 3


def flux(samples_T):
    """By how much the log-mel spectrum rises, mean over its bands: at most within `REACH`, [N]."""
    mel_NM = np.asarray(audio.log_mel(samples_T[None], MEL))[0]
    rise_N = np.pad(np.maximum(np.diff(mel_NM, axis=0), 0).mean(axis=1), REACH)
    return np.lib.stride_tricks.sliding_window_view(rise_N, 2 * REACH + 1).max(axis=1)


def seams(chain, plan):
    """Samples at which a window of a stage takes over from the one before, by stage."""
    track, spec = chain.track(plan), chain.token_spec
    found = {
        "semantic": (track.semantic.windows, spec.semantic_frame_rate),
        "coarse": (track.acoustic.windows, spec.acoustic_frame_rate),
        "fine": (track.fine_windows, spec.acoustic_frame_rate),
    }
    starts = {
        stage: np.array([(w.start + w.overlap) * RATE // rate for w in of_stage[1:]])
        for stage, (of_stage, rate) in found.items()
    }
    # Semantic windows may begin beyond the end of a clip.
    return {stage: at_S[at_S < plan.clip.seconds * RATE] for stage, at_S in starts.items()}


def compare(samples_T, at_S, all_S):
    """How the flux at some seams compares with that at none.

    Returns:
      Of places without a seam the share that have less, mean over the seams; and the greatest flux
      at a seam, in multiples of what one in a hundred of those places exceeds.
    """
    flux_N = flux(samples_T)
    far_N = np.abs(np.arange(len(flux_N))[:, None] - all_S // MEL.hop_size).min(axis=1) > 2 * REACH
    elsewhere, here_S = np.sort(flux_N[far_N]), flux_N[at_S // MEL.hop_size]
    shares_S = np.searchsorted(elsewhere, here_S) / len(elsewhere)
    return shares_S.mean(), here_S.max() / np.quantile(elsewhere, 0.99)


def with_jumps(samples_T, at_S):
    """Every other piece between seams upside down: a jump of the phase where they meet."""
    pieces = np.split(samples_T, at_S)
    return np.concatenate([piece * (-1) ** i for i, piece in enumerate(pieces)])


def with_cuts(samples_T, at_S):
    """Every other piece from 37 ms later."""
    late_T = np.roll(samples_T, -round(0.037 * RATE))
    pieces = zip(np.split(samples_T, at_S), np.split(late_T, at_S), strict=True)
    return np.concatenate([pair[i % 2] for i, pair in enumerate(pieces)])


@pytest.mark.slow
def test_no_seam_clicks():
    """36 s of held notes: of the first seed in which jumps and cuts show."""
    model = MusicLM.from_pretrained("gm-mini")
    clip = {"prompt": "church organ", "seconds": 36.0, "seed": 19}
    (plan,) = model.plans(**clip)
    samples_T = model.generate(clip.pop("prompt"), **clip).samples
    at = seams(model._chain, plan)
    numbers = {stage: len(at_S) for stage, at_S in at.items()}
    assert numbers == {"semantic": 6, "coarse": 9, "fine": 35}
    all_S = np.concatenate(list(at.values()))
    for stage, at_S in at.items():
        # Places drawn at random would have a share of 0.5, with this deviation. Windows of the fine
        # stage do not look back: at their seams, and the others often lie there as well, the timbre
        # changes a little. Notes begin there oftener, too, seams being on whole seconds. Together
        # the share is about 0.63, and nearer to 0.53 where the windows lie half a second later.
        most = 0.65 + 2.5 / np.sqrt(12 * len(at_S))
        share, greatest = compare(samples_T, at_S, all_S)
        assert share < most, stage
        assert greatest < 1.3, stage
        for damage in (with_jumps, with_cuts):
            share, greatest = compare(damage(samples_T, at_S), at_S, all_S)
            assert share > most, (stage, damage)
            assert greatest > 1.3, (stage, damage)
