"""`musiclm describe`: the papers' sizes by shape alone, and mistakes in gin files."""

import json
import pathlib
import re

import pytest

from musiclm.bin import describe, main

GIN = pathlib.Path(__file__).parents[2] / "gin" / "models"
STAGES = ("semantic", "coarse", "fine")
MODELS = ("soundstream", "w2v_bert", "mulan", *STAGES, "soundstorm")

SMALL_CODEC = """
from __gin__ import dynamic_registration
from musiclm.models import soundstream
soundstream.SoundStreamConfig.encoder_channels = 4
soundstream.SoundStreamConfig.decoder_channels = 4
"""


@pytest.fixture(scope="module")
def base():
    """The `base.gin` of every model, described."""
    described = [describe.describe(GIN / model / "base.gin") for model in MODELS]
    assert [len(models) for models in described] == [1] * len(MODELS)
    return {models[0]["model"]: models[0] for models in described}


def test_every_base_file_names_its_model(base):
    assert tuple(base) == MODELS


@pytest.mark.parametrize(
    ("model", "parameters", "tolerance"),
    [
        ("soundstream", 8.4e6, 0.03),
        ("w2v_bert", 0.6e9, 0.05),
        ("mulan", 23.5e6 + 109.5e6, 0.02),
        ("semantic", 430e6, 0.03),
        ("coarse", 430e6, 0.03),
        ("fine", 430e6, 0.03),
        ("soundstorm", 350e6, 0.05),
    ],
)
def test_parameters_are_the_papers(base, model, parameters, tolerance):
    assert base[model]["parameters"] == pytest.approx(parameters, rel=tolerance)
    assert base[model]["bytes_f32"] == 4 * base[model]["parameters"]
    assert base[model]["bytes_bf16"] == 2 * base[model]["parameters"]


def test_rates_and_lengths_are_the_papers(base):
    assert base["soundstream"]["tokens_per_second"] == 600
    assert base["soundstream"]["bits_per_second"] == 6000
    assert base["w2v_bert"]["frame_rate"] == 25
    assert base["mulan"]["window_seconds"] == 10
    assert [base[stage]["sequence_length"] for stage in STAGES] == [762, 2262, 1800]
    assert [base[stage]["target_length"] for stage in STAGES] == [750, 2000, 1200]
    assert base["soundstorm"]["num_frames"] == 500


def test_a_melody_costs_its_tokens_and_their_vectors(base, tmp_path):
    (tmp_path / "melody.gin").write_text(
        f"from __gin__ import dynamic_registration\n"
        f"from musiclm import token_spec\n"
        f"include '{GIN}/semantic/base.gin'\n"
        f"token_spec.TokenSpec.num_melody_codebooks = 24\n"
    )
    (model,) = describe.describe(tmp_path / "melody.gin")
    assert (model["prefix_mulan"], model["prefix_melody"]) == (12, 72)
    assert "prefix_melody" not in base["semantic"]
    assert model["sequence_length"] == base["semantic"]["sequence_length"] + 72
    assert model["parameters"] == base["semantic"]["parameters"] + 24 * 512 * 1024


def test_the_papers_sizes_by_one_pattern(base, capsys, monkeypatch, tmp_path):
    """What the README says to type, from anywhere."""
    monkeypatch.chdir(tmp_path)
    files = sorted(str(path) for path in GIN.glob("*/base.gin"))
    assert main.main(["describe", "--json", *files]) == 0
    told = json.loads(capsys.readouterr().out)
    assert {m["model"]: m["parameters"] for m in told} == {
        name: m["parameters"] for name, m in base.items()
    }


@pytest.mark.parametrize("model", MODELS)
def test_every_model_has_a_mini_twin(base, model):
    (mini,) = describe.describe(GIN / model / "mini.gin")
    assert mini["model"] == model
    assert mini["parameters"] < base[model]["parameters"] / 2


def test_json(tmp_path, capsys):
    (tmp_path / "codec.gin").write_text(SMALL_CODEC)
    assert main.main(["describe", "--json", str(tmp_path / "codec.gin")]) == 0
    (model,) = json.loads(capsys.readouterr().out)
    assert model["model"] == "soundstream"
    assert model["gin_file"] == str(tmp_path / "codec.gin")
    assert model["parameters"] > 0


def test_text(tmp_path, capsys):
    (tmp_path / "codec.gin").write_text(SMALL_CODEC)
    assert main.main(["describe", str(tmp_path / "codec.gin")]) == 0
    told = capsys.readouterr().out
    assert "soundstream" in told
    assert "parameters" in told


def test_files_do_not_see_each_other(tmp_path, capsys):
    """The second file leaves the channels at their default, whatever the first one says."""
    (tmp_path / "a.gin").write_text(SMALL_CODEC)
    (tmp_path / "b.gin").write_text(SMALL_CODEC.replace("_channels = 4", "_channels = 32"))
    (tmp_path / "c.gin").write_text(
        SMALL_CODEC.split("soundstream.SoundStreamConfig")[0]
        + "soundstream.SoundStreamConfig.sample_rate = 24000\n"
    )
    assert main.main(["describe", "--json", *(str(tmp_path / f"{n}.gin") for n in "abc")]) == 0
    a, b, c = json.loads(capsys.readouterr().out)
    assert a["parameters"] < b["parameters"] == c["parameters"]


@pytest.mark.parametrize(
    ("text", "told"),
    [
        (SMALL_CODEC.replace("encoder_channels", "encoder_chanels"), "encoder_chanels"),
        (SMALL_CODEC.replace("SoundStreamConfig", "SoundStreemConfig"), "SoundStreemConfig"),
        (SMALL_CODEC.replace("import soundstream", "import soundstreem"), "soundstreem"),
        (SMALL_CODEC.replace("= 4", "= -4"), "encoder_channels=-4"),
        (SMALL_CODEC.replace("= 4", "= 'four'"), "four.gin"),
        (SMALL_CODEC.replace("= 4", "= %FOUR"), "FOUR"),
        (SMALL_CODEC.replace("= 4", "= = 4"), "four.gin"),
        ("include 'not/there.gin'\n", "not/there.gin"),
        ("", "no model"),
    ],
)
def test_a_wrong_file_is_one_line_and_code_2(tmp_path, capsys, text, told):
    path = tmp_path / "four.gin"
    path.write_text(text)
    assert main.main(["describe", str(path)]) == 2
    captured = capsys.readouterr()
    assert captured.out == ""
    assert captured.err.startswith("musiclm: error: ")
    assert captured.err.count("\n") == 1
    assert str(path) in captured.err
    assert told in captured.err


def test_a_file_that_is_no_text(tmp_path, capsys):
    (tmp_path / "x.gin").write_bytes(b"\xff\xfe\x00")
    assert main.main(["describe", str(tmp_path / "x.gin")]) == 2
    assert capsys.readouterr().err.count("\n") == 1


def test_the_ast_variant_is_as_the_file_says(tmp_path):
    """The comment at the top of gin/models/mulan/base.gin, followed to the letter."""
    base = GIN / "mulan" / "base.gin"
    comment = " ".join(line.lstrip("# ") for line in base.read_text().splitlines()[:6])
    bindings = re.findall(r"[\w./]+ = (?:None|@[\w.]+\(\)|\d+)", comment)
    assert len(bindings) == 3
    path = tmp_path / "ast.gin"
    imports = "from __gin__ import dynamic_registration\nfrom musiclm import audio\n"
    imports += "from musiclm.models import ast\nfrom musiclm.models import mulan\n"
    path.write_text(imports + f"include '{base}'\n" + "\n".join(bindings))
    (model,) = describe.describe(path)
    assert model["parameters"] == pytest.approx(195e6, rel=0.01)
