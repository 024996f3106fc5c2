"""How clips turn out that are sampled in some way: measured as by `musiclm evaluate`.

N clips, T samples, D embedding.
"""

import dataclasses
import functools
import pathlib
from collections.abc import Mapping, Sequence

import numpy as np

from musiclm import api
from musiclm import bundle as bundles
from musiclm.bin import clips
from musiclm.evaluation import adherence, embeddings, frechet, suite, tagger


@dataclasses.dataclass(frozen=True, kw_only=True, eq=False)
class SampledClips:
    """Clips that a bundle makes of captions of the corpus "gm".

    The captions are of validation clips: what is chosen by them may be measured on held-out ones.

    Attributes:
      corpus: folder of the corpus, on the side that is trained on.
      model: name of a bundled model or folder of a bundle.
      num_clips: to make, from as many captions.
      num_fit_clips: real training clips to fit classifiers on and to compare with.
      sampling: by stage, see `api.MusicLM.generate`; None is the model's own.
      decoding: of acoustic tokens, one of `api.DECODINGS`.
    """

    corpus: str
    model: str = api.DEFAULT_MODEL
    num_clips: int = 64
    num_fit_clips: int = 1000
    sampling: Mapping[str, Mapping[str, float | int]] | None = None
    decoding: str = api.DECODINGS[0]

    def __post_init__(self):
        if self.num_clips < 3:
            raise ValueError(f"SampledClips.num_clips is {self.num_clips}: give 3 or more")

    @property
    def figures(self) -> Sequence[str]:
        """See `measure`."""
        return (*adherence.QUESTIONS, "adherence", "mulan_cosine", "kld", "fad_timbre", "fad_mulan")

    def data(self) -> str:
        """Of the bundle, which must be able to sample so, and the corpus's manifest."""
        bundle = bundles.load(self.model)
        api.MusicLM(bundle).plans("a check", sampling=self.sampling, decoding=self.decoding)
        return f"{bundle.digest} {clips.digest([*self._validation, *self._train])}"

    @functools.cached_property
    def _validation(self) -> list[clips.Entry]:
        return clips.read_manifest(pathlib.Path(self.corpus), self.num_clips, split="validation")

    @functools.cached_property
    def _train(self) -> list[clips.Entry]:
        entries = clips.read_manifest(pathlib.Path(self.corpus), self.num_fit_clips, split="train")
        clips.check_classes(entries)
        return entries

    def measure(
        self, folder: pathlib.Path, cache: pathlib.Path, seed: int
    ) -> dict[str, float | np.ndarray]:
        """Makes the clips and measures them.

        Returns:
          By question whether each clip is heard as asked, f64 [N]; "adherence", the share of
          questions; "mulan_cosine" with the prompt; "kld", KL(real ‖ clip); and the Fréchet
          distances to the training clips.
        """
        return self.measure_of(bundles.load(self.model), folder, cache, seed)

    def measure_of(
        self, bundle: bundles.Bundle, folder: pathlib.Path, cache: pathlib.Path, seed: int
    ) -> dict[str, float | np.ndarray]:
        """`measure`, of the clips of another bundle."""
        rate = bundle.token_spec.sample_rate
        train, real = (
            clips.read_real(entries, rate) for entries in (self._train, self._validation)
        )
        files = clips.generate(
            bundle,
            real.prompts,
            folder / "clips",
            "clips",
            sampling=self.sampling,
            decoding=self.decoding,
            seed=seed * self.num_clips,
        )
        made_NT = clips.read_generated(files, rate)
        with clips.Bars() as bars:
            measured = suite.Suite(
                bundle=bundle,
                train=train,
                held_out=real,
                cache=embeddings.Cache(cache / "embeddings"),
                progress=bars.move,
            )
            looked = measured.look(made_NT, len(made_NT), "clips")
            right = measured.judge.right(looked, real.truths)
            ((name, mulan),) = measured.mulans.items()
            text_ND = mulan.embed_text(real.prompts)
            audio_ND = np.concatenate([one[name] for one in looked])
            p, q = (measured.tagger.distributions(of) for of in (measured.real, looked))

            def distance(space: str) -> float:
                reference, made = (
                    np.concatenate([one[space] for one in of])
                    for of in (measured.fitted[::2], looked)
                )
                return frechet.frechet_distance(reference, made)

            return {
                **right,
                "adherence": np.mean(list(right.values()), axis=0),
                "mulan_cosine": (text_ND * audio_ND).sum(axis=1),
                "kld": tagger.divergences(p, q),
                "fad_timbre": distance("timbre"),
                "fad_mulan": distance(name),
            }
