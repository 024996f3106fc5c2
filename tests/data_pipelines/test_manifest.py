import pytest

from data_pipelines import manifest

ENTRY = {"file": "a.wav", "caption": "flûte", "seconds": 10.0, "sample_rate": 16000, "split": "t"}


def test_round_trip_leaves_nothing_beside(tmp_path):
    path = manifest.write(tmp_path, [ENTRY, {**ENTRY, "file": "b.wav", "tonic": 3}])
    assert manifest.read(tmp_path) == manifest.read(path)
    assert [entry["file"] for entry in manifest.read(tmp_path)] == ["a.wav", "b.wav"]
    assert manifest.audio_path(tmp_path, ENTRY) == tmp_path / "a.wav"
    assert [p.name for p in tmp_path.iterdir()] == ["manifest.jsonl"]


@pytest.mark.parametrize(
    ("text", "told"),
    [
        ("{", "line 1"),
        ('{"file": "a.wav"}\n', "lacks caption"),
        ("[]\n", "lacks file"),
        ("\n", "is empty"),
    ],
)
def test_malformed_manifests_are_told_apart(tmp_path, text, told):
    (tmp_path / manifest.NAME).write_text(text)
    with pytest.raises(manifest.ManifestError, match=told):
        manifest.read(tmp_path)


def test_no_manifest(tmp_path):
    with pytest.raises(manifest.ManifestError, match="build the corpus"):
        manifest.read(tmp_path)
