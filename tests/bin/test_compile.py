"""`musiclm compile`: the base runs fit their pods, and keep to themselves what need not be sent."""

import importlib.util
import json
import pathlib

import jax
import pytest

from musiclm import exit_codes, sharding
from musiclm.bin import compile, configuration, main

RUNS = pathlib.Path(__file__).parents[2] / "gin" / "train"
MODELS = ("soundstream", "w2v_bert", "bert", "mulan", "semantic", "coarse", "fine", "soundstorm")
MACROS = {
    "soundstream": (),
    "w2v_bert": (),
    "bert": ("VOCABULARY",),
    "mulan": ("VOCABULARY",),
    "semantic": ("TOKENIZERS",),
    "coarse": ("TOKENIZERS",),
    "fine": ("TOKENIZERS",),
    "soundstorm": ("TOKENIZERS",),
}


@pytest.fixture(autouse=True)
def libtpu_as_it_is(monkeypatch):
    """libtpu reads flags of XLA too, and ours are for the tests' own programs."""
    monkeypatch.delenv("XLA_FLAGS", raising=False)


def run_file(model):
    return str(RUNS / f"{model}.gin")


@pytest.mark.slow
@pytest.mark.parametrize("model", MODELS)
def test_every_base_run_is_whole(model):
    """What the file says must be set is all that must be; the program can then be built."""
    from musiclm.training import loop, program

    names = ("TRAIN", "VALIDATION", "WORKDIR", "COMPONENT", *MACROS[model])
    configuration.parse([run_file(model)], [f'{name}="there"' for name in names])
    run = configuration.resolve_some(loop.train, ("task", "mesh", "batch_size", "num_steps"))
    assert isinstance(run["mesh"], sharding.MeshConfig)
    mesh = sharding.MeshConfig().make(jax.devices()[:1])
    built = program.build(run["task"], mesh, batch_size=run["batch_size"])
    assert built.training_flops() > 1e12
    assert all(array.shape[0] == run["batch_size"] for array in built.batch.values())


def test_no_run_is_forgotten():
    additions = {"gpu"}  # to a run's own file
    fits = {"vocabulary", "mulan_quantizer", "semantic_clusters", "bundle"}
    assert {path.stem for path in RUNS.glob("*.gin")} - additions - fits == set(MODELS)


needs_libtpu = pytest.mark.skipif(
    importlib.util.find_spec("libtpu") is None, reason="compiling for TPUs needs libtpu"
)


@needs_libtpu
@pytest.mark.slow
@pytest.mark.parametrize("model", ["w2v_bert", "mulan", "coarse"])
def test_base_runs_fit_256_chips(model, capsys):
    """Those that could fail to. The report on all is docs/compile_report.md.

    The semantic and the fine stage are the coarse one's program with shorter rows, SoundStorm comes
    next, and SoundStream, which takes libtpu the longest, has its weights whole on every chip and
    needs a quarter of the memory.
    """
    command = ["compile", "--quick", "--json", "--topology", "v5e:16x16", "--gin_file"]
    assert main.main([*command, run_file(model)]) == exit_codes.DONE
    report = json.loads(capsys.readouterr().out)
    assert report["fits"]
    assert report["devices"] == 256
    assert report["bytes_limit"] == 16 * 2**30
    assert report["bytes_sent_across_slices"] == 0
    # Activations stay where their rows are, and no bias is summed at the size of the scores.
    assert report["largest_all_reduced_in_a_loop"] <= 2**20
    assert 0 < report["mfu_at_most"] <= 1


@needs_libtpu
@pytest.mark.slow
def test_slices_exchange_the_gradients_of_a_shard():
    """Here SoundStorm's, which then need not be compiled for one slice as well."""
    report = compile.compile_run([run_file("soundstorm")], [], "v5e:16x16", slices=2, quick=True)
    assert report["fits"]
    assert report["largest_all_reduced_in_a_loop"] <= 2**20
    assert report["mesh"] == {"data": 32, "fsdp": 16, "tensor": 1}
    crossing = [item for item in report["collectives"] if item["crosses_slices"]]
    assert all("data" in item["axes"] for item in crossing)
    # Less than two copies of the gradients of the 1/16 that a device holds, and of the embedding.
    assert 0 < report["bytes_sent_across_slices"] < 0.3e9


@needs_libtpu
@pytest.mark.parametrize(
    ("arguments", "told"),
    [
        (["--topology", "v9:2x2"], "v9:2x2"),
        (["--topology", "v5e:3x3"], "v5e:3x3"),
        (["--topology", "v5e:4x4", "--gin_bindings", "FSDP=7"], "'fsdp': 7"),
        (["--topology", "v5e:4x4", "--gin_bindings", "BATCH_SIZE=17"], "batch_size is 17"),
        (["--topology", "v5e:4x4", "--gin_bindings", "FSPD=8"], "FSDP"),
        (["--topology", "v5e:4x4", "--slices", "0"], "--slices is 0"),
    ],
)
def test_mistakes_are_one_line(arguments, told, capsys):
    command = ["compile", "--gin_file", run_file("semantic"), *arguments]
    assert main.main(command) == exit_codes.CONFIGURATION
    out, err = capsys.readouterr()
    assert out == ""
    assert err.count("\n") == 1
    assert err.startswith("musiclm: error: ")
    assert told in err


def test_without_libtpu_it_says_what_to_install(monkeypatch, capsys):
    monkeypatch.setattr(compile.importlib.util, "find_spec", lambda name: None)
    command = ["compile", "--gin_file", run_file("semantic"), "--topology", "v5e:4x4"]
    assert main.main(command) == exit_codes.CONFIGURATION
    assert "jax[tpu]" in capsys.readouterr().err
