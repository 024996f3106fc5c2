"""Text to music in three lines, for notebooks and programs.

  from musiclm import MusicLM
  model = MusicLM.from_pretrained("gm-mini")
  model.generate(["a slow sad piano melody in A minor"], seconds=10, seed=0)

Importing this module does not import JAX; loading a model does.
"""

from __future__ import annotations

import dataclasses
import numbers
import os
from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING

from musiclm.errors import UserError

if TYPE_CHECKING:
    import numpy as np

    from musiclm.audio import Waveform
    from musiclm.bundle import Bundle
    from musiclm.sampler.generate import ChainSampling

DEFAULT_MODEL = "gm-mini"
STAGES = ("semantic", "coarse", "fine")
MAX_SECONDS = 300.0
MAX_PROMPT_CHARACTERS = 1_000
# Seeds are 32-bit, and the clips of one call count up from the first.
MAX_SEED = 2**32 - 1


@dataclasses.dataclass(frozen=True)
class Request:
    """What somebody wants to hear, checked before anything heavy starts.

    Attributes:
      prompts: one clip each.
      seconds: length of every clip.
      seed: of the first clip; the i-th takes seed + i.
    """

    prompts: tuple[str, ...]
    seconds: float
    seed: int

    def __post_init__(self):
        if not self.prompts:
            raise UserError("no prompt: give at least one text, such as 'a calm flute melody'")
        for prompt in self.prompts:
            _check_prompt(prompt)
        if not _is(self.seconds, numbers.Real) or not 0 < self.seconds <= MAX_SECONDS:
            raise UserError(
                f"seconds is {self.seconds}: give a number above 0 and up to {MAX_SECONDS:g}"
            )
        if not _is(self.seed, numbers.Integral) or not 0 <= self.seed <= MAX_SEED + 1 - len(
            self.prompts
        ):
            raise UserError(
                f"seed is {self.seed}: give a whole number from 0 to {MAX_SEED}, less one for "
                "each further prompt"
            )

    @property
    def seeds(self) -> tuple[int, ...]:
        """One seed a clip."""
        return tuple(int(self.seed) + i for i in range(len(self.prompts)))


def _is(value: object, kind: type) -> bool:
    # To Python, True is a number.
    return isinstance(value, kind) and not isinstance(value, bool)


def _check_prompt(prompt: object) -> None:
    if not isinstance(prompt, str):
        raise UserError(f"a prompt is {prompt!r}: give text")
    if not prompt.strip():
        raise UserError("a prompt is empty: describe the music, such as 'a calm flute melody'")
    if len(prompt) > MAX_PROMPT_CHARACTERS:
        raise UserError(
            f"a prompt has {len(prompt)} characters ({prompt[:40]!r}…): shorten it to "
            f"{MAX_PROMPT_CHARACTERS}"
        )
    try:
        prompt.encode()
    except UnicodeEncodeError:
        raise UserError(f"the prompt {prompt!r} is not valid UTF-8: type it anew") from None


class Clips(list):
    """The waveforms of several prompts: a list that a notebook shows as players."""

    def _repr_html_(self) -> str:
        return "\n".join(f"<div>{clip._repr_html_()}</div>" for clip in self)


class MusicLM:
    """A loaded model.

    Attributes:
      name: of its bundle.
      sample_rate: of what it generates, in Hz.
    """

    def __init__(self, bundle: Bundle):
        """Builds the chain of a bundle; see `from_pretrained`."""
        from musiclm.sampler import generate, stages
        from musiclm.tokens import tokenizers

        parts = bundle.components
        self.name = bundle.name
        self.sample_rate = bundle.token_spec.sample_rate
        self._sampling = _chain_sampling(bundle.sampling, generate.ChainSampling())
        self._chain = generate.Chain(
            token_spec=bundle.token_spec,
            mulan=tokenizers.MuLanTokenizer.load(parts["mulan"]),
            acoustic=tokenizers.AcousticTokenizer.load(parts["soundstream"]),
            **{
                name: stages.Stage(parts[name].config, parts[name].variables["params"])
                for name in STAGES
            },
        )

    @classmethod
    def from_pretrained(cls, name_or_path: str | os.PathLike[str] = DEFAULT_MODEL) -> MusicLM:
        """Loads a bundled model by its name, or any bundle by its folder.

        Raises:
          UserError: there is no such bundle, or it is damaged or foreign.
        """
        from musiclm import bundle

        try:
            loaded = bundle.load(name_or_path)
        except OSError as error:
            raise UserError(
                f"cannot read the model {str(name_or_path)!r} ({error.strerror or error}): give a "
                "folder that can be read"
            ) from error
        try:
            return cls(loaded)
        except (KeyError, TypeError, AttributeError, ValueError) as error:
            # Every file is what it was when the bundle was sealed, yet does not make a chain.
            raise UserError(
                f"the model {str(name_or_path)!r} does not fit this version of musiclm "
                f"({error!r}): use the version that made it, or train it again"
            ) from error

    def generate(
        self,
        prompts: str | Sequence[str],
        *,
        seconds: float = 10.0,
        seed: int = 0,
        sampling: Mapping[str, Mapping[str, float | int]] | None = None,
        progress: Callable[[str, int, int], None] | None = None,
    ) -> Waveform | Clips:
        """Makes music of texts.

        Args:
          prompts: one text, or several.
          seconds: length of every clip, up to `MAX_SECONDS`.
          seed: of the first clip; the i-th takes seed + i. On one machine the same text, seed
            and length give the same samples.
          sampling: by stage ("semantic", "coarse", "fine") any of `guidance`, `temperature`,
            `top_k` and `top_p`; what is left out is the model's own choice, or else the paper's
            (MusicLM 4.1): temperatures 1.0, 0.95 and 0.4 over all codes.
          progress: called with the stage's name, the tokens done and the tokens in all.

        Returns:
          A `Waveform` for one text, a list of them for several.

        Raises:
          UserError: an argument is out of bounds; nothing has been generated then.
        """
        texts = (prompts,) if isinstance(prompts, str) else tuple(prompts)
        request = Request(texts, seconds, seed)
        from musiclm.audio import Waveform

        samples = self._chain.generate(
            request.prompts,
            seconds=float(request.seconds),
            seeds=request.seeds,
            sampling=_chain_sampling(sampling or {}, self._sampling),
            progress=progress,
        )
        clips = Clips(Waveform(_within_full_scale(clip), self.sample_rate) for clip in samples)
        return clips[0] if isinstance(prompts, str) else clips


def _within_full_scale(samples_T: np.ndarray) -> np.ndarray:
    """A clip that is too loud for [-1, 1], turned down as a whole: clipping would be heard."""
    return samples_T / max(1.0, abs(samples_T).max())


def _chain_sampling(
    sampling: Mapping[str, Mapping[str, float | int]], default: ChainSampling
) -> ChainSampling:
    """The default with some of its numbers replaced."""
    try:
        changed = {
            stage: dataclasses.replace(getattr(default, stage), **options)
            for stage, options in sampling.items()
        }
        return dataclasses.replace(default, **changed)
    except (AttributeError, TypeError, ValueError) as error:
        raise UserError(
            f"sampling: {error}: give guidance, temperature, top_k or top_p for semantic, coarse "
            "or fine"
        ) from error
