"""A data set that tfds prepared, here a tiny one, becomes files and a manifest."""

import numpy as np
import pytest
import soundfile

from data_pipelines.corpora import corpus

tfds = pytest.importorskip("tensorflow_datasets")
pytestmark = pytest.mark.slow  # TensorFlow alone takes seconds to import


def _tone(index, dtype):
    tone_T = 0.5 * np.sin(np.arange(4_000) * (index + 1) / 20)
    return (tone_T * 32_767).astype(np.int64) if dtype is np.int64 else tone_T.astype(dtype)


def _prepare(folder, *, file_format="array_record", dtype=np.int64, sample_rate=8_000, splits=2):
    """A data set like NSynth: audio, a nested label, words and a number."""

    class Tones(tfds.core.GeneratorBasedBuilder, skip_registration=True):
        """Tones."""

        VERSION = tfds.core.Version("1.0.0")

        def _info(self):
            audio = tfds.features.Audio(shape=(None,), dtype=dtype, sample_rate=sample_rate)
            features = {
                "audio": audio,
                "id": tfds.features.Text(),
                "pitch": np.int64,
                "instrument": {"family": tfds.features.ClassLabel(names=["bass", "flute"])},
                "envelope": tfds.features.Tensor(shape=(3,), dtype=np.float32),
            }
            return tfds.core.DatasetInfo(
                builder=self, features=tfds.features.FeaturesDict(features)
            )

        def _split_generators(self, dl_manager):
            del dl_manager
            return {name: self._generate_examples() for name in ("train", "valid")[:splits]}

        def _generate_examples(self):
            for index in range(3):
                yield (
                    index,
                    {
                        "audio": _tone(index, dtype),
                        "id": f"tone {index}",
                        "pitch": 60 + index,
                        "instrument": {"family": index % 2},
                        "envelope": np.zeros(3, np.float32),
                    },
                )

    builder = Tones(data_dir=folder, file_format=file_format)
    offline = tfds.download.DownloadConfig(try_download_gcs=False)
    builder.download_and_prepare(download_config=offline)
    return builder.data_path


@pytest.mark.parametrize(("dtype", "subtype"), [(np.int64, "PCM_16"), (np.float32, "FLOAT")])
def test_audio_and_labels_come_out_as_they_are(make, tmp_path, dtype, subtype):
    prepared = _prepare(tmp_path / "tfds", dtype=dtype)
    clips, made = make("tfds", "--prepared", prepared, "--tags", "instrument/family")
    assert len(clips) == 6
    assert not made.left_out
    assert {clip.split for clip in clips.values()} == {"train", "validation"}
    for clip in clips.values():
        path = made.manifest.parent / clip.file
        index = clip.attributes["pitch"] - 60
        assert soundfile.info(path).subtype == subtype
        read_T, rate = soundfile.read(path, dtype="int16" if dtype is np.int64 else "float32")
        np.testing.assert_array_equal(read_T, _tone(index, dtype))
        family = ("bass", "flute")[index % 2]
        assert (rate, clip.captions[0].text) == (8_000, family)
        assert clip.attributes == {
            "id": f"tone {index}",
            "pitch": 60 + index,
            "instrument/family": family,
        }


def test_mistakes(make, tmp_path):
    with pytest.raises(corpus.CorpusError, match=r"has no dataset_info\.json"):
        make("tfds", "--prepared", tmp_path)
    records = _prepare(tmp_path / "tfrecord", file_format="tfrecord", splits=1)
    with pytest.raises(corpus.CorpusError, match=r"--file_format=array_record"):
        make("tfds", "--prepared", records)
    with pytest.raises(corpus.CorpusError, match=r"--tags mood: tones has no such feature"):
        make("tfds", "--prepared", records, "--tags", "mood")
    for tag in ("envelope", "audio"):
        with pytest.raises(corpus.CorpusError, match=f"--tags {tag}: .* of one value; it has id, "):
            make("tfds", "--prepared", records, "--tags", tag)
    no_rate = _prepare(tmp_path / "no_rate", sample_rate=None)
    with pytest.raises(corpus.CorpusError, match="one with a sample rate is needed"):
        make("tfds", "--prepared", no_rate)
    assert not (tmp_path / "out").exists()


def test_a_folder_in_use_is_left_alone(make, tmp_path):
    prepared = _prepare(tmp_path / "tfds", splits=1)
    (tmp_path / "out" / "audio").mkdir(parents=True)
    (tmp_path / "out" / "audio" / "train-000000.wav").write_text("mine")
    with pytest.raises(corpus.CorpusError, match="is not empty"):
        make("tfds", "--prepared", prepared)
    assert (tmp_path / "out" / "audio" / "train-000000.wav").read_text() == "mine"
