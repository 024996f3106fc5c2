"""Tokens in shards are those that the tokenizers give, however the work was dealt out."""

import dataclasses
import pathlib
import shutil

import numpy as np
import pytest
from array_record.python import array_record_module

from data_pipelines import manifest, shards
from data_pipelines.beam import decode, encoders
from musiclm import bundle, errors
from musiclm.audio import resample

pytestmark = [pytest.mark.slow, pytest.mark.usefixtures("own_compilation_cache")]


def command(corpus, tokenizers, out, *more) -> list:
    return [
        *["tokenize", "--manifest", corpus, "--bundle", tokenizers, "--window-seconds", 12],
        *["--num-shards", 2, "--batch-size", 4, "--out", out, *more],
    ]


@pytest.fixture(scope="module")
def tokens(sound_corpus, tiny_bundle, tmp_path_factory):
    """The corpus as tokens of the tiny bundle; its clip of 10 s is too short."""
    from musiclm.bin import main

    out = tmp_path_factory.mktemp("tokens")
    argv = command(sound_corpus, tiny_bundle, out, "--max-failures", 0.2)
    assert main.main([str(argument) for argument in argv]) == 0
    (folder,) = out.iterdir()
    return folder


@pytest.fixture(scope="module")
def stored(tokens):
    """By key, the arrays of its streams."""
    data_set = shards.check(tokens)
    columns = {}
    for name, files in data_set.shards.items():
        columns[name] = []
        for shard in files:
            reader = array_record_module.ArrayRecordReader(str(tokens / shard.name))
            columns[name] += [data_set.streams[name].decode(r) for r in reader.read_all()]
    return {
        key: {name: column[i] for name, column in columns.items()}
        for i, key in enumerate(columns["key"])
    }


def test_the_folder_is_named_by_the_tokenizers(tokens, tiny_bundle, tmp_path):
    digest = bundle.tokenizer_digest(tiny_bundle)
    assert tokens.name == digest[:16]
    assert shards.load(tokens).encoder == digest
    # A folder of the three alone has the same; another MuLan has another.
    for part in bundle.TOKENIZERS:
        shutil.copy(tiny_bundle / f"{part}.safetensors", tmp_path)
    assert bundle.tokenizer_digest(tmp_path) == digest
    shutil.copy(tiny_bundle / "fine.safetensors", tmp_path / "mulan.safetensors")
    assert bundle.tokenizer_digest(tmp_path) != digest
    (tmp_path / "w2v_bert.safetensors").unlink()
    with pytest.raises(bundle.BundleError, match="lacks w2v_bert"):
        bundle.tokenizer_digest(tmp_path)


def test_stored_tokens_are_those_computed_afresh(stored, sound_corpus, tiny_bundle):
    from musiclm.tokens import tokenizers

    def load(cls, part):
        return cls.load(bundle.load_component(tiny_bundle, part))

    acoustic = load(tokenizers.AcousticTokenizer, "soundstream")
    semantic = load(tokenizers.SemanticTokenizer, "w2v_bert")
    mulan = load(tokenizers.MuLanTokenizer, "mulan")
    assert len(stored) == 2 + 2 + 3 + 3 + 3
    for clip in manifest.read(sound_corpus)[2:4]:
        mono, rate = decode.decode((sound_corpus / clip.file).read_bytes())
        wave_BT = np.tile(resample(mono, rate, 1_600)[: 12 * 1_600], (4, 1))
        record = stored[shards.key_of(clip.sha256, 0)]
        np.testing.assert_array_equal(record["semantic"], semantic.encode(wave_BT)[0])
        codes_BTQ = acoustic.encode(wave_BT)
        np.testing.assert_array_equal(record["acoustic"], codes_BTQ[0])
        np.testing.assert_array_equal(
            acoustic.decode(record["acoustic"][None].astype(np.int32)),
            acoustic.decode(codes_BTQ[:1]),
        )
        np.testing.assert_array_equal(record["mulan"], mulan.encode_windows(wave_BT)[0])
        kinds = [manifest.CAPTION_KINDS.index(caption.kind) for caption in clip.captions]
        assert record["text"][:, 0].tolist() == kinds
        if kinds:
            texts = [caption.text for caption in clip.captions]
            codes = mulan.encode_text(texts, overlong="truncate")
            np.testing.assert_array_equal(record["text"][:, 1:], codes)


def test_other_bundles_of_work_give_the_same_bytes(
    tokens, sound_corpus, tiny_bundle, musiclm, bytes_of, tmp_path
):
    """In another order and a shard a run, so that other windows share a batch."""
    clips = manifest.read(sound_corpus)
    path = manifest.write(sound_corpus / "turned.jsonl", clips[::-1])
    code, folder, _ = musiclm(
        *command(path, tiny_bundle, tmp_path, "--max-failures", 0.2, "--shards-a-run", 1)
    )
    assert code == 0
    assert pathlib.Path(folder).name == tokens.name
    assert bytes_of(folder) == bytes_of(tokens)


def test_windows_that_mulan_cannot_hear_are_refused(sound_corpus, tiny_bundle, musiclm, tmp_path):
    code, _, stderr = musiclm(
        *command(sound_corpus, tiny_bundle, tmp_path / "out"), "--window-seconds", 5
    )
    assert code == 2
    assert "give at least 10" in stderr
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("change", [{"window_seconds": 5.0}, {"window_stride_seconds": 0.5}])
def test_a_mulan_of_other_windows_is_refused(tiny_bundle, tmp_path, change):
    folder = shutil.copytree(tiny_bundle, tmp_path / "other")
    mulan = bundle.load_component(folder, "mulan")
    config = mulan.config | {"model": dataclasses.replace(mulan.config["model"], **change)}
    bundle.save_component(folder, "mulan", bundle.Component(config, mulan.variables))
    encoder = encoders.TokenEncoder.of(str(folder), batch_size=1)
    with pytest.raises(errors.UserError, match="hold a window of 10 s a second"):
        encoder.streams(12.0)
