"""Everything that is measured of a bundle on the corpus "gm", from its clips to tables.

Shapes: B batch, N clips, T samples or frames, D embedding.
"""

import dataclasses
import functools
import hashlib
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import Any

import numpy as np

from musiclm import audio
from musiclm.bundle import Bundle, Component, flatten
from musiclm.evaluation import (
    adherence,
    codec_quality,
    descriptors,
    embeddings,
    figures,
    likelihood,
    memorization,
    semantic_tokens,
    sources,
    tagger,
)
from musiclm.evaluation.report import Table
from musiclm.models import audioset_ast, vggish
from musiclm.tokens import tokenizers
from musiclm.tokens.layout import STAGES

# Words of a class, to be compared with clips.
_TAG_WORDS = {
    "instrument": "{} music",
    "drums": "music with {}",
    "tempo": "{} music",
    "key": "music in {}",
}
_SHUFFLES = 4  # versions of each clip that the semantic stage shall find less likely
_MEMORIZED = 64  # training clips that it is asked to go on with
_PROMPT_SECONDS = (0, 1, 2, 5)
_TIMBRE = "cepstra of 0.96 s windows, without trained weights"
_VGGISH = "vggish"
_AUDIOSET = "audioset"
_VISQOL_CLIPS = 8  # it takes seconds a clip
# Of the code that describes clips: what another version computed is not taken.
_CODE = sources.digest(
    "audio.py",
    *(f"evaluation/{name}.py" for name in ("descriptors", "embeddings", "notes")),
    *("models", "nn", "tokens"),
)

Progress = Callable[[str, int, int], None]
# go_on(condition [N, Q], first tokens [N, T'], T): semantic tokens [N, T] that begin so, greedily.
GoOn = Callable[[np.ndarray, np.ndarray, int], np.ndarray]


@dataclasses.dataclass(frozen=True, kw_only=True, eq=False)
class Clips:
    """Real clips and their lines in the manifest.

    Attributes:
      waveform_NT: f32, all of one length.
      entries: of the manifest, see `data_pipelines.corpora.gm`.
    """

    waveform_NT: np.ndarray
    entries: Sequence[Mapping[str, Any]]

    @functools.cached_property
    def truths(self) -> list[dict[str, str]]:
        """What each clip is; see `adherence.answers`."""
        return [adherence.answers(entry) for entry in self.entries]

    @functools.cached_property
    def prompts(self) -> list[str]:
        """Of each clip the first caption that names every attribute."""
        return [long_caption(entry) for entry in self.entries]

    @functools.cached_property
    def questions(self) -> list[str]:
        """Those of `adherence.QUESTIONS` that have two classes or more, and two clips of each."""
        counts = {q: Counter(truth[q] for truth in self.truths) for q in adherence.QUESTIONS}
        return [q for q, of_class in counts.items() if len(of_class) > 1 < min(of_class.values())]

    def first(self, count: int) -> "Clips":
        """The first so many."""
        return Clips(waveform_NT=self.waveform_NT[:count], entries=self.entries[:count])


def long_caption(entry: Mapping[str, Any]) -> str:
    """The first caption that names every attribute, or else the entry's own."""
    return next((c["text"] for c in entry["captions"] if c["kind"] == "long"), entry["caption"])


@dataclasses.dataclass(frozen=True, kw_only=True, eq=False)
class Suite:
    """A bundle and what it is measured with.

    Attributes:
      bundle: the one to measure.
      judges: further MuLans, which judge as well, by the names that they have in the report.
      train: clips that classifiers are fitted on, and that sets of clips are compared with.
      held_out: clips that nothing was fitted on.
      cache: of what was computed of clips.
      vggish: parameters of VGGish, where there are any; see `models.vggish.load`.
      audioset: a classifier of AudioSet, where there is one.
      progress: called with what is at work, the clips done and the clips in all.
    """

    bundle: Bundle
    judges: Mapping[str, Component] = dataclasses.field(default_factory=dict)
    train: Clips
    held_out: Clips
    cache: embeddings.Cache
    vggish: Mapping[str, Any] | None = None
    audioset: audioset_ast.AudioSetTagger | None = None
    progress: Progress | None = None

    def tables(self, made: Mapping[str, np.ndarray], go_on: GoOn) -> list[Table]:
        """Measures everything.

        Args:
          made: waveforms [N, T] by source; the i-th was made of the i-th held-out prompt.
          go_on: of the semantic stage, see `memorization_table`.
        """
        count = len(next(iter(made.values())))
        real = self.held_out.first(count)
        codes_NFQ = codec_quality.encode(self.codec, real.waveform_NT)
        through_NT = self._decode(codes_NFQ, real.waveform_NT.shape[1])
        seen = {
            **{source: self.look(clips_NT, count, source) for source, clips_NT in made.items()},
            "real": self.real[:count],
            "real through the codec": self.look(through_NT, count, "real through the codec"),
        }
        return [
            *figures.adherence_tables(self.judge, seen, real.truths, self.fitted_on),
            self.distance_table(seen),
            self.ranking_table({source: seen[source] for source in made}, real.prompts),
            *self.divergence_tables(seen),
            self.cosine_table(seen, real.prompts),
            *self.mulan_tables(),
            self.codec_table(real.waveform_NT, codes_NFQ, through_NT),
            self.semantic_table(),
            self.likelihood_table(real, codes_NFQ),
            self.memorization_table(go_on),
        ]

    @property
    def name(self) -> str:
        """Of the bundle, with its digest."""
        return f"{self.bundle.name} ({self.bundle.digest[:12]})"

    @property
    def rate(self) -> int:
        """Of all waveforms, in Hz."""
        return self.bundle.token_spec.sample_rate

    @functools.cached_property
    def codec(self) -> tokenizers.AcousticTokenizer:
        """The bundle's SoundStream."""
        return tokenizers.AcousticTokenizer.load(self.bundle.components["soundstream"])

    @functools.cached_property
    def semantic(self) -> tokenizers.SemanticTokenizer:
        """The bundle's w2v-BERT with its clusters."""
        return tokenizers.SemanticTokenizer.load(self.bundle.components["w2v_bert"])

    @functools.cached_property
    def mulans(self) -> dict[str, tokenizers.MuLanTokenizer]:
        """The bundle's MuLan and the judges, by name."""
        own = {f"MuLan of {self.name}": self.bundle.components["mulan"]}
        return {
            name: tokenizers.MuLanTokenizer.load(component)
            for name, component in {**own, **self.judges}.items()
        }

    def look(self, clips: Iterable[np.ndarray], total: int, what: str) -> list[embeddings.Arrays]:
        """Descriptions and vectors of clips [T], by name; none is looked at twice."""

        def described(waveform_T: np.ndarray) -> embeddings.Arrays:
            timbre = embeddings.timbre(waveform_T, self.rate)
            return {**descriptors.describe(waveform_T, self.rate), "timbre": timbre}

        def embedded(name: str, waveform_T: np.ndarray) -> embeddings.Arrays:
            mulan = self.mulans[name]
            heard_T = audio.resample(waveform_T, self.rate, mulan.sample_rate)
            return {name: mulan.embed_audio(heard_T[None])}

        def by_vggish(waveform_T: np.ndarray) -> embeddings.Arrays:
            heard_T = audio.resample(waveform_T, self.rate, vggish.SAMPLE_RATE)
            return {_VGGISH: vggish.embed(self.vggish, heard_T)}

        def by_audioset(waveform_T: np.ndarray) -> embeddings.Arrays:
            heard_T = audio.resample(waveform_T, self.rate, audioset_ast.SAMPLE_RATE)
            return {_AUDIOSET: self.audioset.distribution(heard_T)}

        computations = {"description": described}
        computations |= {name: functools.partial(embedded, name) for name in self.mulans}
        if self.vggish is not None:
            computations[f"VGGish {self._vggish_digest}"] = by_vggish
        if self.audioset is not None:
            computations[f"AudioSet {self.audioset.digest}"] = by_audioset
        return self.cache.each(
            {f"{_CODE} {self.rate} {name}": of_one for name, of_one in computations.items()},
            clips,
            self._counter(what, total),
        )

    def _counter(self, what: str, total: int) -> Callable[[int], None]:
        """To be called with the clips of `total` that are done since the last call."""
        done = 0

        def count(more: int) -> None:
            nonlocal done
            done += more
            if self.progress:
                self.progress(what, done, total)

        return count

    @functools.cached_property
    def _vggish_digest(self) -> str:
        digest = hashlib.sha256()
        for _, array in sorted(flatten(self.vggish).items()):
            digest.update(np.ascontiguousarray(array).tobytes())
        return digest.hexdigest()[:12]

    @functools.cached_property
    def real(self) -> list[embeddings.Arrays]:
        """Of the held-out clips."""
        return self.look(self.held_out.waveform_NT, len(self.held_out.entries), "held-out clips")

    @functools.cached_property
    def fitted(self) -> list[embeddings.Arrays]:
        """Of the training clips, each followed by its degraded copy."""
        rng = np.random.default_rng(0)

        def through(waveform_NT: np.ndarray) -> np.ndarray:
            codes_NFQ = codec_quality.encode(self.codec, waveform_NT)
            return codec_quality.decode(self.codec, codes_NFQ, waveform_NT.shape[1])

        def pairs() -> Iterator[np.ndarray]:
            for waveform_T in self.train.waveform_NT:
                yield waveform_T
                yield adherence.degrade(waveform_T, self.rate, rng, through)

        return self.look(pairs(), 2 * len(self.train.entries), "clips to fit on")

    @property
    def fitted_on(self) -> str:
        """In words."""
        return f"classifiers fitted on {len(self.train.entries)} real clips and degraded copies"

    @functools.cached_property
    def judge(self) -> adherence.Judge:
        """Of adherence."""
        return adherence.fit(self.fitted, _twice(self.train.truths))

    @functools.cached_property
    def tagger(self) -> tagger.Tagger:
        """Of the KLD."""
        return tagger.fit(self.fitted, _twice(self.train.truths), tuple(self.judge.classifiers))

    def divergence_tables(self, seen: Mapping[str, Sequence[embeddings.Arrays]]) -> list[Table]:
        """KLD by the corpus's tagger, and by AudioSet's classifier where there is one."""
        tables = [
            figures.divergence_table(
                "KLD",
                {source: self.tagger.distributions(looked) for source, looked in seen.items()},
                self.fitted_on,
            )
        ]
        if self.audioset is not None:
            classes = f"the {self.audioset.config.num_classes} classes of AudioSet"
            heard = {
                source: {classes: np.stack([one[_AUDIOSET] for one in looked])}
                for source, looked in seen.items()
            }
            rests_on = f"Audio Spectrogram Transformer ({self.audioset.digest})"
            tables.append(figures.divergence_table("KLD by AudioSet's classes", heard, rests_on))
        return tables

    def distance_table(self, seen: Mapping[str, Sequence[embeddings.Arrays]]) -> Table:
        """Fréchet distances to the training clips."""
        own = next(iter(self.mulans))
        spaces = {"timbre": _TIMBRE, own: own}
        short = {"timbre": "timbre", own: "MuLan"}
        if self.vggish is not None:
            spaces[_VGGISH] = f"VGGish ({self._vggish_digest})"
            short[_VGGISH] = "VGGish"

        def vectors(looked: Sequence[embeddings.Arrays]) -> dict[str, np.ndarray]:
            return {short[space]: np.stack([one[space] for one in looked]) for space in spaces}

        return figures.distance_table(
            vectors(self.fitted[::2]),
            {source: vectors(looked) for source, looked in seen.items()},
            {short[space]: told for space, told in spaces.items()},
        )

    def ranking_table(
        self, seen: Mapping[str, Sequence[embeddings.Arrays]], prompts: Sequence[str]
    ) -> Table:
        """Clips by their own distances to the training clips, of which a MuLan has one vector."""

        def vectors(looked: Sequence[embeddings.Arrays]) -> np.ndarray:
            return np.stack([one["timbre"] for one in looked])

        return figures.ranking_table(
            vectors(self.fitted[::2]),
            {source: vectors(looked) for source, looked in seen.items()},
            prompts,
            _TIMBRE,
        )

    def codec_table(
        self, waveform_NT: np.ndarray, codes_NFQ: np.ndarray, through_NT: np.ndarray
    ) -> Table:
        """Quality and cost of the codec; with ViSQOL's opinion of a few clips, if it is there.

        Args:
          waveform_NT: real clips.
          codes_NFQ: of these.
          through_NT: what is decoded of all levels.
        """
        quality, opinions, few = {}, {}, slice(_VISQOL_CLIPS)
        most = self.codec.num_codebooks
        for q in range(1, most + 1):
            made_NT = through_NT
            if q < most:
                made_NT = self._decode(codes_NFQ[..., :q], waveform_NT.shape[1])
            quality[q] = codec_quality.compare(waveform_NT, made_NT, self.rate)
            if codec_quality.has_visqol():
                count = self._counter(f"ViSQOL, {q} of {most} levels", len(waveform_NT[few]))
                opinions[q] = codec_quality.visqol(waveform_NT[few], made_NT[few], self.rate, count)
        rests_on = f"SoundStream of {self.name}"
        return figures.codec_table(self.codec, codes_NFQ, quality, rests_on, opinions)

    def _decode(self, codes_NFQ: np.ndarray, num_samples: int) -> np.ndarray:
        num_clips, _, num_levels = codes_NFQ.shape
        what = f"decoding {num_levels} of {self.codec.num_codebooks} levels"
        count = self._counter(what, num_clips)
        return codec_quality.decode(self.codec, codes_NFQ, num_samples, count)

    def cosine_table(
        self, seen: Mapping[str, Sequence[embeddings.Arrays]], prompts: Sequence[str]
    ) -> Table:
        """Texts beside clips, by every MuLan."""
        text = {name: mulan.embed_text(prompts) for name, mulan in self.mulans.items()}
        return figures.cosine_table(
            text,
            {
                source: {name: _audio(looked, name) for name in text}
                for source, looked in seen.items()
            },
        )

    def mulan_tables(self) -> list[Table]:
        """Of the bundle's MuLan on real clips; as a tagger if there are classes to tell apart."""
        name, mulan = next(iter(self.mulans.items()))
        audio_ND = _audio(self.real, name)
        rng = np.random.default_rng(0)
        drawn = [
            entry["captions"][rng.integers(len(entry["captions"]))]["text"]
            for entry in self.held_out.entries
        ]
        texts = {
            name: {"long": m.embed_text(self.held_out.prompts), "any": m.embed_text(drawn)}
            for name, m in self.mulans.items()
        }
        classes = {
            question: names
            for question in _TAG_WORDS
            if len(names := sorted({truth[question] for truth in self.held_out.truths})) > 1
        }
        words = {
            question: (names, mulan.embed_text([_TAG_WORDS[question].format(n) for n in names]))
            for question, names in classes.items()
        }
        train = (_audio(self.fitted[::2], name), self.train.truths)
        tables = [
            figures.retrieval_table(
                texts,
                {name: _audio(self.real, name) for name in self.mulans},
            ),
            figures.agreement_table(
                mulan.quantize(texts[name]["long"], "text"), mulan.quantize(audio_ND, "audio"), name
            ),
        ]
        if words:
            test = (audio_ND, self.held_out.truths)
            tables.append(figures.probe_table(words, train, test, name))
        return tables

    def semantic_table(self) -> Table:
        """Of semantic tokens on real clips."""
        return figures.semantic_table(
            self.real_tokens_NT,
            self.semantic.clusters["centroids_KD"],
            self.held_out.truths,
            self.held_out.questions,
            f"w2v-BERT of {self.name}",
            counter=lambda question, total: self._counter(f"ABX, {question}", total),
        )

    def likelihood_table(self, real: Clips, codes_NFQ: np.ndarray) -> Table:
        """Of the stages on real clips, given their prompts; of those whose window a clip fills.

        Args:
          real: the clips.
          codes_NFQ: of the codec.
        """
        mulan = next(iter(self.mulans.values()))
        codes = {
            "mulan": mulan.encode_text(real.prompts),
            "semantic": self.real_tokens_NT[: len(real.entries)],
            "acoustic": codes_NFQ,
        }
        stages = {
            name: part
            for name, part in self.bundle.components.items()
            if name in STAGES and likelihood.is_filled(part.config.layout, codes)
        }

        def nats(stage: str, **others: np.ndarray) -> np.ndarray:
            part = stages[stage]
            return likelihood.nats(part.config, part.variables["params"], {**codes, **others})

        found = {stage: nats(stage) for stage in stages}
        shuffled = None
        if "semantic" in stages:
            second = self.semantic.frame_rate
            window = stages["semantic"].config.layout.target.num_frames
            whole_NT = codes["semantic"][:, : window // second * second]
            rest_NT = codes["semantic"][:, whole_NT.shape[1] : window]
            rng = np.random.default_rng(0)
            shuffled_NK = [
                nats("semantic", semantic=np.concatenate([shuffled_NT, rest_NT], axis=1))
                for shuffled_NT in (
                    semantic_tokens.shuffle_phrases(whole_NT, second, rng) for _ in range(_SHUFFLES)
                )
            ]
            shuffled = semantic_tokens.spot_the_real(
                -found["semantic"], -np.stack(shuffled_NK, axis=1)
            )
        return figures.likelihood_table(
            found,
            {name: part.config.layout.target_codebook_size for name, part in stages.items()},
            shuffled,
            self.name,
        )

    def memorization_table(self, go_on: GoOn) -> Table:
        """What the semantic stage gives back of training clips.

        Args:
          go_on: see `GoOn`.
        """
        centroids_KD = self.semantic.clusters["centroids_KD"]
        every_NT = self.tokens(self.train.waveform_NT)
        pairs_P2 = memorization.permuted_pairs(len(every_NT), memorization.PERMUTED_PAIRS)
        window = self.bundle.components["semantic"].config.layout.target.num_frames
        num_tokens = min(memorization.TOKENS, window // 2)
        compared = slice(num_tokens)
        costs_P = memorization.transport_costs(
            every_NT[pairs_P2[:, 0], compared], every_NT[pairs_P2[:, 1], compared], centroids_KD
        )
        cost_below = memorization.threshold(costs_P)
        # The corpus's validation clips are none that training saw.
        trained_on = [i for i, entry in enumerate(self.train.entries) if entry["split"] == "train"]
        chosen = trained_on[:_MEMORIZED]
        examples_NT = every_NT[chosen]
        name, mulan = next(iter(self.mulans.items()))
        condition_NQ = mulan.quantize(_audio(self.fitted[::2], name)[chosen], "audio")
        given = [second * self.semantic.frame_rate for second in _PROMPT_SECONDS]
        found = memorization.measure(
            lambda count: go_on(condition_NQ, examples_NT[:, :count], count + num_tokens)[
                :, count:
            ],
            examples_NT,
            centroids_KD,
            cost_below=cost_below,
            prompt_tokens=[count for count in given if count + num_tokens <= window],
            num_tokens=num_tokens,
        )
        seconds = num_tokens / self.semantic.frame_rate
        return figures.memorization_table(found, seconds, cost_below, self.name)

    @functools.cached_property
    def real_tokens_NT(self) -> np.ndarray:
        """Semantic tokens of the held-out clips."""
        return self.tokens(self.held_out.waveform_NT)

    def tokens(self, waveform_NT: np.ndarray) -> np.ndarray:
        """Semantic tokens [N, T]."""
        rate = self.semantic.sample_rate
        heard = (audio.resample(clip_T, self.rate, rate) for clip_T in waveform_NT)
        return np.concatenate([self.semantic.encode(clip_T[None]) for clip_T in heard])


def _twice(items: Sequence) -> list:
    return [item for item in items for _ in range(2)]


def _audio(looked: Sequence[embeddings.Arrays], name: str) -> np.ndarray:
    """The vectors [N, D] of clips in a MuLan."""
    return np.concatenate([one[name] for one in looked])
