"""`musiclm fit`: what its gin files fit, and bundles whose tokens are not those of their models."""

import dataclasses
import pathlib
import shutil

import gin
import pytest

from musiclm import MusicLM, bundle, exit_codes, token_spec
from musiclm.bin import configuration, fit, main

GIN = pathlib.Path(__file__).parents[2] / "gin"
SPECS = {
    "base": token_spec.TokenSpec(),
    "mini": token_spec.TokenSpec(
        sample_rate=16_000,
        num_acoustic_codebooks=6,
        acoustic_codebook_size=512,
        num_coarse_codebooks=2,
        semantic_vocab_size=512,
        mulan_codebook_size=256,
        semantic_window_seconds=10.0,
        coarse_window_seconds=5.0,
        fine_window_seconds=1.0,
    ),
}
FOLDERS = {"base": GIN / "train", "mini": GIN / "train" / "mini"}


def parse(path, *names):
    configuration.parse([str(path)], [f'{name}="there"' for name in names])
    assert callable(configuration.resolve(fit.fit)["what"])


@pytest.mark.parametrize("size", SPECS)
def test_fits_make_the_tokens_of_the_spec(size):
    spec, sound = SPECS[size], ("TRAIN", "VALIDATION", "MODEL", "COMPONENT")
    parse(FOLDERS[size] / "mulan_quantizer.gin", *sound, "VOCABULARY")
    asked = gin.query_parameter
    assert asked("fit_mulan_quantizer.num_codebooks") == spec.num_mulan_codebooks
    assert asked("fit_mulan_quantizer.codebook_size") == spec.mulan_codebook_size
    read = asked("audio_text_pairs.vocab_size")
    parse(FOLDERS[size] / "semantic_clusters.gin", *sound)
    assert asked("fit_semantic_clusters.num_clusters") == spec.semantic_vocab_size
    parse(FOLDERS[size] / "vocabulary.gin", "CORPUS", "VOCABULARY")
    assert asked("wordpiece.fit.vocab_size") == read
    configuration.parse([str(GIN / "models" / "mulan" / f"{size}.gin")], [], whole=False)
    assert asked("%VOCAB_SIZE") == read


@pytest.mark.parametrize("size", SPECS)
def test_a_bundle_of_other_tokens_is_refused(size, tiny_bundle, tmp_path):
    """Played, it would be at another pitch."""
    folder = shutil.copytree(tiny_bundle, tmp_path / "sealed")
    command = ["fit", "--gin_file", str(FOLDERS[size] / "bundle.gin")]
    command += [f"--gin_bindings=BUNDLE = '{folder}'", "--gin_bindings=NAME = 'mine'"]
    assert main.main(command) == exit_codes.DONE
    assert bundle.load(folder).token_spec == SPECS[size]
    rate = SPECS[size].sample_rate
    told = f"mine: TokenSpec.sample_rate is {rate}, and soundstream has 1600: seal"
    with pytest.raises(bundle.BundleError, match=told):
        MusicLM.from_pretrained(folder)


def test_a_stage_of_another_window_is_refused(tiny_bundle, tmp_path):
    folder = shutil.copytree(tiny_bundle, tmp_path / "sealed")
    spec = dataclasses.replace(bundle.load(folder).token_spec, fine_window_seconds=1.0)
    bundle.seal(folder, "mine", spec)
    with pytest.raises(bundle.BundleError, match="the stage fine was not trained on the tokens"):
        MusicLM.from_pretrained(folder)
