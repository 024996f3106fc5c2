"""The whole job, with the encoder that needs no model."""

import json
import os
import pathlib
import shutil
import signal
import subprocess
import sys
import time

import numpy as np
import pytest
import soundfile
from array_record.python import array_record_module

from data_pipelines import manifest, shards
from data_pipelines.beam import decode
from musiclm.audio import resample

pytestmark = pytest.mark.slow


def command(corpus, out, *more) -> list:
    return [
        *["pack", "--manifest", corpus, "--sample-rate", 2_000, "--num-shards", 3],
        *["--out", out, *more],
    ]


def records_of(folder, stream: str) -> list:
    """All records of a stream, shard after shard."""
    data_set = shards.load(folder)
    values = []
    for shard in data_set.shards[stream]:
        reader = array_record_module.ArrayRecordReader(str(pathlib.Path(folder) / shard.name))
        values += [data_set.streams[stream].decode(r) for r in reader.read_all()]
        reader.close()
    return values


@pytest.fixture(scope="module")
def packed(sound_corpus, tmp_path_factory):
    """The corpus as shards."""
    from musiclm.bin import main

    out = tmp_path_factory.mktemp("packed")
    assert main.main([str(a) for a in command(sound_corpus, out)]) == 0
    (folder,) = out.iterdir()
    return folder


def test_windows_are_where_their_keys_say(packed, sound_corpus):
    clips = {clip.sha256: clip for clip in manifest.read(sound_corpus)}
    keys = records_of(packed, "key")
    assert len(keys) == len(set(keys)) == 15
    names = [key.split("-") for key in keys]
    for (sha256, window), audio, captions in zip(
        names, records_of(packed, "audio"), records_of(packed, "captions"), strict=True
    ):
        clip = clips[sha256]
        assert [c["text"] for c in captions] == [c.text for c in clip.captions if c.text.strip()]
        mono, rate = decode.decode((sound_corpus / clip.file).read_bytes())
        at = resample(mono, rate, 2_000)
        start = min(int(window) * 20_000, len(at) - 20_000)
        np.testing.assert_array_equal(audio, np.round(at[start : start + 20_000] * 32768))


def test_shards_are_sorted_aligned_and_by_hash(packed):
    data_set = shards.check(packed)
    for shard in range(3):
        path = packed / shards.shard_name("key", shard, 3)
        reader = array_record_module.ArrayRecordReader(str(path))
        keys = [json.loads(record) for record in reader.read_all()]
        assert keys == sorted(keys)
        assert {shards.shard_of(key, 3) for key in keys} <= {shard}
        assert {files[shard].records for files in data_set.shards.values()} == {len(keys)}


def test_a_finished_data_set_is_left_alone(packed, sound_corpus, musiclm, monkeypatch):
    before = {path: path.stat().st_mtime_ns for path in packed.rglob("*")}

    def decoded(*_):
        raise AssertionError("a file was read")

    monkeypatch.setattr(decode, "read", decoded)
    code, folder, _ = musiclm(*command(sound_corpus, packed.parent))
    assert (code, folder) == (0, str(packed))
    assert {path: path.stat().st_mtime_ns for path in packed.rglob("*")} == before


@pytest.mark.parametrize("damage", ["delete", "truncate"])
def test_a_lost_shard_is_made_again(packed, sound_corpus, musiclm, bytes_of, tmp_path, damage):
    folder = shutil.copytree(packed, tmp_path / packed.name)
    lost = folder / shards.shard_name("audio", 1, 3)
    lost.unlink() if damage == "delete" else os.truncate(lost, 100)
    with pytest.raises(shards.ShardError, match=lost.name):
        shards.check(folder)
    kept = folder / shards.shard_name("audio", 0, 3)
    before = kept.stat().st_mtime_ns
    assert musiclm(*command(sound_corpus, tmp_path))[0] == 0
    assert bytes_of(folder) == bytes_of(packed)
    assert kept.stat().st_mtime_ns == before
    shards.check(folder)


def test_other_bundles_of_work_give_the_same_bytes(
    packed, sound_corpus, musiclm, bytes_of, tmp_path
):
    """Read from Parquet in another order, a shard a run, by two processes."""
    clips = manifest.read(sound_corpus)
    path = manifest.write(sound_corpus / "turned.parquet", clips[::-1])
    code, folder, _ = musiclm(
        *command(path, tmp_path, "--shards-a-run", 1),
        "--direct_running_mode=multi_processing",
        "--direct_num_workers=2",
    )
    assert code == 0
    assert bytes_of(folder) == bytes_of(packed)


def test_a_folder_may_be_named_as_a_pattern(packed, sound_corpus, musiclm, bytes_of, tmp_path):
    code, folder, _ = musiclm(*command(sound_corpus, tmp_path / "tokens [v2]*"))
    assert code == 0
    assert bytes_of(folder) == bytes_of(packed)


def test_what_a_worker_finds_in_another_process_is_told_in_a_line(musiclm, tmp_path):
    (tmp_path / manifest.NAME).write_text("{}\n")
    code, _, stderr = musiclm(
        *command(tmp_path, tmp_path / "out"),
        "--direct_running_mode=multi_processing",
        "--direct_num_workers=2",
    )
    assert code == 2
    assert f"error: {tmp_path / manifest.NAME}, record 1: lacks file" in stderr
    assert "while running" not in stderr


def test_a_killed_job_goes_on_to_the_same_bytes(packed, sound_corpus, bytes_of, tmp_path):
    """Killed again and again, later each time, until it gets through."""
    argv = [str(a) for a in command(sound_corpus, tmp_path, "--shards-a-run", 1)]
    folder, kills = tmp_path / packed.name, 0
    # What must have been written before the next kill.
    for landmark in ("job.json", "survey.json", "job/00000.json", "job/00001.json"):
        process = subprocess.Popen([sys.executable, "-m", "musiclm.bin.main", *argv])
        while process.poll() is None and not (folder / landmark).exists():
            time.sleep(0.001)
        if process.poll() is None:
            process.send_signal(signal.SIGKILL)
            kills += 1
        process.wait()
    assert kills == 4
    assert not (folder / shards.NAME).exists()
    subprocess.run([sys.executable, "-m", "musiclm.bin.main", *argv], check=True)
    assert bytes_of(folder) == bytes_of(packed)
    shards.check(folder)


@pytest.fixture
def mixed_corpus(tmp_path, music, clip_of):
    """Four good clips; of the first a copy of its bytes and a quieter, cropped one; two bad."""
    root = tmp_path / "mixed"
    root.mkdir()
    sounds = [music(seed, 12.0, 8_000) for seed in range(4)]
    for index, sound in enumerate(sounds):
        soundfile.write(root / f"{index}.wav", sound, 8_000)
    shutil.copy(root / "0.wav", root / "same.wav")
    soundfile.write(root / "alike.flac", 0.5 * sounds[0][3_000:], 8_000)
    soundfile.write(root / "short.wav", sounds[0][:40_000], 8_000)
    (root / "page.mp3").write_text("<html>gone</html>")
    clips = [clip_of(path) for path in sorted(root.iterdir())]
    clips.append(clip_of(root / "lost.wav"))
    manifest.write(root, clips)
    return root


def test_bad_files_and_duplicates_are_left_out_and_told(mixed_corpus, musiclm, tmp_path):
    code, folder, _ = musiclm(*command(mixed_corpus, tmp_path / "out", "--max-failures", 0.4))
    assert code == 0
    lines = (pathlib.Path(folder) / "dead_letters.jsonl").read_text().splitlines()
    letters = {pathlib.Path(r["file"]).name: r["reason"] for r in map(json.loads, lines)}
    assert letters == {"lost.wav": "missing", "page.mp3": "not audio", "short.wav": "short"}
    lines = (pathlib.Path(folder) / "duplicates.jsonl").read_text().splitlines()
    kinds = {
        frozenset(pathlib.Path(r[name]).name for name in ("file", "duplicate_of")): r["kind"]
        for r in map(json.loads, lines)
    }
    assert kinds == {
        frozenset({"same.wav", "0.wav"}): "exact",
        frozenset({"alike.flac", "0.wav"}): "near",
    }
    assert len(records_of(folder, "key")) == 4 * 2  # 12 s: a window, and a tail of 2 s


def test_too_many_bad_files_stop_the_job(mixed_corpus, musiclm, tmp_path, music, clip_of):
    code, _, stderr = musiclm(*command(mixed_corpus, tmp_path / "out"))
    assert code == 2
    assert "3 of 9 files cannot be used (1 missing, 1 not audio, 1 short)" in stderr
    assert stderr.count("\n") == 1
    (folder,) = (tmp_path / "out").iterdir()
    assert not list(folder.glob("*.array_record"))
    assert len((folder / "dead_letters.jsonl").read_text().splitlines()) == 3


def test_what_stopped_the_survey_may_be_left_out(mixed_corpus, musiclm, tmp_path):
    out = tmp_path / "out"
    assert musiclm(*command(mixed_corpus, out))[0] == 2
    clips = manifest.read(mixed_corpus)
    lines = (mixed_corpus / manifest.NAME).read_text()
    (mixed_corpus / manifest.NAME).write_text(lines + "{}\n")
    code, _, stderr = musiclm(*command(mixed_corpus, out))
    assert code == 2
    assert f"error: {mixed_corpus / manifest.NAME}, record 10: lacks file" in stderr
    bad = ("lost.wav", "page.mp3", "short.wav")
    manifest.write(mixed_corpus, [clip for clip in clips if clip.file not in bad])
    code, folder, _ = musiclm(*command(mixed_corpus, out))
    assert code == 0
    # Once there are shards, no other data set takes their place.
    manifest.write(mixed_corpus, clips)
    before = sorted(pathlib.Path(folder).rglob("*"))
    code, _, stderr = musiclm(*command(mixed_corpus, out))
    assert code == 2
    assert "is for another data set (corpora = " in stderr
    assert sorted(pathlib.Path(folder).rglob("*")) == before


@pytest.mark.parametrize(
    ("more", "told"),
    [
        (["--num-shards", 4], "num_shards = 3, not 4"),
        (["--window-seconds", 5], "window_seconds = 10.0, not 5.0"),
        (["--split", "test"], "split = all, not test"),
    ],
)
def test_another_jobs_folder_is_refused(packed, sound_corpus, musiclm, bytes_of, more, told):
    before = bytes_of(packed)
    code, _, stderr = musiclm(*command(sound_corpus, packed.parent), *more)
    assert code == 2
    assert told in stderr
    assert bytes_of(packed) == before


@pytest.mark.parametrize(
    ("more", "told"),
    [
        (["--num-shards", 0], "--num-shards is 0"),
        (["--max-failures", 2], "--max-failures is 2"),
        (["--window-seconds", 0.0001], "--window-seconds is 0.0001"),
        (["--sample-rate", 0], "--sample-rate is 0"),
        (["--no-such-option=1"], "--no-such-option"),
        (["--manifest", "no/such/corpus"], "no/such/corpus"),
    ],
)
def test_mistakes_are_told_in_a_line(sound_corpus, musiclm, tmp_path, more, told):
    code, _, stderr = musiclm(*command(sound_corpus, tmp_path / "out"), *more)
    assert code == 2
    assert told in stderr
    assert stderr.count("\n") == 1
    assert not (tmp_path / "out").exists()
