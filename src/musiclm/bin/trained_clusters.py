"""What semantic tokens tell of clips, if the w2v-BERT below them is trained in some way."""

import dataclasses
import functools
import pathlib
from collections.abc import Callable, Sequence

from musiclm.bin import fitted_clusters


@dataclasses.dataclass(frozen=True, kw_only=True, eq=False)
class TrainedClusters:
    """Semantic tokens of a w2v-BERT that is trained anew, and its clusters after it.

    Attributes:
      clusters: how they are fitted and measured; of whatever model, it is replaced.
      train: `loop.train`, all of it but where to write and the seed.
      trained_on: digest of the data that `train` reads.
    """

    clusters: fitted_clusters.FittedClusters
    train: Callable[..., object]
    trained_on: str

    @property
    def figures(self) -> Sequence[str]:
        """Those of the clusters."""
        return self.clusters.figures

    def data(self) -> str:
        """Of what the model is trained on, and what the clusters rest on."""
        return f"{self.trained_on} {self.clusters.data()}"

    def measure(self, folder: pathlib.Path, cache: pathlib.Path, seed: int) -> dict[str, float]:
        """Trains the model, unless it is there already, and measures as `FittedClusters` does."""
        model = folder / "trained" / fitted_clusters.COMPONENT
        if not model.with_suffix(".safetensors").is_file():
            self.train(workdir=folder / "training", component=model, seed=seed)
        fit = functools.partial(self.clusters.fit, model=model)
        return dataclasses.replace(self.clusters, fit=fit).measure(folder, cache, seed)
