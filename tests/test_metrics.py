"""What a run writes down, as TensorBoard reads it."""

import io
import json
import subprocess
import sys

import jax
import numpy as np
import pytest
import soundfile

from musiclm import audio, metrics

RATE = 8_000


@pytest.fixture
def written(tmp_path):
    """A folder with two steps' figures, and what TensorBoard finds in it."""
    from tensorboard.backend.event_processing import event_accumulator

    time_T = np.arange(RATE) / RATE
    tones_NT = np.stack([0.5 * np.sin(2 * np.pi * hertz * time_T) for hertz in (440.0, 2_000.0)])
    folder = tmp_path / "run"
    with metrics.MetricWriter(folder) as writer:
        writer.write(1, {"loss": np.float32(2.5), "eval/loss": 3})
        writer.write(2, {"loss": 1.25})
        # One process of a job writes: what it asked of devices, the others would have to as well.
        with jax.transfer_guard("disallow"):
            writer.write_sounds(2, {"original": tones_NT.astype(np.float32)}, RATE)
    found = event_accumulator.EventAccumulator(str(folder))
    return folder, found.Reload(), tones_NT


def test_scalars_are_curves_and_lines(written):
    folder, found, _ = written
    assert [(event.step, event.value) for event in found.Scalars("loss")] == [(1, 2.5), (2, 1.25)]
    assert [(event.step, event.value) for event in found.Scalars("eval/loss")] == [(1, 3.0)]
    lines = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    assert lines == [{"step": 1, "loss": 2.5, "eval/loss": 3.0}, {"step": 2, "loss": 1.25}]


def test_what_is_published_is_there_before_the_end(tmp_path):
    """Each time in files of its own, though they are opened within one second."""
    from tensorboard.backend.event_processing import event_accumulator

    with metrics.MetricWriter(tmp_path) as writer:
        for step in range(3):
            writer.write(step, {"loss": step})
            writer.publish()
        found = event_accumulator.EventAccumulator(str(tmp_path)).Reload()
        curve = [(event.step, event.value) for event in found.Scalars("loss")]
        lines = (tmp_path / "metrics.jsonl").read_text().splitlines()
    assert curve == [(0, 0), (1, 1), (2, 2)]
    assert [json.loads(line)["step"] for line in lines] == [0, 1, 2]


def test_sounds_are_heard_and_seen(written):
    from PIL import Image

    _, found, tones_NT = written
    middles = []
    for n, tone_T in enumerate(tones_NT):
        (heard,) = found.Audio(f"sound/original/{n}")
        samples_T, rate = soundfile.read(io.BytesIO(heard.encoded_audio_string))
        assert (heard.step, rate) == (2, RATE)
        np.testing.assert_allclose(samples_T, tone_T, atol=1 / 2**14)
        (seen,) = found.Images(f"spectrogram/original/{n}")
        picture_FT = np.asarray(Image.open(io.BytesIO(seen.encoded_image_string)).convert("L"))
        brightness_F = picture_FT.mean(axis=1)
        assert np.ptp(brightness_F) > 50  # of 255
        middles.append(brightness_F.argmax() / len(brightness_F))
    assert middles[1] < middles[0]  # high tones are above


def test_pictures_are_of_the_models_spectra():
    config = audio.MelConfig(sample_rate=RATE)
    noise_NT = 0.1 * np.random.default_rng(0).normal(size=(2, 3_333)).astype(np.float32)
    expected = audio.log_mel(noise_NT, config)
    np.testing.assert_allclose(metrics._log_mel(noise_NT, config), expected, atol=1e-4)


def test_a_run_that_writes_needs_no_tensorflow(tmp_path):
    """It takes seconds to import, in each process of a job."""
    program = (
        "import sys; from musiclm import metrics; "
        f"metrics.MetricWriter({str(tmp_path)!r}).close(); sys.exit('tensorflow' in sys.modules)"
    )
    assert subprocess.run([sys.executable, "-c", program]).returncode == 0
