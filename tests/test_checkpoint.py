"""What is saved comes back bit for bit, and what was damaged since never does."""

import contextlib
import gc
import logging
import os
import pathlib
import random
import resource
import shutil
import signal
import subprocess
import sys
import time

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from musiclm import checkpoint, sharding
from musiclm.errors import UserError

# Orbax leaves the reads of a damaged checkpoint's other arrays behind.
pytestmark = [
    pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning"),
    pytest.mark.filterwarnings("ignore:coroutine .* was never awaited:RuntimeWarning"),
]


@pytest.fixture(autouse=True)
def collect():
    """Has them complain here, where it is ignored."""
    yield
    gc.collect()


def make_state(seed=0):
    """Every kind of leaf, and one that is larger than the headers around it."""
    rng = np.random.default_rng(seed)
    return {
        "step": jnp.int32(seed),
        "params": {
            "kernel": jnp.asarray(rng.normal(size=(64, 300)).astype(np.float32)),
            "half": jnp.asarray(rng.normal(size=(5, 7)), jnp.bfloat16),
            "empty": jnp.zeros((0, 3)),
        },
        "counts": (jnp.asarray(rng.integers(0, 2**32, 9, np.uint32)), {}, None),
        "bytes": jnp.asarray(rng.integers(0, 256, 5, np.uint8)),
        "mask": jnp.asarray(rng.random(11) < 0.5),
        "key": jax.random.key(seed),
        "keys": jax.random.split(jax.random.key(seed), 3),
    }


def abstract(state):
    return sharding.abstract(state, jax.tree.map(lambda leaf: leaf.sharding, state))


def bits(state):
    """The state's bytes, by path."""

    def of(leaf):
        if jnp.issubdtype(leaf.dtype, jax.dtypes.prng_key):
            leaf = jax.random.key_data(leaf)
        return str(leaf.dtype), leaf.shape, np.asarray(leaf).tobytes()

    return {jax.tree_util.keystr(path): of(x) for path, x in jax.tree.leaves_with_path(state)}


def save(directory, *steps, **options):
    with checkpoint.Checkpointer(directory, **options) as checkpoints:
        for step in steps:
            checkpoints.save(step, make_state(step), facts={"seed": step})


def restore(directory):
    with checkpoint.Checkpointer(directory) as checkpoints:
        return checkpoints.restore(abstract(make_state())), checkpoints


def steps(directory):
    return sorted(int(path.name) for path in directory.iterdir() if path.name.isdecimal())


@pytest.fixture(scope="module")
def saved(tmp_path_factory):
    """Checkpoints 10 and 20; to be copied before anything is done to them."""
    directory = tmp_path_factory.mktemp("saved") / "checkpoints"
    save(directory, 10, 20)
    return directory


@pytest.fixture
def directory(saved, tmp_path):
    return shutil.copytree(saved, tmp_path / "checkpoints")


def test_a_state_comes_back_bit_for_bit(tmp_path):
    facts = {"seed": 3, "data": "5f0c", "mesh": {"fsdp": 4}}
    with checkpoint.Checkpointer(tmp_path) as checkpoints:
        assert checkpoints.latest_step is None
        checkpoints.save(7, make_state(1), facts=facts, metrics={"eval/loss": 0.5})
    state, checkpoints = restore(tmp_path)
    assert bits(state) == bits(make_state(1))
    assert jax.tree.structure(state) == jax.tree.structure(make_state(1))
    assert (checkpoints.latest_step, checkpoints.facts) == (7, facts)


def test_a_state_may_be_donated_once_save_returns(tmp_path):
    overwrite = jax.jit(lambda x: x + 1, donate_argnums=0)
    with checkpoint.Checkpointer(tmp_path) as checkpoints:
        state = {"x": jnp.arange(500_000.0)}
        checkpoints.save(1, state)
        for _ in range(5):
            state = {"x": overwrite(state["x"])}
        restored = checkpoints.restore(abstract(state))
    np.testing.assert_array_equal(restored["x"], np.arange(500_000, dtype=np.float32))


def test_the_newest_and_the_best_stay(tmp_path):
    losses = {1: 3.0, 2: 1.0, 3: float("nan"), 4: 2.0, 5: 1.5, 6: None}
    with checkpoint.Checkpointer(tmp_path, keep=2, best="eval/loss") as checkpoints:
        for step, loss in losses.items():
            metrics = None if loss is None else {"eval/loss": loss}
            checkpoints.save(step, {"x": jnp.ones(2)}, metrics=metrics)
    assert steps(tmp_path) == [2, 5, 6]
    # And after a restart.
    with checkpoint.Checkpointer(tmp_path, keep=1, best="eval/loss") as checkpoints:
        checkpoints.save(7, {"x": jnp.ones(2)}, metrics={"eval/loss": 0.5})
    assert steps(tmp_path) == [7]
    # Where none has one, none is the best.
    save(tmp_path, 8, 9, keep=1, best="eval/accuracy")
    assert steps(tmp_path) == [9]


def test_a_step_is_saved_once(tmp_path):
    with checkpoint.Checkpointer(tmp_path) as checkpoints:
        checkpoints.save(5, {"x": jnp.ones(2)})
        checkpoints.save(5, {"x": jnp.zeros(2)})
        with pytest.raises(ValueError, match="step is 4, before the newest checkpoint 5"):
            checkpoints.save(4, {"x": jnp.zeros(2)})
        restored = checkpoints.restore(abstract({"x": jnp.ones(2)}))
    np.testing.assert_array_equal(restored["x"], 1)


def test_keep_must_be_positive(tmp_path):
    with pytest.raises(UserError, match="keep is 0: give"):
        checkpoint.Checkpointer(tmp_path, keep=0)


def flip(offset):
    def damage(path):
        content = bytearray(path.read_bytes())
        content[int(offset * (len(content) - 1))] ^= 0x10
        path.write_bytes(content)

    return damage


def truncate(path):
    os.truncate(path, path.stat().st_size // 2)


DAMAGES = {
    "first byte flipped": flip(0.0),
    "a byte flipped": flip(0.4),
    "last byte flipped": flip(1.0),
    "truncated": truncate,
    "emptied": lambda path: os.truncate(path, 0),
    "deleted": lambda path: path.unlink(),
}


@pytest.mark.slow
@pytest.mark.parametrize("damage", DAMAGES.values(), ids=DAMAGES)
def test_damage_to_any_file_is_detected_or_harmless(saved, tmp_path, damage):
    """Each file of the newest checkpoint in turn; what comes back is it or the one before."""
    wanted = {step: bits(make_state(step)) for step in (10, 20)}
    fell_back = set()
    for path in sorted(p.relative_to(saved) for p in (saved / "20").rglob("*") if p.is_file()):
        directory = shutil.copytree(saved, tmp_path / "checkpoints")
        damage(directory / path)
        state, checkpoints = restore(directory)
        assert bits(state) == wanted[checkpoints.latest_step], path
        if checkpoints.latest_step == 10:
            fell_back.add(path)
        shutil.rmtree(directory)
    assert pathlib.Path("20/record/metadata") in fell_back


def log_of_restoring(directory, caplog):
    """The state's step, and the messages that name the folder."""
    with caplog.at_level(logging.WARNING):
        state, _ = restore(directory)
    return int(state["step"]), [m for m in caplog.messages if str(directory / "20") in m]


def test_a_damaged_array_is_named_in_one_line(directory, caplog):
    flip(0.5)(max(directory.glob("20/state/**/d/*"), key=lambda p: p.stat().st_size))
    step, messages = log_of_restoring(directory, caplog)
    assert step == 10
    assert messages == [
        f"skipped checkpoint {directory / '20'}: params/kernel is not as it was saved"
    ]


@pytest.mark.parametrize("also", ["", "state", "record"])
def test_a_folder_without_its_content_is_skipped(directory, caplog, also):
    for path in (directory / "20").iterdir():
        if not also or path.name == also:
            shutil.rmtree(path) if path.is_dir() else path.unlink()
    step, messages = log_of_restoring(directory, caplog)
    assert step == 10
    assert len(messages) == 1
    assert "\n" not in messages[0]


def test_training_goes_on_past_a_damaged_step(directory):
    """The step that was skipped is saved anew; the damaged folder stays, each time."""
    for times in (1, 2):
        truncate(directory / "20" / "record" / "metadata")
        with checkpoint.Checkpointer(directory) as checkpoints:
            state = checkpoints.restore(abstract(make_state()))
            assert (int(state["step"]), checkpoints.latest_step) == (10, 10)
            checkpoints.save(20, make_state(20))
        assert len(list(directory.glob("damaged-20*"))) == times
        assert int(restore(directory)[0]["step"]) == 20


def test_when_all_are_damaged_nothing_is_touched(directory):
    for step in (10, 20):
        truncate(directory / str(step) / "record" / "metadata")
    with pytest.raises(UserError, match=r"no checkpoint in .* is whole; 20: .*; 10: .* anew") as e:
        restore(directory)
    assert "\n" not in str(e.value)
    assert steps(directory) == [10, 20]


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"bytes": jnp.zeros(6, jnp.uint8)}, r"bytes is uint8\[5\] there and uint8\[6\] here"),
        ({"mask": jnp.zeros(11)}, r"mask is bool\[11\] there and float32\[11\] here"),
        ({"other": jnp.zeros(2)}, r"other is missing there and float32\[2\] here"),
        ({"mask": None}, r"mask is bool\[11\] there and missing here"),
    ],
)
def test_another_model_is_refused_before_an_array_is_read(directory, change, message):
    for step in (10, 20):
        shutil.rmtree(directory / str(step) / "state")
    with (
        checkpoint.Checkpointer(directory) as checkpoints,
        pytest.raises(UserError, match=f"20 is of another model: {message}: train") as error,
    ):
        checkpoints.restore(abstract(make_state() | change))
    assert "\n" not in str(error.value)


def names(directory):
    return sorted(path.name for path in directory.iterdir())


def test_nothing_is_changed_before_a_save_which_clears_unfinished_ones_away(directory):
    """Another job's may be under way while one only looks."""
    for name in ("30.orbax-checkpoint-tmp", "10.orbax-checkpoint-tmp"):
        shutil.copytree(directory / "20", directory / name)
    truncate(directory / "20" / "record" / "metadata")
    found = names(directory)
    with checkpoint.Checkpointer(directory) as checkpoints:
        assert int(checkpoints.restore(abstract(make_state()))["step"]) == 10
        assert names(directory) == found
        checkpoints.save(20, make_state(20))
    assert names(directory) == ["10", "20", "damaged-20"]


def test_a_folder_is_made_by_the_first_save(tmp_path):
    with checkpoint.Checkpointer(tmp_path / "new") as checkpoints:
        assert checkpoints.latest_step is None
    assert not (tmp_path / "new").exists()
    save(tmp_path / "new", 1)
    assert steps(tmp_path / "new") == [1]


@contextlib.contextmanager
def full_disk():
    """Files can't grow past 16 kB: writes fail as they do on a full disk."""
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (16_000, hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))


@pytest.mark.parametrize("found_by", ["leaving", "finishing", "the next save"])
def test_a_full_disk_is_one_error_and_loses_nothing(directory, found_by):
    def train():
        with checkpoint.Checkpointer(directory, keep=1) as checkpoints:
            checkpoints.save(30, make_state(30))
            if found_by != "leaving":
                if found_by == "finishing":
                    checkpoints.finish()
                else:
                    checkpoints.save(40, make_state(40))
                raise AssertionError("the failed save went unnoticed")

    with full_disk(), pytest.raises(UserError, match=r"30 could not be .*step 20: make") as error:
        train()
    assert "\n" not in str(error.value)
    assert steps(directory) == [10, 20]
    assert int(restore(directory)[0]["step"]) == 20


def test_a_full_disk_does_not_hide_what_ended_training(directory, caplog):
    def train():
        with checkpoint.Checkpointer(directory) as checkpoints:
            checkpoints.save(30, make_state(30))
            raise KeyError("mine")

    with full_disk(), pytest.raises(KeyError, match="mine"):
        train()
    assert any("30 could not be written" in message for message in caplog.messages)


SAVE_FOREVER = """
import sys
import jax.numpy as jnp
from musiclm import checkpoint, sharding

with checkpoint.Checkpointer(sys.argv[1]) as checkpoints:
    step = checkpoints.latest_step or 0
    while True:
        step += 1
        # Several files' worth of arrays: a save takes longer than the time between two kills.
        state = {str(i): jnp.full((100_000,), step * 10 + i, jnp.int32) for i in range(8)}
        checkpoints.save(step, state, facts={"step": step})
        print(checkpoints.latest_step or 0, flush=True)
"""


@pytest.mark.slow
def test_a_kill_at_any_moment_loses_at_most_the_save_under_way(tmp_path):
    shapes = abstract({str(i): jnp.zeros(100_000, jnp.int32) for i in range(8)})
    rng = random.Random(0)
    for _ in range(6):
        with subprocess.Popen(
            [sys.executable, "-c", SAVE_FOREVER, tmp_path],
            stdout=subprocess.PIPE,
            text=True,
            env=os.environ | {"JAX_PLATFORMS": "cpu"},
        ) as process:
            reports = [process.stdout.readline() for _ in range(3)]
            time.sleep(rng.uniform(0, 0.3))
            process.send_signal(signal.SIGKILL)
            finished = int([*reports, *process.stdout][-1])
        with checkpoint.Checkpointer(tmp_path) as checkpoints:
            state = checkpoints.restore(shapes)
            step = checkpoints.latest_step
            assert step >= finished
            assert checkpoints.facts == {"step": step}
        assert all((x == step * 10 + int(name)).all() for name, x in state.items())


def element_flips(array):
    """The array with one bit of one element changed, for a few elements."""
    raw = np.asarray(array)
    for index in {0, raw.size // 2, raw.size - 1}:
        for byte, bit in ((0, 0), (raw.itemsize - 1, 7 if raw.dtype != bool else 0)):
            changed = raw.copy().ravel()
            changed.view(np.uint8)[index * raw.itemsize + byte] ^= 1 << bit
            yield jnp.asarray(changed.reshape(raw.shape))


@pytest.mark.slow
@pytest.mark.parametrize(
    "dtype", ["float32", "bfloat16", "float16", "int32", "uint32", "int8", "uint8", "bool"]
)
def test_a_fingerprint_sees_every_bit(dtype):
    array = jnp.asarray(np.random.default_rng(0).integers(0, 2, (5, 7))).astype(dtype)
    whole = checkpoint.fingerprints({"x": array})["x"]
    assert checkpoint.fingerprints({"x": jnp.array(array)})["x"] == whole
    for changed in element_flips(array):
        other = checkpoint.fingerprints({"x": changed})["x"]
        # Either half alone would do.
        assert other[:8] != whole[:8]
        assert other[8:] != whole[8:]


@pytest.mark.slow
@pytest.mark.parametrize(
    ("a", "b"),
    [
        (jnp.array([1.0, 2.0]), jnp.array([2.0, 1.0])),
        (jnp.array([0.0]), jnp.array([-0.0])),
        (jnp.zeros(3), jnp.zeros(4)),
        (jnp.float32(0), jnp.float32(1)),
        (jax.random.key(0), jax.random.key(1)),
        # A row for a row, and the top bits of two elements: what plain sums don't see.
        (jnp.arange(6.0).reshape(2, 3), jnp.arange(6.0).reshape(2, 3)[::-1]),
        (jnp.uint32([1, 2]), jnp.uint32([1, 2]) ^ jnp.uint32(2**31)),
    ],
)
def test_different_arrays_have_different_fingerprints(a, b):
    found = checkpoint.fingerprints({"a": a, "b": b})
    assert found["a"] != found["b"]


def test_a_fingerprint_is_what_it_was_when_old_checkpoints_were_saved():
    """Computed again by plain integers, as its definition says."""
    words = np.random.default_rng(0).integers(0, 2**32, (4, 5), np.uint32)
    first = second = 0
    for index, word in enumerate(words.ravel().tolist()):
        odd = 2 * index + 1
        x = (word + odd * 0x9E3779B1) % 2**32
        x = (x ^ x >> 16) * 0x85EBCA6B % 2**32
        x = (x ^ x >> 13) * 0xC2B2AE35 % 2**32
        x ^= x >> 16
        first, second = first + x, second + x * odd
    expected = f"{first % 2**32:08x}{second % 2**32:08x}"
    assert checkpoint.fingerprints({"x": jnp.asarray(words)}) == {"x": expected}
    assert checkpoint.fingerprints({"x": jnp.zeros((0, 3))}) == {"x": "0" * 16}
