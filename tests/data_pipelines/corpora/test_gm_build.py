"""The corpus on disk: what is heard is what is written, and no kill or bad input harms it."""

import dataclasses
import hashlib
import json
import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pretty_midi
import pytest
import soundfile

from data_pipelines import manifest
from data_pipelines.corpora.gm import attributes as gm_attributes
from data_pipelines.corpora.gm import build as gm_build
from data_pipelines.corpora.gm import clip, compose, synth
from data_pipelines.corpora.gm.worker import Worker, WorkerError

ROOT = Path(__file__).resolve().parents[3]
COMMAND = [sys.executable, "-m", "musiclm.bin.main", "data", "gm"]
RATE = 16_000


def _command(*arguments, **variables):
    return subprocess.run(
        [*COMMAND, *map(str, arguments)],
        cwd=ROOT,
        env={**os.environ, **variables},
        capture_output=True,
        text=True,
    )


def _bytes(folder):
    return {path.name: path.read_bytes() for path in folder.iterdir()}


def _spectrum(samples_T):
    return np.abs(np.fft.rfft(samples_T * np.hanning(len(samples_T)), 1 << 16))


def test_clips_are_as_the_manifest_says(corpus):
    clips = manifest.read(corpus)
    assert [one.file for one in clips] == [clip.file_name(i) for i in range(24)]
    for one in clips:
        path = corpus / one.file
        samples_T, rate = soundfile.read(path)
        info = soundfile.info(path)
        assert (info.subtype, info.channels, rate, len(samples_T)) == ("PCM_16", 1, RATE, 160_000)
        assert (one.channels, one.sample_rate, one.seconds) == (1, RATE, 10.0)
        assert one.sha256 == hashlib.sha256(path.read_bytes()).hexdigest()
        assert one.licence == synth.licence_of(synth.find_soundfont())
        entry = one.attributes
        peak = np.abs(samples_T).max()
        assert peak == pytest.approx(synth.PEAK, abs=1e-3)  # normalised, so nothing clips
        rms_db = 10 * np.log10(np.mean(samples_T**2))
        assert rms_db == pytest.approx(entry["rms_db"], abs=0.05)
        assert np.argmax(np.abs(samples_T) > 0.05 * peak) < 0.5 * RATE  # music from the start
        # And to the end: no second of silence anywhere.
        loudest = np.abs(samples_T).reshape(10, RATE).max(axis=1)
        assert loudest.min() > 1e-3
        instrument = gm_attributes.INSTRUMENTS[entry["instrument"]]
        assert (entry["program"], entry["family"]) == (instrument.program, instrument.family)
        assert entry["tempo"] == gm_attributes.tempo_class(entry["bpm"])
        assert entry["density"] == gm_attributes.density_class(
            entry["notes_per_s"] * 60 / entry["bpm"]
        )
        assert entry["caption"] in [caption.text for caption in one.captions]
        assert {caption.kind for caption in one.captions} == set(manifest.CAPTION_KINDS)


def test_lines_have_all_that_is_promised(corpus):
    line = json.loads((corpus / manifest.NAME).read_text().splitlines()[0])
    names = "file sha256 seconds sample_rate channels licence split captions caption instrument"
    names += " family program tonic mode bpm tempo notes_per_s density register mean_pitch chords"
    names += " bass drums articulation mood combination rms_db seed index"
    assert set(line) == set(names.split())
    assert all(set(caption) == {"kind", "text"} for caption in line["captions"])


def test_hold_out_in_the_manifest(corpus, held_out_corpus):
    for folder, held_out in ((corpus, False), (held_out_corpus, True)):
        for one in manifest.read(folder):
            assert gm_attributes.is_held_out(one.attributes["combination"]) == held_out
            assert (one.split == "test") == held_out


def test_few_clips_are_for_validation():
    job = clip.Job(seed=0, held_out=False, seconds=10.0, sample_rate=RATE)
    splits = [job.split(index) for index in range(8000)]
    assert set(splits) == {"train", "validation"}
    assert 150 < splits.count("validation") < 250


def test_a_foreign_soundfont_has_no_known_licence(tmp_path):
    assert synth.licence_of("/usr/share/sounds/sf2/FluidR3_GM.sf2") == "MIT"
    assert synth.licence_of(tmp_path / "mine.sf2") == ""


def test_lead_is_in_tune(corpus):
    """The comb of harmonics that fits each long note of the lead best is that of its pitch."""
    job = clip.Job(seed=3, held_out=False, seconds=10.0, sample_rate=RATE)
    right = []
    candidates = np.arange(-2, 3)  # semitones beside the note: two of them are in most scales
    frequencies = np.fft.rfftfreq(1 << 16, 1 / RATE)
    for index in range(24):
        samples_T, _ = soundfile.read(corpus / clip.file_name(index))
        _, piece = clip.make_piece(job, index)
        for note in piece.midi.instruments[0].notes:
            if note.end - note.start < 0.15:
                continue
            start, stop = round((note.start + 0.03) * RATE), round(note.end * RATE)
            spectrum = _spectrum(samples_T[start : min(stop, start + RATE // 2)])
            pitches = 440 * 2 ** ((note.pitch + candidates - 69) / 12)
            score = sum(
                np.interp(pitches * harmonic, frequencies, spectrum) / harmonic
                for harmonic in range(1, 5)
            )
            right.append(candidates[score.argmax()] == 0)
    assert len(right) > 100
    assert np.mean(right) > 0.85  # chance: 0.2; chords and bass sound at the same time


@pytest.mark.parametrize("name", list(gm_attributes.INSTRUMENTS))
def test_instrument_sounds_in_tune_over_its_range(synthesizer, name):
    """Alone, at both ends and the middle of the lead's range: there, and within a third of a tone.

    Judged by the comb of harmonics, from a sixth of a tone apart.
    """
    instrument = gm_attributes.INSTRUMENTS[name]
    pitches = (compose.LOWEST, 52, 64, 77, compose.HIGHEST)
    midi = pretty_midi.PrettyMIDI()
    track = pretty_midi.Instrument(instrument.program, name="lead")
    track.notes = [
        pretty_midi.Note(100, pitch, 2 * k, 2 * k + 1) for k, pitch in enumerate(pitches)
    ]
    midi.instruments.append(track)
    samples_T = synthesizer.render(midi, 10, instrument.level_db)
    frequencies = np.fft.rfftfreq(1 << 16, 1 / RATE)
    candidates = np.arange(-9, 10) / 3
    levels = []
    for k, pitch in enumerate(pitches):
        note_T = samples_T[(2 * k * RATE) + RATE // 10 : (2 * k + 1) * RATE]
        levels.append(10 * np.log10(np.mean(note_T**2)))
        combs = 440 * 2 ** ((pitch + candidates - 69) / 12)
        score = sum(
            np.interp(combs * harmonic, frequencies, _spectrum(note_T)) / harmonic
            for harmonic in range(1, 5)
        )
        assert abs(candidates[score.argmax()]) < 0.5, (name, pitch)
    assert max(levels) - min(levels) < 25


def test_drums_are_heard(synthesizer):
    """What drums add is loud enough beside the rest, and comes in bursts where they are struck."""
    for index in range(6):
        job = clip.Job(seed=0, held_out=False, seconds=10.0, sample_rate=RATE)
        drawn = gm_attributes.draw(job.chance(index, "attributes"), held_out=False)
        rendered = {}
        for drums in (False, True):
            one = dataclasses.replace(drawn, drums=drums)
            piece = compose.compose(one, job.chance(index, "music"))
            level_db = gm_attributes.INSTRUMENTS[one.instrument].level_db
            rendered[drums] = synthesizer.render(piece.midi, 10, level_db)
        added_T = rendered[True] - rendered[False]
        ratio_db = 20 * np.log10(np.std(added_T) / np.std(rendered[False]))
        assert -20 < ratio_db < 3
        (kit,) = (track for track in piece.midi.instruments if track.is_drum)
        kicks = [note.start for note in kit.notes if note.pitch in (compose.KICK, compose.SNARE)]
        struck = np.zeros(len(added_T), bool)
        for start in kicks:
            struck[round(start * RATE) : round((start + 0.08) * RATE)] = True
        power_T = added_T**2
        assert power_T[struck].mean() > 3 * power_T[~struck].mean()


def test_samples_do_not_depend_on_what_came_before(synthesizer, corpus, tmp_path):
    """Clips made alone, backwards, in this process are those that two workers made."""
    job = clip.Job(seed=3, held_out=False, seconds=10.0, sample_rate=RATE)
    entries = manifest.read(corpus)
    for index in (17, 5, 5, 0):
        assert clip.make_clip(job, index, synthesizer, tmp_path) == entries[index]
        name = clip.file_name(index)
        assert (tmp_path / name).read_bytes() == (corpus / name).read_bytes()


@pytest.mark.slow
def test_goes_on_after_a_kill_and_grows(corpus, tmp_path):
    out = tmp_path / "gm"
    arguments = ["--out", str(out), "--clips", "8", "--seed", "3", "--workers", "2"]
    process = subprocess.Popen([*COMMAND, *arguments], cwd=ROOT, stderr=subprocess.DEVNULL)
    part = out / "manifest.jsonl.part"
    while process.poll() is None and not (part.is_file() and part.read_text().count("\n") >= 2):
        time.sleep(0.01)
    process.send_signal(signal.SIGKILL)
    process.wait()
    # What a kill can leave: a line cut short, a WAV half-written, a WAV with no line.
    assert not (out / manifest.NAME).is_file()
    with part.open("a") as lines:
        lines.write('{"file": "0000')
    (out / "000007.wav.tmp").write_bytes(b"RIFF")
    kept = (out / json.loads(part.read_text().splitlines()[0])["file"]).stat().st_mtime_ns
    gm_build.build(out, 8, seed=3, workers=2, progress=False)
    gm_build.build(out, 12, seed=3, workers=2, progress=False)
    first = json.loads((out / manifest.NAME).read_text().splitlines()[0])
    assert (out / first["file"]).is_file()
    assert kept in {path.stat().st_mtime_ns for path in out.glob("*.wav")}  # not made again
    whole = _bytes(corpus)
    made = _bytes(out)
    assert manifest.read(out) == manifest.read(corpus)[:12]
    assert set(made) == {"corpus.json", manifest.NAME, *map(clip.file_name, range(12))}
    assert all(made[name] == whole[name] for name in made if name != manifest.NAME)
    with pytest.raises(gm_build.BuildError, match="already holds 12"):
        gm_build.build(out, 5, seed=3, progress=False)
    with pytest.raises(gm_build.BuildError, match="seed = 3, not 4"):
        gm_build.build(out, 12, seed=4, progress=False)


def test_killed_before_the_larger_manifest_is_written_it_goes_on(corpus, tmp_path):
    out = shutil.copytree(corpus, tmp_path / "corpus")
    lines = (out / manifest.NAME).read_text().splitlines(keepends=True)
    (out / f"{manifest.NAME}.part").write_text("".join(lines[2:]))
    (out / manifest.NAME).write_text("".join(lines[:2]))
    gm_build.build(out, len(lines), seed=3, progress=False)
    assert (out / manifest.NAME).read_text() == "".join(lines)
    assert not (out / f"{manifest.NAME}.part").exists()


@pytest.mark.slow
def test_lost_and_late_renderers(tmp_path):
    job = clip.Job(seed=3, held_out=False, seconds=10.0, sample_rate=RATE)
    worker = Worker(job, synth.find_soundfont(), tmp_path, timeout=60)
    try:
        first = worker.make(0)
        process = worker.pid
        os.kill(process, signal.SIGINT)  # as Ctrl-C, which is for the parent
        worker.make(1)
        assert worker.pid == process
        os.kill(worker.pid, signal.SIGSTOP)  # hangs
        worker._timeout = 0.2
        with pytest.raises(WorkerError, match="twice"):
            worker.make(1)  # the second process has no time to load
        worker._timeout = 60
        assert worker.make(0) == first
        os.kill(worker.pid, signal.SIGKILL)  # crashes
        assert worker.make(2).attributes["index"] == 2
    finally:
        worker.close()


def test_master_refuses_broken_audio():
    rng = np.random.default_rng(0)
    good_T = rng.standard_normal(16_000).astype(np.float32) * 0.1
    pcm_T, rms_db = synth.master(good_T, (0, 1))
    assert pcm_T.dtype == np.int16
    assert -20 < rms_db < -8
    click_T = np.zeros(160_000, np.float32)
    click_T[7] = 1
    for bad_T, told in (
        (good_T * np.nan, "peak is nan"),
        (good_T * 0, "peak is 0"),
        (click_T, "RMS is -53"),
    ):
        with pytest.raises(synth.SynthError, match=told):
            synth.master(bad_T, (0, 1))


@pytest.mark.parametrize(
    ("arguments", "told"),
    [
        (["--clips", "0"], "clips = 0"),
        (["--clips", "-3"], "clips = -3"),
        (["--clips", "2", "--seconds", "2"], "seconds = 2.0"),
        (["--clips", "2", "--sample-rate", "4"], "sample_rate = 4"),
        (["--clips", "2", "--workers", "-1"], "workers = -1"),
        (["--clips", "2", "--soundfont", "/nowhere.sf2"], "apt-get install"),
        (["--clips", "2", "--soundfont", __file__], "not a soundfont"),
    ],
)
def test_bad_input_is_told_in_a_line(tmp_path, arguments, told):
    out = tmp_path / "gm"
    result = _command("--out", out, *arguments)
    assert result.returncode == 2
    assert told in result.stderr
    assert len(result.stderr.strip().splitlines()) == 1
    assert not out.exists()


def test_foreign_and_unwritable_folders(tmp_path):
    (tmp_path / "mine.txt").write_text("keep")
    result = _command("--out", tmp_path, "--clips", 1)
    assert (result.returncode, "not empty" in result.stderr) == (2, True)
    result = _command("--out", tmp_path / "mine.txt" / "gm", "--clips", 1)
    assert (result.returncode, "cannot read or write" in result.stderr) == (2, True)
    assert [path.name for path in tmp_path.iterdir()] == ["mine.txt"]


def test_soundfont_from_the_environment(tmp_path):
    result = _command("--out", tmp_path / "gm", "--clips", 1, MUSICLM_SOUNDFONT="/elsewhere.sf2")
    assert (result.returncode, "/elsewhere.sf2" in result.stderr) == (2, True)


def test_corpus_needs_no_jax():
    code = "import sys, data_pipelines.corpora.gm.build; sys.exit('jax' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], cwd=ROOT).returncode == 0
