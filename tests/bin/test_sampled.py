"""The folder of a job that is run again with other lines, or by other processes."""

import errno
import json

import numpy as np
import pytest

from musiclm import audio, errors
from musiclm.bin import folders, sampled


def add(folder, number, digest):
    told = {"prompt": f"{number} {digest}"}
    samples_T = np.full(80, 0.1, np.float32)
    folder.add(number, digest, audio.Waveform(samples_T, 1600, told), told)


def run(path, lines, num_processes=1):
    """A job as `musiclm sample` does it: a digest a line, or None where nothing can be made."""
    for process in range(num_processes):
        folder = sampled.Folder(path, process, num_processes)
        missing = []
        for number, digest in list(enumerate(lines, start=1))[process::num_processes]:
            with folder.rejecting(number):
                if digest is None:
                    raise errors.UserError("no music")
                if not folder.has(number, digest):
                    missing.append((number, digest))
        for number, digest in missing:
            add(folder, number, digest)
        folder.close({"made": len(missing)})


def told(path):
    """What the manifests name, as a digest by line, and how many lines they have."""
    records = [
        json.loads(text)
        for manifest in folders.shares(path, folders.MANIFEST)
        for text in manifest.read_text(encoding="utf-8").splitlines()
    ]
    return {record["line"]: record["digest"] for record in records}, len(records)


@pytest.mark.parametrize("num_processes", [1, 2])
@pytest.mark.parametrize(
    "lines", [["a", "b"], ["a", None], ["a", None, "c"], ["a", "new"], [None], []]
)
def test_a_manifest_has_what_the_prompts_have_now(tmp_path, lines, num_processes):
    run(tmp_path, ["a", "b", "c"], num_processes)
    run(tmp_path, lines, num_processes)
    expected = {number: digest for number, digest in enumerate(lines, start=1) if digest}
    assert told(tmp_path) == (expected, len(expected))
    names = [path.name for path in folders.read(tmp_path).values()]
    assert names == [f"{number:06d}.wav" for number in expected]
    assert len(list(tmp_path.glob("*.wav"))) == 3


def test_what_another_process_made_stays(tmp_path):
    run(tmp_path, ["a", "b", "c", "d"], num_processes=2)
    sampled.Folder(tmp_path, 0, 2).close({})  # a share without lines
    assert told(tmp_path) == ({2: "b", 4: "d"}, 2)


def test_one_process_takes_over_what_several_told(tmp_path):
    run(tmp_path, ["a", "b", "c", "d"], num_processes=2)
    run(tmp_path, ["a", "b", "new"], num_processes=3)
    run(tmp_path, ["a", "b", "new"])
    assert told(tmp_path) == ({1: "a", 2: "b", 3: "new"}, 3)
    assert json.loads((tmp_path / "summary.json").read_text()) == {"made": 0}
    assert [path.name for path in tmp_path.glob("manifest*")] == ["manifest.jsonl"]


def test_several_find_what_one_told(tmp_path):
    run(tmp_path, ["a", "b", "c"])
    run(tmp_path, ["a", "b", "c"], num_processes=2)
    for process in range(2):
        summary = tmp_path / f"summary-{process:05d}-of-00002.json"
        assert json.loads(summary.read_text()) == {"made": 0}
    assert len(folders.read(tmp_path)) == 3


def test_a_folder_that_cannot_be_written_is_told_at_once(tmp_path, monkeypatch):
    """Such as one of a file system that is mounted to be read."""

    def refuse(*_, **__):
        raise OSError(errno.EROFS, "Read-only file system")

    monkeypatch.setattr(sampled.tempfile, "TemporaryFile", refuse)
    with pytest.raises(errors.UserError, match=r"cannot read or write in .*Read-only file system"):
        sampled.Folder(tmp_path)


def test_a_folder_takes_off_what_a_kill_left(tmp_path):
    add(sampled.Folder(tmp_path), 1, "d")
    whole = (tmp_path / "manifest.jsonl").read_text()
    (tmp_path / "manifest.jsonl").write_text(whole + '{"file": "0000')
    for name in (
        ".manifest.jsonl.7",
        ".summary.json.7",
        ".summary-00000-of-00002.json.7",
        ".000007.wav.x7",
        ".mine.wav.x7",
    ):
        (tmp_path / name).touch()
    folder = sampled.Folder(tmp_path)
    assert (tmp_path / "manifest.jsonl").read_text() == whole
    left = sorted(path.name for path in tmp_path.glob(".*"))
    assert left == [".mine.wav.x7", ".summary-00000-of-00002.json.7"]
    assert folder.has(1, "d")
    assert not folder.has(1, "e")
    assert not folder.has(2, "d")
    (tmp_path / "000001.wav").write_bytes(b"RIFF")
    assert not folder.has(1, "d")


def test_the_file_decides_between_runs_of_other_numbers_of_processes(tmp_path):
    add(sampled.Folder(tmp_path), 1, "old")
    add(sampled.Folder(tmp_path), 2, "kept")
    for process in range(2):
        folder = sampled.Folder(tmp_path, process, 2)
        assert folder.has(2, "kept")
        if not process:
            add(folder, 1, "new")
            add(folder, 3, "other")
        folder.close({})
    for num_processes in (1, 2, 3):
        folder = sampled.Folder(tmp_path, 0, num_processes)
        assert folder.has(1, "new")
        assert not folder.has(1, "old")
    expected = {(f"{i} {words}", 0): i for i, words in enumerate(("new", "kept", "other"), start=1)}
    names = {take: tmp_path / f"{i:06d}.wav" for take, i in expected.items()}
    assert folders.read(tmp_path) == names
    assert [*folders.read(tmp_path)] == [*names]


def test_what_another_number_of_processes_told_is_cleared(tmp_path):
    told = [
        f"{name}{share}.{suffix}"
        for name, suffix in (("rejected", "jsonl"), ("summary", "json"))
        for share in ("", "-00000-of-00002", "-00001-of-00002", "-00000-of-00003")
    ]
    for name in (*told, "rejected-by-ear.jsonl"):
        (tmp_path / name).touch()
    sampled.Folder(tmp_path, 1, 2)
    assert sorted(path.name for path in tmp_path.iterdir()) == [
        "rejected-00000-of-00002.jsonl",
        "rejected-by-ear.jsonl",
        "summary-00000-of-00002.json",
        "summary-00001-of-00002.json",
    ]


@pytest.mark.parametrize("full", ["os.replace", "os.fsync"])
def test_a_full_disk_loses_nothing(tmp_path, monkeypatch, full):
    folder = sampled.Folder(tmp_path)
    add(folder, 1, "d")

    def fail(*_):
        raise OSError(errno.ENOSPC, "No space left on device")

    def reject():
        with folder.rejecting(3):
            raise errors.UserError("no music")

    calls = {
        "os.replace": (lambda: add(folder, 2, "d"), lambda: folder.close({})),
        "os.fsync": (lambda: add(folder, 2, "d"), reject),
    }
    with monkeypatch.context() as patch:
        patch.setattr(full, fail)
        for call in calls[full]:
            with pytest.raises(
                errors.UserError, match=r"No space left on device\): mend that or make"
            ):
                call()
    assert not list(tmp_path.glob(".*"))
    assert sampled.Folder(tmp_path).has(1, "d")
