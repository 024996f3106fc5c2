"""The folder of a job that is run again with other lines, or by other processes."""

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
