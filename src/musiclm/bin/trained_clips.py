"""How clips turn out if a stage of the bundle that makes them is trained in some way."""

import dataclasses
import pathlib
from collections.abc import Callable, Sequence

import numpy as np

from musiclm import bundle as bundles
from musiclm.bin import sampled_clips


@dataclasses.dataclass(frozen=True, kw_only=True, eq=False)
class TrainedClips:
    """Clips of a bundle, one stage of which is trained anew.

    No tokenizer: what clips are measured by, and what is known of them by the bundle's digest,
    stays the bundle's.

    Attributes:
      clips: which are made and measured, and of which bundle.
      stage: the component of the bundle that is replaced.
      train: `loop.train`, all of it but where to write and the seed.
      trained_on: digest of the data that `train` reads.
      tokenizers: folder of those that made its tokens.
    """

    clips: sampled_clips.SampledClips
    stage: str
    train: Callable[..., object]
    trained_on: str
    tokenizers: str

    def __post_init__(self):
        stages = [
            name
            for name in (*bundles.COMPONENTS, *bundles.OPTIONAL)
            if name not in bundles.TOKENIZERS
        ]
        if self.stage not in stages:
            raise ValueError(
                f"TrainedClips.stage is {self.stage!r}: give one of {', '.join(stages)}; clips are "
                "measured by the bundle's own tokenizers"
            )

    @property
    def figures(self) -> Sequence[str]:
        """Those of the clips."""
        return self.clips.figures

    def data(self) -> str:
        """Of what the stage is trained on, and what the clips rest on.

        Raises:
          BundleError: the bundle has other tokenizers, whose tokens the stage would not know.
        """
        used = bundles.find(self.clips.model)
        if bundles.tokenizer_digest(used) != bundles.tokenizer_digest(self.tokenizers):
            raise bundles.BundleError(
                f"SampledClips.model is {self.clips.model}, and {self.stage} is trained on tokens "
                f"of {self.tokenizers}: give a bundle with these tokenizers"
            )
        return f"{self.trained_on} {self.clips.data()}"

    def measure(
        self, folder: pathlib.Path, cache: pathlib.Path, seed: int
    ) -> dict[str, float | np.ndarray]:
        """Trains the stage, unless it is there already, and measures as `SampledClips` does."""
        folder.mkdir(parents=True, exist_ok=True)
        if not (folder / f"{self.stage}.safetensors").is_file():
            self.train(workdir=folder / "training", component=folder / self.stage, seed=seed)
        bundle = bundles.load(self.clips.model)
        stage = {self.stage: bundles.load_component(folder, self.stage)}
        trained = dataclasses.replace(bundle, components={**bundle.components, **stage})
        return self.clips.measure_of(trained, folder, cache, seed)
