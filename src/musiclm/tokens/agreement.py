"""Whether the models of a bundle make and take the tokens that its `TokenSpec` tells of."""

from musiclm.bundle import Bundle, BundleError
from musiclm.tokens import layout, tokenizers

STAGES = {"semantic": "semantic", "coarse": "coarse", "fine": "fine", "soundstorm": "parallel"}


def check(bundle: Bundle) -> None:
    """Compares rates, levels, sizes and layouts.

    Raises:
      BundleError: one is not that of the spec; else music would come out at another pitch or
        length, or as noise.
    """
    spec, parts = bundle.token_spec, bundle.components
    acoustic = tokenizers.AcousticTokenizer.load(parts["soundstream"])
    semantic = tokenizers.SemanticTokenizer.load(parts["w2v_bert"])
    mulan = tokenizers.MuLanTokenizer.load(parts["mulan"])
    for field, part, made in (
        ("sample_rate", "soundstream", acoustic.sample_rate),
        ("acoustic_frame_rate", "soundstream", acoustic.frame_rate),
        ("num_acoustic_codebooks", "soundstream", acoustic.num_codebooks),
        ("acoustic_codebook_size", "soundstream", acoustic.codebook_size),
        ("semantic_frame_rate", "w2v_bert", semantic.frame_rate),
        ("semantic_vocab_size", "w2v_bert", semantic.codebook_size),
        ("num_mulan_codebooks", "mulan", mulan.num_codebooks),
        ("mulan_codebook_size", "mulan", mulan.codebook_size),
    ):
        told = getattr(spec, field)
        if told != made:
            raise BundleError(
                f"{bundle.name}: TokenSpec.{field} is {told}, and {part} has {made}: "
                "seal the bundle with the TokenSpec of its models"
            )
    for part, name in STAGES.items():
        wanted = [layout.StageLayout.of(name, spec)]
        if name == "coarse":
            wanted.append(layout.StageLayout.coarse(spec, semantic=False))
        if part in parts and parts[part].config.layout not in wanted:
            raise BundleError(
                f"{bundle.name}: the stage {part} was not trained on the tokens of the bundle's "
                "TokenSpec: seal the bundle with that of its stages, or train this one on it"
            )
