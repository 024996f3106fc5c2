"""A manifest holds what was put into it, in both formats, and says what is wrong with one."""

import collections
import json

import hypothesis
import pyarrow
import pytest
from hypothesis import strategies as st
from pyarrow import parquet

from data_pipelines import manifest

# No surrogates: they are not text. JSON has no integers beyond doubles that all readers agree on.
TEXT = st.text(st.characters(codec="utf-8"), max_size=20)
SCALARS = st.none() | st.booleans() | st.integers(-(2**53), 2**53) | TEXT
SCALARS |= st.floats(allow_nan=False, allow_infinity=False)
VALUES = st.recursive(
    SCALARS, lambda inner: st.lists(inner, max_size=3) | st.dictionaries(TEXT, inner, max_size=3)
)
OWN = {"file", "sha256", "seconds", "sample_rate", "channels", "licence", "split", "captions"}
CLIPS = st.builds(
    manifest.Clip,
    file=TEXT,
    sha256=st.text("0123456789abcdef", min_size=64, max_size=64),
    seconds=st.floats(0, 1e6),
    sample_rate=st.integers(1, 192_000),
    channels=st.integers(1, 64),
    licence=TEXT,
    split=st.sampled_from(manifest.SPLITS),
    captions=st.lists(
        st.builds(manifest.Caption, kind=st.sampled_from(manifest.CAPTION_KINDS), text=TEXT),
        max_size=3,
    ).map(tuple),
    attributes=st.dictionaries(
        TEXT.filter(lambda name: name not in OWN | {"attributes"}), VALUES, max_size=3
    ),
)
CLIP = manifest.Clip(
    file="a/flûte.wav",
    sha256="0" * 64,
    seconds=2.5,
    sample_rate=44_100,
    channels=2,
    licence="CC-BY-4.0",
    split="train",
    captions=(manifest.Caption(kind="long", text="A flûte."),),
    attributes={"bpm": 80, "artist": {"name": "Ann"}},
)


@pytest.mark.parametrize("name", ["manifest.jsonl", "clips.parquet"])
@hypothesis.given(clips=st.lists(CLIPS, min_size=1, max_size=4))
@hypothesis.settings(max_examples=60)
def test_round_trip_leaves_nothing_beside(tmp_path_factory, name, clips):
    folder = tmp_path_factory.mktemp("corpus", numbered=True)
    path = manifest.write(folder / name, clips)
    assert manifest.read(path) == clips
    assert [p.name for p in folder.iterdir()] == [name]


def test_attributes_lie_flat_beside_the_fields(tmp_path):
    path = manifest.write(tmp_path / "new" / "folder", [CLIP])
    assert path == tmp_path / "new" / "folder" / manifest.NAME
    line = json.loads(path.read_text(encoding="utf-8"))
    assert (line["bpm"], line["artist"], line["seconds"]) == (80, {"name": "Ann"}, 2.5)
    assert line["captions"] == [{"kind": "long", "text": "A flûte."}]
    assert "flûte" in path.read_text(encoding="utf-8")  # readable by people as well


def test_parquet_is_written_in_many_groups(tmp_path, monkeypatch):
    monkeypatch.setattr(manifest, "_ROWS_A_GROUP", 3)
    path = manifest.write(tmp_path / "clips.parquet", [CLIP] * 8)
    assert len(manifest.read(path)) == 8


@pytest.mark.parametrize("name", ["manifest.jsonl", "clips.parquet"])
def test_a_failing_write_leaves_the_old_manifest(tmp_path, name):
    path = manifest.write(tmp_path / name, [CLIP])

    def failing():
        yield CLIP
        raise RuntimeError("no more")

    with pytest.raises(RuntimeError, match="no more"):
        manifest.write(path, failing())
    assert manifest.read(path) == [CLIP]
    assert [p.name for p in tmp_path.iterdir()] == [name]


def test_where_audio_lies(tmp_path):
    corpus = tmp_path / "corpus"
    assert manifest.audio_path(corpus, CLIP) == str(corpus / "a" / "flûte.wav")
    assert manifest.audio_path(corpus / "x.parquet", CLIP) == str(corpus / "a" / "flûte.wav")
    for file in ("/music/a.wav", "gs://bucket/a.wav"):
        moved = manifest.loads(json.dumps(json.loads(manifest.dumps(CLIP)) | {"file": file}))
        assert manifest.audio_path(corpus, moved) == file


GOOD = json.loads(manifest.dumps(CLIP))


@pytest.mark.parametrize(
    ("second_line", "told"),
    [
        ("{", "Expecting"),
        ("[]", "not a JSON object"),
        ('{"file": "a.wav"}', "lacks sha256, seconds"),
        (json.dumps(GOOD | {"split": "held_out"}), "split is 'held_out': choose one of"),
        (json.dumps(GOOD | {"seconds": "ten"}), "seconds is 'ten'"),
        (json.dumps(GOOD | {"seconds": -1}), "seconds is -1"),
        (json.dumps(GOOD | {"seconds": None}), "record 2"),
        (json.dumps(GOOD | {"sample_rate": 0}), "sample_rate is 0"),
        (json.dumps(GOOD | {"channels": 1.5}), "channels is 1.5"),
        (json.dumps(GOOD | {"captions": [{"kind": "sung", "text": ""}]}), "kind is 'sung'"),
        (json.dumps(GOOD | {"captions": [{"text": ""}]}), "kind"),
        (json.dumps(GOOD | {"captions": ["words"]}), "record 2"),
        (json.dumps(GOOD | {"captions": [{"kind": "long", "text": None}]}), "long caption is None"),
        (json.dumps(GOOD | {"file": 5}), "file is 5: give text"),
        (json.dumps(GOOD | {"sha256": None}), "sha256 is None: give text"),
        (json.dumps(GOOD | {"licence": 5}), "licence is 5: give text"),
        (json.dumps(GOOD | {"artist": "\ud800"}), "attributes is "),
        ("[" * 100_000, "record 2"),
    ],
)
def test_errors_name_file_record_and_mend(tmp_path, second_line, told):
    path = tmp_path / manifest.NAME
    path.write_text(json.dumps(GOOD) + "\n" + second_line + "\n")
    with pytest.raises(manifest.ManifestError) as caught:
        manifest.read(tmp_path)
    assert f"{path}, record 2" in str(caught.value)
    assert told in str(caught.value)
    assert "build the corpus again" in str(caught.value)


def test_bytes_that_are_no_text_are_a_bad_record(tmp_path):
    (tmp_path / manifest.NAME).write_bytes(json.dumps(GOOD).encode() + b'\n{"file": "\xff"}\n')
    with pytest.raises(manifest.ManifestError, match="record 2"):
        manifest.read(tmp_path)


@pytest.mark.parametrize("attributes", [None, "{", "3"])
def test_attributes_in_parquet_that_are_no_object_are_a_bad_record(tmp_path, attributes):
    path = manifest.write(tmp_path / "clips.parquet", [CLIP, CLIP])
    rows = parquet.read_table(path).to_pylist()
    rows[1]["attributes"] = attributes
    parquet.write_table(pyarrow.Table.from_pylist(rows, manifest._SCHEMA), path)
    with pytest.raises(manifest.ManifestError, match=r"clips\.parquet, record 2: "):
        manifest.read(path)


def test_no_manifest_and_an_empty_one(tmp_path):
    with pytest.raises(manifest.ManifestError, match="build the corpus first"):
        manifest.read(tmp_path)
    (tmp_path / manifest.NAME).write_text("\n")
    with pytest.raises(manifest.ManifestError, match="is empty"):
        manifest.read(tmp_path)


@pytest.mark.parametrize("keep", [0, 100, -20])
def test_damaged_parquet(tmp_path, keep):
    path = manifest.write(tmp_path / "clips.parquet", [CLIP])
    path.write_bytes(path.read_bytes()[:keep])
    with pytest.raises(manifest.ManifestError, match=r"clips\.parquet .*build the corpus again"):
        manifest.read(path)


def test_attributes_must_not_hide_fields():
    record = {name: getattr(CLIP, name) for name in OWN}
    with pytest.raises(ValueError, match=r"attributes named \['sha256'\]: rename"):
        manifest.Clip(**record, attributes={"sha256": "mine"})


def test_splits_are_stable_and_of_the_right_size():
    # Pinned: a change would move artists from one split to another under people's feet.
    assert manifest.split_of("artist_000014") == "train"
    found = collections.Counter(manifest.split_of(f"artist {i}") for i in range(20_000))
    assert found["validation"] / 20_000 == pytest.approx(0.01, abs=0.003)
    assert found["test"] / 20_000 == pytest.approx(0.01, abs=0.003)
    found = collections.Counter(
        manifest.split_of(f"artist {i}", validation=0.3, test=0.2) for i in range(20_000)
    )
    assert found["validation"] / 20_000 == pytest.approx(0.3, abs=0.015)
    assert found["test"] / 20_000 == pytest.approx(0.2, abs=0.015)


@hypothesis.given(group=TEXT, fraction=st.floats(0, 0.5))
def test_more_validation_takes_from_train_alone(group, fraction):
    few = manifest.split_of(group, validation=0.1, test=fraction)
    many = manifest.split_of(group, validation=0.4, test=fraction)
    assert (few, many) in {(s, s) for s in manifest.SPLITS} | {("train", "validation")}
    assert manifest.split_of(group, validation=0.0, test=0.0) == "train"
