"""Components and bundles: round trips, and every way in which a file can be wrong."""

import dataclasses
import errno
import json

import numpy as np
import pytest
import safetensors.numpy

from musiclm import bundle
from musiclm.models.soundstream import SoundStreamConfig
from musiclm.token_spec import TokenSpec
from musiclm.tokens import layout

CONFIG = {"model": SoundStreamConfig(strides=(2, 4), sample_rate=800), "words": ("a", "b")}
VARIABLES = {
    "params": {"dense": {"kernel": np.linspace(-1, 1, 12, dtype=np.float32).reshape(3, 4)}},
    "ids": np.arange(5, dtype=np.int32),
}


@pytest.fixture
def sealed(tmp_path):
    for part in bundle.COMPONENTS:
        bundle.save_component(tmp_path, part, bundle.Component(CONFIG, VARIABLES))
    sampling = {"fine": {"temperature": 0.8}}
    bundle.seal(tmp_path, "tiny", TokenSpec(num_acoustic_codebooks=8), sampling)
    return tmp_path


def test_component_round_trip(tmp_path):
    bundle.save_component(tmp_path, "x", bundle.Component(CONFIG, VARIABLES))
    back = bundle.load_component(tmp_path, "x")
    assert back.config == CONFIG
    np.testing.assert_array_equal(back.variables["ids"], VARIABLES["ids"])
    kernel = back.variables["params"]["dense"]["kernel"]
    assert kernel.dtype == np.float32
    np.testing.assert_allclose(kernel, VARIABLES["params"]["dense"]["kernel"], rtol=1e-3)


def test_saving_twice_changes_nothing(tmp_path):
    """What a tokenizer computes from a stored component, it computes from its copy as well."""
    component = bundle.Component(CONFIG, VARIABLES)
    first = bundle.save_component(tmp_path, "x", component).read_bytes()
    again = bundle.save_component(tmp_path, "y", bundle.load_component(tmp_path, "x")).read_bytes()
    assert first == again


def test_bundle_round_trip(sealed):
    loaded = bundle.load(sealed)
    assert loaded.name == "tiny"
    assert loaded.token_spec == TokenSpec(num_acoustic_codebooks=8)
    assert set(loaded.components) == set(bundle.COMPONENTS)
    assert loaded.sampling == {"fine": {"temperature": 0.8}}


def test_the_bundled_model_has_todays_layouts():
    """It was made before stages could have a melody."""
    loaded = bundle.load("gm-mini")
    assert loaded.token_spec.num_melody_codebooks == 0
    for stage in layout.STAGES:
        wanted = layout.StageLayout.of(stage, loaded.token_spec)
        assert loaded.components[stage].config.layout == wanted


def test_a_soundstorm_is_sealed_where_there_is_one(sealed):
    without = bundle.load(sealed)
    bundle.save_component(sealed, "soundstorm", bundle.Component(CONFIG, VARIABLES))
    # The manifest says what belongs to it.
    assert set(bundle.load(sealed).components) == set(bundle.COMPONENTS)
    assert bundle.load(sealed).digest == without.digest
    bundle.seal(sealed, "tiny", without.token_spec, without.sampling)
    loaded = bundle.load(sealed)
    assert set(loaded.components) == {*bundle.COMPONENTS, "soundstorm"}
    assert loaded.digest != without.digest
    path = sealed / "soundstorm.safetensors"
    path.write_bytes(path.read_bytes()[:-1])
    with pytest.raises(bundle.BundleError, match=r"soundstorm\.safetensors is damaged"):
        bundle.load(sealed)
    path.unlink()
    with pytest.raises(bundle.BundleError, match=r"soundstorm\.safetensors is missing"):
        bundle.load(sealed)


@pytest.mark.parametrize("failing", ["pathlib.Path.write_bytes", "os.replace"])
def test_half_a_file_does_not_stay(tmp_path, monkeypatch, failing):
    path = tmp_path / "a.bin"
    path.write_bytes(b"old")

    def full(beside, *_):
        with open(beside, "wb") as file:
            file.write(b"ne")
        raise OSError(errno.ENOSPC, "No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr(failing, full)
        with pytest.raises(OSError, match="No space"):
            bundle.write_beside(path, b"new")
    assert [(p.name, p.read_bytes()) for p in tmp_path.iterdir()] == [("a.bin", b"old")]


def test_values_that_do_not_fit_are_refused(tmp_path):
    with pytest.raises(bundle.BundleError, match="huge"):
        bundle.save_component(
            tmp_path, "x", bundle.Component({}, {"huge": np.array([1e9], np.float32)})
        )
    assert not list(tmp_path.iterdir())


def flip_a_byte(directory):
    path = directory / "coarse.safetensors"
    data = bytearray(path.read_bytes())
    data[-1] ^= 1
    path.write_bytes(data)


def truncate(directory):
    path = directory / "fine.safetensors"
    path.write_bytes(path.read_bytes()[:-8])


def lose_a_file(directory):
    (directory / "mulan.safetensors").unlink()


def rewrite(**changes):
    def damage(directory):
        path = directory / "bundle.json"
        path.write_text(json.dumps(json.loads(path.read_text()) | changes))

    return damage


def nameless(directory):
    path = directory / "bundle.json"
    record = json.loads(path.read_text())
    del record["name"]
    path.write_text(json.dumps(record))


@pytest.mark.parametrize(
    ("damage", "words"),
    [
        (flip_a_byte, "coarse.safetensors is damaged"),
        (truncate, "fine.safetensors is damaged"),
        (lose_a_file, "mulan.safetensors is missing"),
        (rewrite(format=99), "format 99"),
        (rewrite(token_spec={"rate": 1}), "no MusicLM bundle"),
        (rewrite(name=None), "no MusicLM bundle .*its name is None"),
        (nameless, "no MusicLM bundle .*'name'"),
        (lambda d: (d / "bundle.json").write_text("{"), "no MusicLM bundle"),
        (lambda d: (d / "bundle.json").write_text("[]"), "no MusicLM bundle"),
        (lambda d: (d / "bundle.json").write_bytes(b"\xff\xfe"), "no MusicLM bundle"),
    ],
)
def test_a_wrong_bundle_is_refused_by_name(sealed, damage, words):
    damage(sealed)
    with pytest.raises(bundle.BundleError, match=words):
        bundle.load(sealed)


@pytest.mark.parametrize(
    "metadata", ["{", "[]", '{"format": 1}', '{"format": 1, "config": {"class": 3}}']
)
def test_a_foreign_component_is_told(tmp_path, metadata):
    """As safetensors it is sound."""
    arrays = {"x": np.zeros(2, np.float32)}
    safetensors.numpy.save_file(arrays, tmp_path / "x.safetensors", {"musiclm": metadata})
    with pytest.raises(bundle.BundleError, match=r"x\.safetensors is no MusicLM component"):
        bundle.load_component(tmp_path, "x")


def test_an_unknown_name_lists_what_there_is():
    with pytest.raises(bundle.BundleError, match=r"unknown model 'no-such'.*gm-mini"):
        bundle.load("no-such")


def test_only_this_packages_classes_are_made():
    with pytest.raises(bundle.BundleError, match="subprocess"):
        bundle.from_json({"class": "subprocess.Popen", "args": ["true"]})


def test_a_config_of_another_version_is_refused():
    record = bundle.to_json(SoundStreamConfig()) | {"flux": 1}
    with pytest.raises(bundle.BundleError, match="flux"):
        bundle.from_json(record)


def test_nested_configs_survive_json():
    from musiclm.models.mulan import MuLanConfig

    config = MuLanConfig()
    assert bundle.from_json(json.loads(json.dumps(bundle.to_json(config)))) == config
    assert dataclasses.is_dataclass(config.resnet)
