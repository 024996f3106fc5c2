"""What training reads, through seqio: the same batches on any hosts and from any step."""

import dataclasses
import itertools
import json
import os
import pathlib
import shutil
import subprocess
import sys

import numpy as np
import pytest
import seqio
from tiny_data_sets import (
    AUDIO_STREAMS,
    MELODY_STREAMS,
    SAMPLE_RATE,
    SPEC,
    TOKEN_STREAMS,
    audio_record,
    melody_record,
    token_record,
    write_data_set,
)

from data_pipelines import manifest, shards
from data_pipelines.feed import batches, examples, rows, tasks
from data_pipelines.feed.source import Place
from musiclm import bundle, errors, exit_codes
from musiclm.tokens.layout import LAYOUTS, StageLayout
from musiclm.tokens.wordpiece import WordPiece

pytestmark = pytest.mark.slow

BATCH = 8
ROOT = pathlib.Path(__file__).parents[3]


def corpus(folder, name="first", **options):
    return tasks.Corpus(name=name, splits={"train": str(folder)}, **options)


def texts(corpora, vocabulary, vocab_size=120, start_step=0):
    return batches.texts(
        corpora=corpora,
        vocabulary=str(vocabulary),
        vocab_size=vocab_size,
        max_text_tokens=12,
        seed=0,
        batch_size=4,
        start_step=start_step,
    )


def sequences(corpora, steps, start_step=0, num_hosts=1, stage="coarse", spec=SPEC, **options):
    """Global batches [steps, B, S], put together from the hosts'."""
    options = {"conditioning": "mixed", "seed": 3, "batch_size": BATCH} | options
    hosts = [
        batches.token_sequences(
            corpora=corpora,
            layout=StageLayout.of(stage, spec),
            start_step=start_step,
            places=(host,),
            num_places=num_hosts,
            **options,
        )
        for host in range(num_hosts)
    ]
    taken = [[next(host)["tokens"] for _ in range(steps)] for host in hosts]
    return np.concatenate([np.stack(batch) for batch in taken], axis=1)


@pytest.fixture(scope="module")
def mixed(tokens, other_tokens):
    return [corpus(tokens, weight=3), corpus(other_tokens, "second", weight=1)]


@pytest.fixture(scope="module")
def mixed_batches(mixed):
    return sequences(mixed, 12)


def test_any_number_of_hosts_makes_the_same_batches(mixed, mixed_batches):
    for num_hosts in (2, 4):
        np.testing.assert_array_equal(sequences(mixed, 4, num_hosts=num_hosts), mixed_batches[:4])


def test_a_host_makes_the_rows_of_its_places(mixed, mixed_batches):
    """On a pod they need not be neighbours."""
    stream = batches.token_sequences(
        corpora=mixed, layout=StageLayout.coarse(SPEC), conditioning="mixed", seed=3,
        batch_size=BATCH, start_step=0, places=(0, 3), num_places=4,
    )  # fmt: skip
    share = BATCH // 4
    whole = mixed_batches[0]
    wanted = np.concatenate([whole[:share], whole[3 * share :]])
    np.testing.assert_array_equal(next(stream)["tokens"], wanted)


def test_resuming_on_other_hosts_goes_on_with_the_same_batches(mixed, mixed_batches):
    for start, num_hosts in ((1, 4), (7, 2), (11, 1)):
        resumed = sequences(mixed, 12 - start, start_step=start, num_hosts=num_hosts)
        np.testing.assert_array_equal(resumed, mixed_batches[start:])


def test_other_seeds_and_later_steps_are_other_batches(mixed, mixed_batches):
    assert not np.array_equal(sequences(mixed, 1, seed=4), mixed_batches[:1])
    late = sequences(mixed, 2, start_step=10**7)
    np.testing.assert_array_equal(sequences(mixed, 1, start_step=10**7 + 1, num_hosts=2), late[1:])
    assert not np.array_equal(late[0], mixed_batches[0])


def records_of(tokens_NS):
    """Which records rows are of: the acoustic level 1 tells."""
    layout = StageLayout.coarse(SPEC)
    return layout.unflatten(tokens_NS)["acoustic"][:, 0, 1]


def test_a_mixture_has_its_weights_and_walks_through_both(mixed_batches, mixed):
    records_N = records_of(np.concatenate(sequences(mixed, 14)))  # 84 rows and 28: four epochs
    first, second = records_N[records_N < 100], records_N[records_N >= 100]
    assert (len(first), len(second)) == (84, 28)
    assert (np.bincount(second - 100) == 4).all()
    assert np.bincount(first).min() == 4


@pytest.mark.parametrize("stage", LAYOUTS)
def test_the_sequence_is_the_layouts(tokens, stage):
    layout = StageLayout.of(stage, SPEC)
    (batch,) = sequences([corpus(tokens)], 1, stage=stage, conditioning="audio", start_step=5)
    assert batch.dtype == np.int32
    data = examples.TokenExamples(str(tokens), layout)
    seed = int(rows.hash64(3, rows.Purpose.COMPONENT, 0)[0] >> np.uint64(1))
    codes = data.make(rows.rows_of(5, batch_size=BATCH), seed=seed, shuffle=True)
    np.testing.assert_array_equal(batch, layout.flatten(codes))


def test_a_melody_is_in_the_sequence(tmp_path):
    spec = dataclasses.replace(
        SPEC, num_melody_codebooks=3, melody_codebook_size=20, num_melody_embeddings=2
    )
    folder = write_data_set(tmp_path / "tunes", MELODY_STREAMS, melody_record)
    tuned, plain = (
        sequences([corpus(folder)], 1, conditioning="audio", spec=spec)[0] for spec in (spec, SPEC)
    )
    found = StageLayout.coarse(spec).unflatten(tuned)
    wanted = StageLayout.coarse(SPEC).unflatten(plain)
    for source, codes in wanted.items():
        np.testing.assert_array_equal(found[source], codes)
    np.testing.assert_array_equal(found["melody"][:, 0, :2], wanted["mulan"])
    assert (found["melody"][:, :, 2] == [0, 1]).all()


def test_the_registry_has_what_training_reads(tokens):
    layout = StageLayout.coarse(SPEC)
    assert tasks.register_tokens([corpus(tokens)], layout) == "first_coarse"
    task = seqio.get_mixture_or_task("first_coarse")
    assert set(task.output_features) == {"mulan", "semantic", "acoustic"}
    assert task.source.list_shards("train")[0].startswith("acoustic-00000")
    trained = sequences([corpus(tokens)], 1, conditioning="audio")[0]
    task = seqio.get_mixture_or_task("first_coarse")
    place = Place(index=0, num_shards=1, places=(0,), batch_size=BATCH)
    raw = next(task.get_dataset(seed=3, shard_info=place).as_numpy_iterator())
    np.testing.assert_array_equal(layout.flatten(raw), trained)
    one = next(task.get_dataset(seed=3).as_numpy_iterator())  # without a place, row by row
    np.testing.assert_array_equal(one["semantic"], raw["semantic"][:1])


def test_sound_and_pairs(sound, tmp_path):
    options = {"seconds": 2, "sample_rate": SAMPLE_RATE, "seed": 0, "batch_size": 4}
    crops = batches.audio_crops(corpora=[corpus(sound)], start_step=2, **options)
    crop = next(crops)
    assert crop["waveform"].dtype == np.float32
    assert crop["waveform"].shape == (4, 200)
    np.testing.assert_allclose(np.diff(crop["waveform"]), 1 / 32768, rtol=1e-3)
    WordPiece.train(["short words on 0123456789", "list"], 120).save(tmp_path / "v.json")
    pairs = batches.audio_text_pairs(
        corpora=[corpus(sound)],
        vocabulary=str(tmp_path / "v.json"),
        vocab_size=120,
        max_text_tokens=12,
        start_step=0,
        **options,
    )
    taken = list(itertools.islice(pairs, 3))
    assert taken[2]["text_ids"].shape == (4, 12)
    np.testing.assert_array_equal(taken[2]["waveform"], crop["waveform"])
    text = next(texts([corpus(sound)], tmp_path / "v.json", start_step=2))
    assert text.keys() == {"text_ids"}
    np.testing.assert_array_equal(text["text_ids"], taken[2]["text_ids"])


def test_what_is_found_while_a_batch_is_made_is_told_as_it_is(tmp_path):
    """TensorFlow, which asks for the batch, would make an error of its own of it."""
    mute = write_data_set(
        tmp_path / "mute", AUDIO_STREAMS, lambda record: audio_record(record) | {"captions": []}
    )
    WordPiece.train(["words"], 120).save(tmp_path / "v.json")
    for corpora in ([corpus(mute)], [corpus(mute), corpus(mute, name="second")]):
        with pytest.raises(shards.ShardError, match=r"^[^\n]*mute has windows without captions"):
            next(texts(corpora, tmp_path / "v.json"))


def test_a_vocabulary_larger_than_the_models_is_refused(sound, tmp_path):
    vocabulary = WordPiece.train(["short words on 0123456789", "list"], 120)
    vocabulary.save(tmp_path / "v.json")
    few = vocabulary.vocab_size - 1
    with pytest.raises(errors.UserError, match=f"{few + 1} pieces, and vocab_size is {few}: give"):
        texts([corpus(sound)], tmp_path / "v.json", vocab_size=few)


def test_data_that_no_run_can_take_is_told(tokens):
    with pytest.raises(errors.UserError, match="split is 'test': this corpus has"):
        sequences([corpus(tokens)], 1, split="test")
    with pytest.raises(errors.UserError, match=r"corpora are named \['first', 'first'\]"):
        sequences([corpus(tokens), corpus(tokens)], 1)
    with pytest.raises(errors.UserError, match="weights are"):
        sequences([corpus(tokens), corpus(tokens, name="none", weight=0)], 1)
    with pytest.raises(errors.UserError, match=r"splits of first are \['test'\]: give one named"):
        tasks.digest([tasks.Corpus(name="first", splits={"test": str(tokens)})])


def test_splits_are_those_of_the_corpus(tokens, other_tokens):
    both = tasks.Corpus(name="both", splits={"train": str(tokens), "validation": str(other_tokens)})
    held_out = records_of(sequences([both], 1, split="validation")[0])
    assert (held_out >= 100).all()
    with pytest.raises(ValueError, match=r"split is 'test': this corpus has \['train', 'valid"):
        sequences([both], 1, split="test")
    with pytest.raises(ValueError, match="named \\['both', 'both'\\]"):
        sequences([both, both], 1)


def test_captions_are_the_splits(tmp_path):
    clips = [
        manifest.Clip(
            file=f"{split}.wav",
            sha256="0" * 64,
            seconds=1,
            sample_rate=16_000,
            channels=1,
            licence="",
            split=split,
            captions=(manifest.Caption(kind="long", text=f"of {split}"),),
        )
        for split in ("train", "validation")
    ]
    manifest.write(tmp_path, clips)
    assert batches.captions(corpus=str(tmp_path)) == ["of train"]


def flip_a_byte(folder):
    path = folder / shards.shard_name("semantic", 1, 3)
    data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= 1
    path.write_bytes(data)


def truncate(folder):
    path = folder / shards.shard_name("mulan", 2, 3)
    path.write_bytes(path.read_bytes()[:-100])


def delete(folder):
    (folder / shards.shard_name("acoustic", 0, 3)).unlink()


def add_of_another_run(folder):
    path = folder / shards.shard_name("semantic", 1, 3)
    shutil.copy(path, folder / shards.shard_name("semantic", 1, 4))


def swap_with_another_run(folder):
    path = folder / shards.shard_name("semantic", 1, 3)
    shards.write_shard(path, [b"\0" * 800] * 7)


def age(folder):
    record = json.loads((folder / shards.NAME).read_text())
    (folder / shards.NAME).write_text(json.dumps(record | {"format": 0}))


FAULTS = [
    (flip_a_byte, r"semantic-00001-of-00003.array_record is damaged"),
    (truncate, r"mulan-00002-of-00003.array_record has \d+ bytes, not \d+"),
    (delete, r"acoustic-00000-of-00003.array_record is missing"),
    (add_of_another_run, r"semantic-00001-of-00004.array_record is not in dataset.json"),
    (swap_with_another_run, r"semantic-00001-of-00003.array_record"),
    (age, r"has format 0, and this version reads 1"),
]


@pytest.mark.parametrize(("fault", "message"), FAULTS)
@pytest.mark.parametrize("split", ["train", "validation"])
def test_the_start_names_what_is_wrong(tokens, tmp_path, fault, message, split):
    folder = shutil.copytree(tokens, tmp_path / "tokens")
    fault(folder)
    faulty = tasks.Corpus(
        name="faulty",
        splits={"train": str(tokens), "validation": str(tokens)} | {split: str(folder)},
    )
    with pytest.raises(shards.ShardError, match=message):
        sequences([faulty], 1)


def test_hosts_share_the_checksums_and_together_see_all(tokens, tmp_path):
    folder = shutil.copytree(tokens, tmp_path / "tokens")
    flip_a_byte(folder)
    refused = 0
    for host in range(2):
        try:
            sequences_of_host = batches.token_sequences(
                corpora=[corpus(folder)], layout=StageLayout.coarse(SPEC), seed=0, batch_size=2,
                start_step=0, places=(host,), num_places=2,
            )  # fmt: skip
            next(sequences_of_host)
        except shards.ShardError:
            refused += 1
    assert refused == 1


def test_shards_of_another_tokenizer_are_refused(tokens):
    sequences([corpus(tokens)], 1, encoder="a" * 64)
    with pytest.raises(shards.ShardError, match="made by the tokenizers aaaaaaaaaaaa, and the run"):
        sequences([corpus(tokens)], 1, encoder="b" * 64)


def test_gin_files_name_what_there_is():
    import gin

    binding = "{0} = '{0}'"
    macros = ["TRAIN", "VALIDATION", "CORPUS", "VOCABULARY", "WORKDIR", "COMPONENT", "MODEL"]
    macros += ["START", "BUNDLE", "NAME", "TOKENIZERS"]
    files = sorted((ROOT / "gin/train/mini").glob("*.gin"))
    assert len(files) > 10
    gin.add_config_file_search_path(str(ROOT))
    for file in files:
        gin.clear_config()  # what a test before may have locked, too
        gin.parse_config_files_and_bindings([str(file)], [binding.format(name) for name in macros])
    gin.clear_config()


PROGRAM = """
import sys
from tiny_data_sets import SPEC
from data_pipelines.feed import batches, tasks
from musiclm.tokens.layout import StageLayout

corpora = [
    tasks.Corpus(name=name, splits={"train": folder}) for name, folder in zip("ab", sys.argv[1:])
]
stream = batches.token_sequences(corpora=corpora, layout=StageLayout.coarse(SPEC), seed=0,
    conditioning="mixed", batch_size=500, start_step=0)

def resident_mb():
    with open("/proc/self/statm") as statm:
        return int(statm.read().split()[1]) * 4096 / 1e6

for step in range(201):
    next(stream)
    if step in (40, 200):
        print(resident_mb())
"""


def test_memory_is_flat_over_100_000_rows_and_the_process_ends_well(tokens, other_tokens):
    here = pathlib.Path(__file__).parent
    done = subprocess.run(
        [sys.executable, "-c", PROGRAM, str(tokens), str(other_tokens)],
        env=os.environ | {"PYTHONPATH": os.pathsep.join([str(here), *sys.path])},
        check=True,
        capture_output=True,
        text=True,
    )
    early, late = map(float, done.stdout.split())
    assert late < early + 30  # the rows are 200 MB in all


@pytest.mark.parametrize(
    ("whose", "told"),
    [
        ("its", "semantic-00001-of-00003.array_record is damaged"),
        ("others'", "was made by the tokenizers aaaaaaaaaaaa"),
    ],
)
def test_training_ends_in_one_line_where_tokens_are_unfit(tmp_path, whose, told):
    tokenizers = bundle.find("gm-mini")
    shapes = {"mulan": (7, 12), "acoustic": (800, 6), "text": (-1, 13)}  # of the mini sizes
    streams = {
        name: dataclasses.replace(stream, shape=shapes.get(name, stream.shape))
        for name, stream in TOKEN_STREAMS.items()
    }
    zeros = {name: np.zeros((7, 13) if name == "text" else shape) for name, shape in shapes.items()}
    folder = write_data_set(
        tmp_path / "tokens",
        streams,
        lambda record: token_record(record) | zeros,
        encoder=bundle.tokenizer_digest(tokenizers) if whose == "its" else "a" * 64,
    )
    flip_a_byte(folder)
    values = {"TRAIN": folder, "VALIDATION": folder, "TOKENIZERS": tokenizers}
    values |= {"WORKDIR": tmp_path, "COMPONENT": "c"}
    done = subprocess.run(
        [sys.executable, "-m", "musiclm.bin.main", "train", "--gin_file=gin/train/mini/coarse.gin"]
        + [f"--gin_bindings={name}='{value}'" for name, value in values.items()],
        cwd=ROOT,
        env=os.environ | {"PYTHONPATH": os.pathsep.join(sys.path)},
        check=False,
        capture_output=True,
        text=True,
    )
    assert done.returncode == exit_codes.CONFIGURATION, done.stderr
    assert "Traceback" not in done.stderr
    last = done.stderr.splitlines()[-1]
    assert last.startswith("musiclm: error: ")
    assert told in last
