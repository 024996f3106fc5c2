"""How sound becomes tokens: the rates and sizes that every stage, pipeline and sampler share."""

import dataclasses


@dataclasses.dataclass(frozen=True, kw_only=True)
class TokenSpec:
    """Rates and sizes of the token streams. The defaults are MusicLM's (section 3 and 4.1).

    Attributes:
      sample_rate: of the acoustic codec, in Hz.
      acoustic_frame_rate: codec frames a second.
      num_acoustic_codebooks: levels of the codec's residual quantizer.
      acoustic_codebook_size: codes a level.
      num_coarse_codebooks: how many of the levels the coarse stage models; the fine stage models
        the others.
      semantic_frame_rate: semantic tokens a second.
      semantic_vocab_size: k-means clusters.
      num_mulan_codebooks: levels of the quantizer of MuLan embeddings, tokens a condition.
      mulan_codebook_size: codes a level.
      num_melody_codebooks: levels of the quantizer of melody embeddings; 0 where stages are not
        conditioned on a melody, as by default. The paper's melody model has 24.
      melody_codebook_size: codes a level.
      num_melody_embeddings: that a melody is told by; the paper's are 3 s apart, of 10 s.
      semantic_window_seconds: what one pass of the semantic stage covers.
      coarse_window_seconds: the same of the coarse stage.
      fine_window_seconds: the same of the fine stage.
    """

    sample_rate: int = 24_000
    acoustic_frame_rate: int = 50
    num_acoustic_codebooks: int = 12
    acoustic_codebook_size: int = 1024
    num_coarse_codebooks: int = 4
    semantic_frame_rate: int = 25
    semantic_vocab_size: int = 1024
    num_mulan_codebooks: int = 12
    mulan_codebook_size: int = 1024
    num_melody_codebooks: int = 0
    melody_codebook_size: int = 512
    num_melody_embeddings: int = 3
    semantic_window_seconds: float = 30.0
    coarse_window_seconds: float = 10.0
    fine_window_seconds: float = 3.0

    def __post_init__(self):
        for field in dataclasses.fields(self):
            if getattr(self, field.name) <= 0 and field.name != "num_melody_codebooks":
                raise ValueError(
                    f"TokenSpec.{field.name} is {getattr(self, field.name)}: give a positive number"
                )
        if self.num_melody_codebooks < 0:
            raise ValueError(
                f"TokenSpec.num_melody_codebooks is {self.num_melody_codebooks}: give a positive "
                "number, or 0 for stages without a melody"
            )
        if self.num_coarse_codebooks >= self.num_acoustic_codebooks:
            raise ValueError(
                f"TokenSpec.num_coarse_codebooks is {self.num_coarse_codebooks} of "
                f"{self.num_acoustic_codebooks} codebooks: leave at least one to the fine stage"
            )
        if self.sample_rate % self.acoustic_frame_rate:
            raise ValueError(
                f"TokenSpec.sample_rate {self.sample_rate} is no multiple of acoustic_frame_rate "
                f"{self.acoustic_frame_rate}: choose rates that divide"
            )
        if self.acoustic_frame_rate % self.semantic_frame_rate:
            raise ValueError(
                f"TokenSpec.acoustic_frame_rate {self.acoustic_frame_rate} is no multiple of "
                f"semantic_frame_rate {self.semantic_frame_rate}: choose rates that divide"
            )

    @property
    def hop_length(self) -> int:
        """Samples a codec frame."""
        return self.sample_rate // self.acoustic_frame_rate

    @property
    def num_fine_codebooks(self) -> int:
        """Levels that the fine stage models."""
        return self.num_acoustic_codebooks - self.num_coarse_codebooks

    @property
    def melody_shape(self) -> tuple[int, int] | None:
        """Embeddings and levels of a melody's codes; None where stages take no melody."""
        if not self.num_melody_codebooks:
            return None
        return self.num_melody_embeddings, self.num_melody_codebooks

    def semantic_frames(self, seconds: float) -> int:
        """Semantic tokens in so many seconds."""
        return round(seconds * self.semantic_frame_rate)

    def acoustic_frames(self, seconds: float) -> int:
        """Codec frames in so many seconds."""
        return round(seconds * self.acoustic_frame_rate)
