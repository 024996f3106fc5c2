"""Text to music in three lines, for notebooks and programs.

  from musiclm import MusicLM
  model = MusicLM.from_pretrained("gm-mini")
  model.generate(["a slow sad piano melody in A minor"], seconds=10, seed=0)

Importing this module does not import JAX; loading a model does.
"""

from __future__ import annotations

import dataclasses
import functools
import itertools
import numbers
import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import TYPE_CHECKING

from musiclm.errors import UserError

if TYPE_CHECKING:
    import numpy as np

    from musiclm.audio import Waveform
    from musiclm.bundle import Bundle
    from musiclm.sampler import stream as sampler
    from musiclm.sampler.generate import ChainSampling, Continuation, Plan
    from musiclm.tokens.tokenizers import MelodyTokenizer, SemanticTokenizer

DEFAULT_MODEL = "gm-mini"
STAGES = ("semantic", "coarse", "fine", "parallel")
# How acoustic tokens are decoded: by the coarse and the fine stage, or in parallel by SoundStorm.
DECODINGS = ("autoregressive", "parallel")
# What token-by-token stages can keep as int8, to read less for a little quality.
INT8 = ("weights", "cache")
# What may be said of each stage's drawing.
SAMPLING = ("guidance", "temperature", "top_k", "top_p")
# Shorter is no music, and at last no sample.
MIN_SECONDS = 0.1
MAX_SECONDS = 300.0
# Of sound that is to be continued: what a coarse window is prompted with at the paper's size.
MIN_CONTINUED_SECONDS = 3
MAX_PROMPT_CHARACTERS = 1_000
MAX_BEST_OF = 64
# Seeds are 32-bit, and the clips of one call count up from the first.
MAX_SEED = 2**32 - 1


@dataclasses.dataclass(frozen=True)
class Request:
    """What somebody wants to hear, checked before anything heavy starts.

    Attributes:
      prompts: one clip each.
      seconds: length of every clip, from `MIN_SECONDS` to `MAX_SECONDS`.
      seed: of the first clip; the i-th takes seed + i.
      story: (second, text) in the order of time, that take over from the prompts.
      best_of: clips that are made of each prompt, of which one is kept.
      decoding: of acoustic tokens, one of `DECODINGS`.
    """

    prompts: tuple[str, ...]
    seconds: float
    seed: int
    story: tuple[tuple[float, str], ...] = ()
    best_of: int = 1
    decoding: str = DECODINGS[0]

    def __post_init__(self):
        if not self.prompts:
            raise UserError("no prompt: give at least one text, such as 'a calm flute melody'")
        for prompt in self.prompts:
            _check_prompt(prompt)
        if not _is(self.seconds, numbers.Real) or not MIN_SECONDS <= self.seconds <= MAX_SECONDS:
            raise UserError(
                f"seconds is {self.seconds}: give a number from {MIN_SECONDS:g} up to "
                f"{MAX_SECONDS:g}"
            )
        if not _is(self.best_of, numbers.Integral) or not 1 <= self.best_of <= MAX_BEST_OF:
            raise UserError(
                f"best_of is {self.best_of}: give a whole number from 1 to {MAX_BEST_OF}"
            )
        if self.decoding not in DECODINGS:
            raise UserError(f"decoding is {self.decoding!r}: give {' or '.join(DECODINGS)}")
        last = MAX_SEED + 1 - len(self.prompts) * self.best_of
        if not _is(self.seed, numbers.Integral) or not 0 <= self.seed <= last:
            raise UserError(
                f"seed is {self.seed}: give a whole number from 0 to {MAX_SEED}, less one for "
                "each further clip"
            )
        if any(not isinstance(part, Sequence) or len(part) != 2 for part in self.story):
            raise UserError('the story is no list of pairs: write it like [(15, "louder")]')
        for start, text in self.story:
            _check_prompt(text)
            if not _is(start, numbers.Real) or not 0 < start < self.seconds:
                raise UserError(
                    f"the story starts {text[:40]!r} at {start}: give a number of seconds above 0 "
                    f"and below {self.seconds:g}"
                )
        if any(one >= two for (one, _), (two, _) in itertools.pairwise(self.story)):
            raise UserError(
                f"the story starts its texts at {[start for start, _ in self.story]} seconds: give "
                "them in ascending order"
            )

    @property
    def clips(self) -> tuple[tuple[str, int], ...]:
        """A prompt and a seed each: all prompts once, then all once more, `best_of` times."""
        prompts = self.prompts * self.best_of
        return tuple((prompt, int(self.seed) + i) for i, prompt in enumerate(prompts))


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
      digest: of its bundle, SHA-256.
      rows: that a stage always decodes at once on each device; None for as many as there are.
      int8: what is kept as int8, of `INT8`.
      sample_rate: of what it generates, in Hz.
      melody_shape: (embeddings, levels) of the melody's codes that it wants; None if it takes no
        melody.
    """

    def __init__(
        self,
        bundle: Bundle,
        *,
        rows: int | None = None,
        int8: Sequence[str] = (),
        melody: MelodyTokenizer | None = None,
    ):
        """Builds the chain of a bundle; see `from_pretrained`.

        Raises:
          UserError: its models don't make the tokens that its `TokenSpec` tells of.
        """
        from musiclm.sampler import decode, generate, parallel, stages
        from musiclm.tokens import agreement, tokenizers

        agreement.check(bundle)
        parts = bundle.components
        mesh = decode.make_mesh()

        def stage(part: str, kind: Callable = stages.Stage, **options: bool):
            return kind(parts[part].config, parts[part].variables["params"], mesh, **options)

        self.name = bundle.name
        self.digest = bundle.digest
        self.rows = rows
        self.int8 = tuple(part for part in INT8 if part in int8)
        self.sample_rate = bundle.token_spec.sample_rate
        self.melody_shape = bundle.token_spec.melody_shape
        self._melody = melody
        self._sampling = _chain_sampling(bundle.sampling, generate.ChainSampling())
        self._w2v_bert = parts["w2v_bert"]
        self._acoustic = tokenizers.AcousticTokenizer.load(parts["soundstream"])
        self._mulan = tokenizers.MuLanTokenizer.load(parts["mulan"])
        kept = {f"int8_{part}": True for part in self.int8}
        self._chain = generate.Chain(
            token_spec=bundle.token_spec,
            mulan=self._mulan,
            acoustic=self._acoustic,
            semantic=stage("semantic", **kept),
            coarse=stage("coarse", **kept),
            fine=stage("fine", **kept),
            parallel=stage("soundstorm", parallel.ParallelStage) if "soundstorm" in parts else None,
            **({} if rows is None else {"max_rows": rows, "fixed_rows": True}),
        )

    @classmethod
    def from_pretrained(
        cls,
        name_or_path: str | os.PathLike[str] = DEFAULT_MODEL,
        *,
        rows: int | None = None,
        int8: Sequence[str] = (),
        melody: MelodyTokenizer | None = None,
    ) -> MusicLM:
        """Loads a bundled model by its name, or any bundle by its folder.

        Args:
          name_or_path: of the bundle.
          rows: that a stage always decodes at once on each device, so that the samples of a clip
            depend on nothing but the clip. By default as many as there are, up to 16.
          int8: any of "weights" and "cache", that the stages keep as int8 to read less for every
            token: faster where that is what takes the time, and other music of the same seed.
            SoundStorm stays as it is.
          melody: makes codes of sound for a model that wants a melody; without one it takes codes.

        Raises:
          UserError: there is no such bundle, it is damaged or foreign, `rows` is no number above
            0, or `int8` names what can't be.
        """
        if rows is not None and (not _is(rows, numbers.Integral) or rows < 1):
            raise UserError(f"rows is {rows!r}: give a whole number from 1 on, or None")
        if not isinstance(int8, Sequence) or any(part not in INT8 for part in int8):
            raise UserError(f"int8 is {int8!r}: give a list of any of {', '.join(INT8)}")
        from musiclm import bundle

        try:
            loaded = bundle.load(name_or_path)
        except OSError as error:
            raise UserError(
                f"cannot read the model {str(name_or_path)!r} ({error.strerror or error}): give a "
                "folder that can be read"
            ) from error
        try:
            return cls(loaded, rows=rows, int8=int8, melody=melody)
        except UserError:
            raise
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
        story: Sequence[tuple[float, str]] = (),
        continuation: str | os.PathLike[str] | None = None,
        melody: np.ndarray | str | os.PathLike[str] | None = None,
        best_of: int = 1,
        decoding: str = DECODINGS[0],
        progress: Callable[[str, int, int], None] | None = None,
    ) -> Waveform | Clips:
        """Makes music of texts.

        Args:
          prompts: one text, or several.
          seconds: length of every clip, from `MIN_SECONDS` to `MAX_SECONDS`.
          seed: of the first clip; the i-th takes seed + i. On one machine the same text, seed
            and length give the same samples.
          sampling: by stage ("semantic", "coarse", "fine", "parallel") any of `guidance`,
            `temperature`, `top_k` and `top_p`; what is left out is the model's own choice, or else
            the paper's (MusicLM 4.1): temperatures 1.0, 0.95 and 0.4 over all codes, and 1.0 in
            parallel.
          story: (second, text) in the order of time: texts that take over from the prompt, at the
            nearest half of a semantic window (15 s at the paper's size, 5 s in gm-mini).
          continuation: a sound file of at least `MIN_CONTINUED_SECONDS`, whose last whole seconds
            every clip begins with; fewer than `seconds`, which count them too.
          melody: that every clip plays, whatever its texts, for a model that wants one: integer
            codes of `melody_shape`, a .npy file of them, or a sound file for the melody tokenizer.
          best_of: clips that are made of each prompt, of which the one is kept that is nearest to
            its text by MuLan's cosine. Of P prompts, the further clips of the i-th take seed + i +
            P, seed + i + 2 P and so on. `provenance` of a clip tells its own seed and all scores.
          decoding: of acoustic tokens: "autoregressive", by the coarse and the fine stage, or
            "parallel", by SoundStorm, which not every model has. Semantic tokens are the same.
          progress: called with the stage's name, the tokens done and the tokens in all.

        Returns:
          A `Waveform` for one text, a list of them for several.

        Raises:
          UserError: an argument is out of bounds; nothing has been generated then.
        """
        texts = (prompts,) if isinstance(prompts, str) else tuple(prompts)
        request = Request(texts, seconds, seed, tuple(story), best_of, decoding)
        plans = self._plans(request, sampling or {}, continuation, melody)
        made = list(self.render(plans, progress))
        clips = Clips(self.best(made[i :: len(texts)]) for i in range(len(texts)))
        return clips[0] if isinstance(prompts, str) else clips

    def best(self, clips: Sequence[Waveform]) -> Waveform:
        """Of clips that were made of one text, the nearest to it by MuLan's cosine.

        Of a story's, every text counts as long as it holds. Its `provenance` tells the seeds and
        scores of all, unless it is the only one.
        """
        import numpy as np

        from musiclm import audio
        from musiclm.sampler import generate

        if len(clips) == 1:
            return clips[0]
        rate, told = self._mulan.sample_rate, clips[0].provenance
        wanted = {name: told[name] for name in ("prompt", "seconds", "seed")}
        clip = generate.Clip(**wanted, story=tuple(told.get("story", ())))
        starts, texts = zip(*self._chain.texts(clip), strict=True)
        changes = [round(start * rate) for start in starts[1:]]
        text_SD = self._mulan.embed_text(texts)

        def nearness(clip: Waveform) -> float:
            sound_T = audio.resample(clip.samples, clip.sample_rate, rate)
            parts = np.split(sound_T, changes)
            cosines_S = [
                self._mulan.embed_audio(part_T[None])[0] @ text_D
                for part_T, text_D in zip(parts, text_SD, strict=True)
            ]
            mean = np.average(cosines_S, weights=[len(part_T) for part_T in parts])
            return round(float(mean), 4)

        scores = [nearness(clip) for clip in clips]
        best = clips[int(np.argmax(scores))]
        candidates = [
            {"seed": clip.provenance["seed"], "score": score}
            for clip, score in zip(clips, scores, strict=True)
        ]
        told = {**best.provenance, "score": max(scores), "candidates": candidates}
        return dataclasses.replace(best, provenance=told)

    def stream(
        self,
        prompt: str,
        *,
        seconds: float = MAX_SECONDS,
        seed: int = 0,
        sampling: Mapping[str, Mapping[str, float | int]] | None = None,
        story: Sequence[tuple[float, str]] = (),
        continuation: str | os.PathLike[str] | None = None,
        melody: np.ndarray | str | os.PathLike[str] | None = None,
        decoding: str = DECODINGS[0],
    ) -> Stream:
        """Music that is heard while it is made; for the arguments see `generate`.

        Returns:
          An iterator over f32 arrays [T] of a second or less. Its `prompt` may be set on the way.

        Raises:
          UserError: an argument is out of bounds.
        """
        from musiclm.sampler import stream

        (plan,) = self.plans(
            prompt,
            seconds=seconds,
            seed=seed,
            sampling=sampling,
            story=story,
            continuation=continuation,
            melody=melody,
            decoding=decoding,
        )
        return Stream(stream.Stream(self._chain, plan), self.sample_rate)

    def plans(
        self,
        prompt: str,
        *,
        seconds: float = 10.0,
        seed: int = 0,
        sampling: Mapping[str, Mapping[str, float | int]] | None = None,
        story: Sequence[tuple[float, str]] = (),
        continuation: str | os.PathLike[str] | None = None,
        melody: np.ndarray | str | os.PathLike[str] | None = None,
        best_of: int = 1,
        decoding: str = DECODINGS[0],
    ) -> list[Plan]:
        """Checks and prepares one clip for `render`; for the arguments see `generate`.

        Returns:
          Itself, or as many as `best` is to choose from.

        Raises:
          UserError: an argument is out of bounds.
        """
        request = Request((prompt,), seconds, seed, tuple(story), best_of, decoding)
        return self._plans(request, sampling or {}, continuation, melody)

    def most_rows(self, plans: Sequence[Plan]) -> int:
        """How many rows a stage decodes at once on each device, at most, to make such clips."""
        return self._chain.most_rows(plans)

    def compile(self, plans: Sequence[Plan], rows: int) -> None:
        """Compiles ahead what `render` needs of the stages, and takes the memory once.

        Args:
          plans: such clips.
          rows: that a stage decodes at once on each device.
        """
        self._chain.compile(plans, rows)

    def render(
        self, plans: Sequence[Plan], progress: Callable[[str, int, int], None] | None = None
    ) -> Iterator[Waveform]:
        """Makes planned clips, of any lengths and settings together; yields them in their order."""
        from musiclm.audio import Waveform

        for plan, samples_T in zip(plans, self._chain.generate(plans, progress), strict=True):
            clip = plan.clip
            told = {"prompt": clip.prompt, "seed": clip.seed, "seconds": clip.seconds}
            told |= {"story": clip.story} if clip.story else {}
            told |= {"decoding": clip.decoding} if clip.decoding != DECODINGS[0] else {}
            told |= {"int8": list(self.int8)} if self.int8 else {}
            told |= {"model": self.name, "model_digest": self.digest}
            yield Waveform(_within_full_scale(samples_T), self.sample_rate, told)

    @property
    def bytes_read(self) -> dict[str, int]:
        """What each stage that goes token by token had to read of a device's memory so far."""
        return {
            name: getattr(self._chain, name).bytes_read for name in ("semantic", "coarse", "fine")
        }

    def read_continuation(self, path: str | os.PathLike[str]) -> Continuation:
        """The tokens of a sound file's last whole seconds.

        Whole, so that files of all lengths share a few compiled shapes. Semantic tokens come from
        windows as long as the semantic stage's, as they did in training: with no more memory, the
        last ends where the sound does, and the first may be shorter.

        Raises:
          UserError: it is no sound, too short, silent, or as long as clips may be.
        """
        import numpy as np

        from musiclm import audio
        from musiclm.sampler.generate import Continuation

        given_rate = self._acoustic.sample_rate
        sound_T = audio.read_music(path, given_rate, MIN_CONTINUED_SECONDS, MAX_SECONDS)
        seconds = len(sound_T) // given_rate
        if seconds >= MAX_SECONDS:
            raise UserError(
                f"{path} lasts {MAX_SECONDS:g} s or more: to be continued, it must last less than "
                "that, so cut its beginning off"
            )

        def last(tokenizer, window: int) -> np.ndarray:
            rate = tokenizer.sample_rate
            heard_T = audio.resample(sound_T, given_rate, rate)[-seconds * rate :]
            ends = range(seconds, 0, -window)
            pieces = (heard_T[max(0, end - window) * rate : end * rate] for end in reversed(ends))
            return np.concatenate([tokenizer.encode(piece_T[None])[0] for piece_T in pieces])

        # A tokenizer with a window may give a frame more or less than the seconds have.
        window = max(1, int(self._chain.token_spec.semantic_window_seconds))
        semantic_T, acoustic_TQ = last(self._semantic, window), last(self._acoustic, seconds)
        ratio = self._acoustic.frame_rate // self._semantic.frame_rate
        frames = min(len(semantic_T), len(acoustic_TQ) // ratio)
        return Continuation(
            semantic_T=semantic_T[-frames:], acoustic_TQ=acoustic_TQ[-frames * ratio :]
        )

    def read_melody(self, melody: np.ndarray | str | os.PathLike[str]) -> np.ndarray:
        """The codes of a melody, for the argument see `generate`.

        Of sound, what the melody tokenizer takes at once from the beginning.

        Raises:
          UserError: a file can't be read, is too short or silent, or nothing makes codes of it.
        """
        import numpy as np

        from musiclm import audio

        if not isinstance(melody, str | os.PathLike):
            try:
                return np.asarray(melody)
            except ValueError as error:
                raise UserError(f"the melody is no array ({error}): give rows of codes") from error
        if os.fspath(melody).endswith(".npy"):
            try:
                with open(melody, "rb") as file:
                    return np.lib.format.read_array(file, allow_pickle=False)
            except Exception as error:  # NumPy raises many kinds over a header that is none
                raise UserError(f"cannot read {melody} ({error}): give an array's file") from error
        if self._melody is None:
            raise UserError(
                f"the model {self.name!r} has no melody tokenizer to hear {melody} with: leave the "
                "melody out, or give its codes where the model wants one"
            )
        rate, seconds = self._melody.sample_rate, self._melody.window_seconds
        return self._melody.encode(audio.read_music(melody, rate, seconds, seconds)[None])[0]

    @functools.cached_property
    def _semantic(self) -> SemanticTokenizer:
        from musiclm.tokens import tokenizers

        return tokenizers.SemanticTokenizer.load(self._w2v_bert)

    def _plans(
        self,
        request: Request,
        sampling: Mapping[str, Mapping[str, float | int]],
        continuation: str | os.PathLike[str] | None,
        melody: np.ndarray | str | os.PathLike[str] | None,
    ) -> list[Plan]:
        given = None if continuation is None else self.read_continuation(continuation)
        tune = None if melody is None else self.read_melody(melody)
        return [self._plan(request, *clip, sampling, given, tune) for clip in request.clips]

    def _plan(
        self,
        request: Request,
        prompt: str,
        seed: int,
        sampling: Mapping[str, Mapping[str, float | int]],
        continuation: Continuation | None,
        melody_EQ: np.ndarray | None,
    ) -> Plan:
        from musiclm.sampler.generate import Clip

        if request.decoding == "parallel" and self._chain.parallel is None:
            raise UserError(
                f"decoding is 'parallel', and the model {self.name!r} has no SoundStorm: take one "
                "that has, or decode autoregressively"
            )
        clip = Clip(
            prompt=prompt,
            seconds=float(request.seconds),
            seed=int(seed),
            sampling=_chain_sampling(sampling, self._sampling),
            decoding=request.decoding,
            story=request.story,
            continuation=continuation,
            melody_EQ=melody_EQ,
        )
        if continuation is not None:
            given = len(continuation.acoustic_TQ) / self._acoustic.frame_rate
            if given >= request.seconds:
                raise UserError(
                    f"seconds is {request.seconds:g}, and the sound that is continued has "
                    f"{given:g}: give more"
                )
        return self._chain.plan(clip)


class Stream:
    """Music as it is made: f32 arrays [T] in [-1, 1], to be played one after the other.

    Attributes:
      sample_rate: in Hz.
    """

    def __init__(self, samples: sampler.Stream, sample_rate: int):
        """See `MusicLM.stream`."""
        self.sample_rate = sample_rate
        self._samples, self._peak = samples, 1.0

    @property
    def prompt(self) -> str:
        """The text that the music follows; another one holds from the next step not made yet.

        The first semantic window is mostly made whole: a text set after the first piece holds from
        its end on (30 s at the paper's size, 10 s in gm-mini), later ones at every half window.
        """
        return self._samples.prompt

    @prompt.setter
    def prompt(self, text: str) -> None:
        _check_prompt(text)
        self._samples.prompt = text

    def __iter__(self) -> Iterator[np.ndarray]:
        return self

    def __next__(self) -> np.ndarray:
        import numpy as np

        samples_T = next(self._samples)
        # Turned down from where it gets too loud, and not up again.
        peak = max(self._peak, float(abs(samples_T).max()))
        gain_T = np.linspace(1 / self._peak, 1 / peak, len(samples_T), dtype=np.float32)
        self._peak = peak
        return np.clip(samples_T * gain_T, -1.0, 1.0)


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
    except (AttributeError, TypeError, ValueError, OverflowError) as error:
        raise UserError(
            f"sampling: {error}: give {', '.join(SAMPLING)} for any of {', '.join(STAGES)}"
        ) from error
