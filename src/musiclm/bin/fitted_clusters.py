"""What semantic tokens tell of clips, if their clusters are fitted in some way.

N clips, T samples or frames.
"""

import dataclasses
import pathlib
from collections.abc import Callable, Sequence

import numpy as np

from musiclm import bundle as bundles
from musiclm.bin import clips
from musiclm.evaluation import figures
from musiclm.tokens import tokenizers

COMPONENT = "w2v_bert"


@dataclasses.dataclass(frozen=True, kw_only=True, eq=False)
class FittedClusters:
    """Semantic tokens of a trained w2v-BERT whose clusters are fitted anew.

    Attributes:
      corpus: folder of a corpus "gm", with validation clips to measure on.
      fit: `quantizers.fit_semantic_clusters`, all of it but where to write and the seed.
      fitted_on: digest of the data that `fit` reads.
      num_clips: to measure on.
    """

    corpus: str
    fit: Callable[..., None]
    fitted_on: str
    num_clips: int = 300

    @property
    def figures(self) -> Sequence[str]:
        """See `measure`."""
        return ("abx", "pnmi", "pnmi_above_chance", "purity")

    def data(self) -> str:
        """Of what the clusters are fitted on, and the clips that are measured on."""
        return f"{self.fitted_on} {clips.digest(self._entries())}"

    def measure(self, folder: pathlib.Path, cache: pathlib.Path, seed: int) -> dict[str, float]:
        """Fits the clusters and measures their tokens.

        Returns:
          The means over questions of ABX's error, PNMI, the same less what chance gives, and the
          purity.
        """
        del cache
        folder.mkdir(parents=True, exist_ok=True)
        self.fit(component=folder / COMPONENT, seed=seed)
        semantic = tokenizers.SemanticTokenizer.load(bundles.load_component(folder, COMPONENT))
        real = clips.read_real(self._entries(), semantic.sample_rate)
        tokens_NT = np.concatenate([semantic.encode(x_T[None]) for x_T in real.waveform_NT])
        table = figures.semantic_table(
            tokens_NT, semantic.clusters["centroids_KD"], real.truths, real.questions, ""
        )
        _, pnmi, by_chance, purity, abx = zip(*table.rows, strict=True)
        return {
            "abx": float(np.mean([error.value for error in abx])),
            "pnmi": float(np.mean(pnmi)),
            "pnmi_above_chance": float(np.mean(np.subtract(pnmi, by_chance))),
            "purity": float(np.mean([share.value for share in purity])),
        }

    def _entries(self) -> list[clips.Entry]:
        return clips.read_manifest(pathlib.Path(self.corpus), self.num_clips, split="validation")
