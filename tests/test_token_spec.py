"""The paper's figures, and what is refused."""

import pytest

from musiclm.token_spec import TokenSpec


def test_defaults_are_the_papers():
    spec = TokenSpec()
    assert spec.hop_length == 480
    assert spec.num_fine_codebooks == 8
    assert spec.semantic_frames(30) == 750
    assert spec.acoustic_frames(10) * spec.num_coarse_codebooks == 2_000
    assert spec.acoustic_frames(3) * spec.num_fine_codebooks == 1_200
    assert spec.melody_shape is None
    assert TokenSpec(num_melody_codebooks=24).melody_shape == (3, 24)


@pytest.mark.parametrize(
    "field",
    [
        {"num_coarse_codebooks": 12},
        {"sample_rate": 16_001},
        {"semantic_frame_rate": 24},
        {"mulan_codebook_size": 0},
        {"num_melody_codebooks": -1},
        {"num_melody_embeddings": 0},
    ],
)
def test_impossible_specs_are_refused_by_field(field):
    with pytest.raises(ValueError, match=next(iter(field))):
        TokenSpec(**field)
