"""What gin lets pass and a run must not."""

import json
import pathlib

import gin
import pytest

from musiclm import errors
from musiclm.bin import configuration
from musiclm.training import loop

ROOT = pathlib.Path(__file__).parents[2]
FILE = ROOT / "gin/train/mini/coarse.gin"
MACROS = [f"{name}='x'" for name in ("TRAIN", "VALIDATION", "TOKENIZERS", "WORKDIR", "COMPONENT")]


@pytest.mark.parametrize(
    ("bindings", "told"),
    [
        (["TRIAN='x'"], "the macro TRIAN is set, and nothing uses it: did you mean TRAIN?"),
        (
            ["validaton/batches.token_sequences.split='test'"],
            "the scope validaton is set, and nothing uses it: did you mean validation?",
        ),
        (
            ["validation/x/batches.token_sequences.split='test'"],
            "the scope validation/x is set, and nothing uses it: did you mean validation?",
        ),
        (["loop.train.num_step=3"], "'num_step'"),
        (["NUM_STEPS='3'"], "num_steps is '3': give a whole number"),
        (["loop.train.num_steps=3.5"], "num_steps is 3.5: give a whole number"),
        (["loop.train.log_every=None"], "log_every is None: give a whole number"),
        (["loop.train.batch_size=True"], "batch_size is True: give a whole number"),
        (["optim.OptimizerConfig.learning_rat=1"], "'learning_rat'"),
        (["optim.OptimizerConfig.schedule=3"], "schedule is 3: give a string"),
        (["loop.train.profile_steps=5"], "profile_steps is 5: give tuple[int, int] or None"),
        (["loop.train.mesh=8"], "mesh is 8: give MeshConfig or None"),
        (["loop.train.dataset='x'"], "dataset is 'x': give Callable[..., Iterator["),
        (["WORKDIR='gs://b/runs'"], "WORKDIR is 'gs://b/runs', which is no path: mount gs://b ("),
        (["junk"], "parse"),
    ],
)
def test_a_mistake_is_told_when_it_is_read(bindings, told):
    with pytest.raises(errors.UserError) as raised:
        configuration.parse([str(FILE)], [*MACROS, *bindings])
    assert told in str(raised.value)
    assert "\n" not in str(raised.value)


def test_a_macro_that_must_be_set_is_named():
    with pytest.raises(errors.UserError, match="the macro TRAIN is used, and not set"):
        configuration.parse([str(FILE)], MACROS[1:])


def test_a_whole_number_is_a_number():
    configuration.parse([str(FILE)], [*MACROS, "optim.OptimizerConfig.learning_rate=1"])
    assert gin.query_parameter("optim.OptimizerConfig.learning_rate") == 1


@pytest.mark.parametrize(
    ("bindings", "told"),
    [
        (
            ["loop.train.data=''", "optim.OptimizerConfig.schedule='lin'"],
            "OptimizerConfig.schedule is 'lin'",
        ),
        ([], "x/dataset.json is missing"),
    ],
)
def test_a_value_that_is_refused_is_told_in_one_line(bindings, told, monkeypatch, tmp_path):
    monkeypatch.chdir(tmp_path)
    configuration.parse([str(FILE)], [*MACROS, *bindings])
    with pytest.raises(errors.UserError) as raised:
        configuration.resolve(loop.train)
    assert "\n" not in str(raised.value)
    assert told in str(raised.value)


def test_a_missing_file_is_named():
    with pytest.raises(errors.UserError, match=r"'no/such.gin'"):
        configuration.parse(["no/such.gin"])


@pytest.mark.parametrize("value", [(5, 8), None])
def test_a_value_of_one_of_several_types_is_taken(value):
    configuration.parse([str(FILE)], [*MACROS, f"loop.train.profile_steps={value}"])
    found = configuration.resolve_some(loop.train, ("profile_steps",))
    assert found == {"profile_steps": value}


@pytest.mark.parametrize(
    "bindings",
    [
        # The file binds in the scope of what is taken away here.
        ["loop.train.eval_dataset=None"],
        # An outer scope's bindings hold in those inside.
        [
            "loop.train.eval_dataset=@outer/inner/batches.token_sequences",
            "outer/batches.token_sequences.split='test'",
            "outer/inner/batches.token_sequences.conditioning='text'",
        ],
        # As a study's overrides do.
        ["loop.train.data='x = @late/f()'", "late/batches.token_sequences.split='test'"],
    ],
)
def test_scopes_that_something_refers_to_are_taken(bindings):
    configuration.parse([str(FILE)], [*MACROS, *bindings])


def test_which_functions_are_bound():
    configuration.parse([str(FILE)], whole=False)
    assert configuration.binds("musiclm.training.loop:train")
    assert not configuration.binds("musiclm.bin.measuring:measure")
    assert not configuration.binds("musiclm.training.loop:export")


def test_what_decides_a_run_is_described():
    """Scopes, macros and defaults show as what they come to; what is not used does not show."""
    unused = "validation/transformer.TransformerConfig.dropout = 0.9"
    configuration.parse([str(FILE)], [*MACROS, "NUM_STEPS = 7", unused])
    run = configuration.described(loop.train)
    assert run["calls"] == "musiclm.training.loop.train"
    assert run["num_steps"] == run["task"]["optimizer"]["total_steps"] == 7
    assert (run["dataset"]["split"], run["eval_dataset"]["split"]) == ("train", "validation")
    assert run["dataset"]["corpora"][0]["splits"] == {"train": "x", "validation": "x"}
    assert run["task"]["config"]["transformer"]["dropout"] == 0.0
    assert run["task"]["optimizer"]["b1"] == 0.9
    assert json.loads(json.dumps(run)) == run
