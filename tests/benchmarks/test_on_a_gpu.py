"""What measures a GPU: it says where there is none, and reads a trace."""

import importlib
import pathlib
import sys
import types

import jax
import jax.numpy as jnp
import pytest

BENCHMARKS = pathlib.Path(__file__).parents[2] / "benchmarks"


@pytest.fixture
def script(monkeypatch):
    """Imports one of them, as it is when it runs: beside the others."""
    monkeypatch.syspath_prepend(str(BENCHMARKS))
    return importlib.import_module


@pytest.mark.parametrize("name", ["train_gpu", "sample_gpu"])
def test_without_a_gpu_nothing_is_measured(script, name, monkeypatch, capsys):
    monkeypatch.setattr(jax, "default_backend", lambda: "cpu")
    monkeypatch.setattr(sys, "argv", [name])
    script(name).main()
    told = capsys.readouterr()
    assert told.out == ""
    assert told.err == f"{name}: there is no GPU here, nothing is measured\n"


def test_the_model_trained_is_the_recipes_for_a_gpu(script):
    config = script("train_gpu").base_config("flash").transformer
    assert (config.attention, config.dtype, config.num_layers) == ("flash", "bfloat16", 24)
    assert config.scan_unroll == 24
    assert config.remat
    assert config.remat_keeps == "products"


def test_kernels_are_summed_by_name_over_a_devices_streams(script):
    gpu_profile = script("gpu_profile")
    event = lambda name, ms: types.SimpleNamespace(name=name, duration_ns=ms * 1e6)  # noqa: E731
    line = lambda name, *events: types.SimpleNamespace(name=name, events=events)  # noqa: E731
    plane = lambda name, *lines: types.SimpleNamespace(name=name, lines=lines)  # noqa: E731
    streams = (
        line("Stream #14(Compute)", event("gemm", 3.0), event("fusion_2", 1.0)),
        line("Stream #15(MemcpyD2D)", event("gemm", 4.0)),
        line("XLA Ops", event("repeated", 99.0)),
    )
    trace = types.SimpleNamespace(
        planes=[plane("/device:GPU:0", *streams), plane("/host:CPU", streams[0])]
    )
    launches = gpu_profile._launches(trace)
    gemm, fusion = gpu_profile.ranked(launches, {"fusion_2": "mlp/mul"}, steps=2)
    assert gemm[:2] == ("gemm", "")
    assert gemm[2:] == pytest.approx((3.5e-3, 7 / 8, 1))
    assert fusion[:2] == ("fusion_2", "mlp/mul")
    assert fusion[2:] == pytest.approx((0.5e-3, 1 / 8, 0.5))


def test_sources_are_found_in_a_compiled_program(script):
    def step(x):
        with jax.named_scope("mlp"):
            return jnp.sin(x) @ x

    text = jax.jit(step).lower(jnp.ones((8, 8))).compile().as_text()
    sources = script("gpu_profile")._sources(text)
    assert "mlp/dot_general" in sources.values()
    assert not any("." in name or "-" in name for name in sources)
