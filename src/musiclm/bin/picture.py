"""A picture of a clip: its waveform above its mel spectrogram."""

import os
import textwrap
import warnings

import jax
import numpy as np

from musiclm import audio

_NUM_MELS = 96
_WINDOW_SECONDS = 0.064
_HOP_SECONDS = 0.010
_RANGE_DB = 80.0


def _log_mel_db(waveform: audio.Waveform) -> np.ndarray:
    """Mel magnitudes in dB below the loudest, [frames, mels]."""
    config = audio.MelConfig(
        sample_rate=waveform.sample_rate,
        num_mels=_NUM_MELS,
        window_size=round(_WINDOW_SECONDS * waveform.sample_rate),
        hop_size=round(_HOP_SECONDS * waveform.sample_rate),
    )
    log_mel = jax.jit(audio.log_mel, static_argnums=1)(waveform.samples[None], config)
    decibels = 20.0 / np.log(10.0) * np.asarray(log_mel[0])
    return decibels - decibels.max(initial=-np.inf) if decibels.size else decibels


def save(path: str | os.PathLike[str], waveform: audio.Waveform, title: str) -> None:
    """Draws the waveform and the mel spectrogram of a clip into a PNG file.

    Args:
      path: of the file.
      waveform: the clip.
      title: printed above; two lines of it at most.
    """
    # Not pyplot: it would look for a display and keep the figure alive.
    from matplotlib import figure
    from matplotlib.backends import backend_agg

    canvas = figure.Figure(figsize=(10, 5.5), layout="constrained", dpi=110)
    backend_agg.FigureCanvasAgg(canvas)
    wave, mel = canvas.subplots(2, 1, sharex=True, height_ratios=(1, 2.2))
    time = np.arange(len(waveform.samples)) / waveform.sample_rate
    wave.plot(time, waveform.samples, linewidth=0.4, color="#1f4e79")
    wave.set(ylim=(-1, 1), ylabel="amplitude", xlim=(0, waveform.seconds))
    lines = textwrap.wrap(title, 100, max_lines=2, placeholder=" …")
    # Without parse_math=False a prompt with two dollar signs would be read as a formula.
    wave.set_title("\n".join(lines), fontsize=10, parse_math=False)

    image = mel.imshow(
        _log_mel_db(waveform).T,
        origin="lower",
        aspect="auto",
        extent=(0, waveform.seconds, 0, _NUM_MELS),
        vmin=-_RANGE_DB,
        vmax=0,
        cmap="magma",
        interpolation="nearest",
    )
    edges = audio.hz_to_mel(np.array([0, waveform.sample_rate / 2]))
    ticks = np.array([125, 250, 500, 1000, 2000, 4000, 8000])
    ticks = ticks[ticks <= waveform.sample_rate / 2]
    mel.set_yticks(_NUM_MELS * audio.hz_to_mel(ticks) / edges[1], [str(tick) for tick in ticks])
    mel.set(xlabel="seconds", ylabel="frequency, Hz (mel scale)")
    canvas.colorbar(image, ax=mel, label="dB below the peak", pad=0.01)
    with warnings.catch_warnings():
        # A prompt may hold characters that the font lacks; boxes in the title do no harm.
        warnings.filterwarnings("ignore", message="Glyph .* missing", category=UserWarning)
        canvas.savefig(path, format="png")
