"""The figures of a bundle as tables, each part from arrays of what was measured.

Sources are where clips come from: "generated", "real" and so on; the i-th clip of every source
belongs to the i-th prompt.

Shapes: N clips, M clips of the reference, W vectors of a clip, D embedding, T samples or frames,
Q levels.
"""

import pathlib
from collections import Counter
from collections.abc import Callable, Mapping, Sequence

import numpy as np

from musiclm.bundle import Bundle, flatten
from musiclm.evaluation import (
    adherence,
    bootstrap,
    codec_quality,
    frechet,
    memorization,
    semantic_tokens,
    tagger,
    tagging,
    text_audio,
)
from musiclm.evaluation.report import Table

_K = 10  # depth of recall
_LEAST_EXTRAPOLATED = 20  # clips
_RANKED = 5  # clips from either end

Descriptions = Sequence[adherence.Description]
Truths = Sequence[Mapping[str, str]]


def adherence_tables(
    judge: adherence.Judge, sources: Mapping[str, Descriptions], truths: Truths, rests_on: str
) -> list[Table]:
    """How many clips are heard as what their prompts ask for, and how likely that is by chance."""
    right, p = {}, {}
    for source, descriptions in sources.items():
        right[source] = judge.right(descriptions, truths)
        p[source] = adherence.permutation_p(judge.answer(descriptions), truths)
    questions = tuple(judge.classifiers)
    counts = {q: Counter(truth[q] for truth in truths) for q in questions}
    commonest = {q: max(counts[q].values()) / len(truths) for q in questions}
    chance = {q: 1 / len(judge.classifiers[q].classes_) for q in questions}
    shares = Table(
        title="Clips made from text",
        note=f"the share of {len(truths)} that sounds as asked. Real clips are the ceiling, as "
        "they are and through the codec; naming the commonest class each time is the floor.",
        rests_on=(rests_on,),
        head=("", *questions),
        rows=(
            *(
                (source, *(bootstrap.share(by_question[q]) for q in questions))
                for source, by_question in right.items()
            ),
            ("commonest class", *(commonest[q] for q in questions)),
            ("chance", *(chance[q] for q in questions)),
        ),
    )
    chances = Table(
        title="By chance",
        note="p of so many right answers if clips had nothing to do with their prompts, by dealing "
        f"the prompts out anew {adherence.PERMUTATIONS:,} times.",
        rests_on=(rests_on,),
        head=("", *questions),
        rows=tuple((source, *(p[source][q] for q in questions)) for source in sources),
        digits=4,
    )
    return [shares, chances]


def distance_table(
    reference: Mapping[str, np.ndarray],
    sources: Mapping[str, Mapping[str, np.ndarray]],
    rests_on: Mapping[str, str],
) -> Table:
    """Fréchet audio distance of sets of clips to real ones, in several embeddings.

    Args:
      reference: vectors [M, W, D] of real clips, by embedding.
      sources: vectors [N, W, D] by source and embedding.
      rests_on: what each embedding is.
    """
    names = tuple(reference)
    count = len(next(iter(next(iter(sources.values())).values())))
    against = len(reference[names[0]])
    rows = []
    for source, vectors in sources.items():
        cells = []
        for name in names:
            cells.append(frechet.of_clips(reference[name], vectors[name]))
            cells.append(_extrapolated(reference[name], vectors[name]))
        rows.append((source, *cells))
    return Table(
        title="Fréchet audio distance",
        note=f"{count} clips of each source against {against} real ones that none of them is of; "
        "less is nearer. Intervals by a jackknife over clips. FAD∞ is extrapolated to infinitely "
        "many clips.",
        rests_on=tuple(rests_on[name] for name in names),
        head=("", *(f"{kind} {name}" for name in names for kind in ("FAD", "FAD∞"))),
        rows=tuple(rows),
        digits=3,
    )


def ranking_table(
    reference_MWD: np.ndarray,
    sources: Mapping[str, np.ndarray],
    prompts: Sequence[str],
    rests_on: str,
) -> Table:
    """Which clips are nearest to the real ones and which farthest, by each one's own distance.

    Args:
      reference_MWD: vectors of real clips.
      sources: vectors [N, W, D] by source, of two windows or more.
      prompts: of the clips.
      rests_on: what the vectors are.
    """
    dimension = reference_MWD.shape[-1]
    order = {
        source: frechet.rank_clips(reference_MWD.reshape(-1, dimension), vectors_NWD)
        for source, vectors_NWD in sources.items()
    }
    last = len(prompts)
    places = [place for place in range(last) if place < _RANKED or place >= last - _RANKED]
    return Table(
        title="Nearest and farthest clips",
        note=f"the prompts of the {_RANKED} clips of each source whose windows are nearest to the "
        f"real ones by Fréchet distance, and of the {_RANKED} farthest. A ranking only: a clip "
        "has too few windows for its distance to be a figure.",
        rests_on=(rests_on,),
        head=("", *order),
        rows=tuple(
            (str(place + 1), *(prompts[order_N[place]] for order_N in order.values()))
            for place in places
        ),
    )


def _extrapolated(reference_MWD: np.ndarray, vectors_NWD: np.ndarray) -> float | str:
    """FAD∞, or "" of so few clips that their number can't be varied."""
    if len(vectors_NWD) < _LEAST_EXTRAPOLATED:
        return ""
    return frechet.extrapolate(reference_MWD, vectors_NWD).value


def divergence_table(
    title: str, sources: Mapping[str, Mapping[str, np.ndarray]], rests_on: str
) -> Table:
    """KLD of what a classifier hears in clips and in the real ones of the same captions.

    Args:
      title: of the table.
      sources: "real" and others; distributions [N, C] by question, see `Tagger.distributions`.
      rests_on: the classifier.
    """
    p = sources["real"]
    rows = []
    for source, q in sources.items():
        both = (tagger.divergences(p, q), tagger.divergences(q, p))
        rows.append((source, *map(bootstrap.mean, both)))
    together = " together" if len(p) > 1 else ""
    return Table(
        title=title,
        note=f"nats between what a tagger hears in the real clip of a caption and in the clip made "
        f"of it, over {', '.join(p)}{together}; less is nearer.",
        rests_on=(rests_on,),
        head=("", "KL(real ‖ clip)", "KL(clip ‖ real)"),
        rows=tuple(rows),
    )


def cosine_table(
    text: Mapping[str, np.ndarray], sources: Mapping[str, Mapping[str, np.ndarray]]
) -> Table:
    """MuLan cycle consistency (MusicLM, section 5.1) by one or more MuLans.

    Args:
      text: unit vectors [N, D] of the prompts, by MuLan.
      sources: unit vectors [N, D] of the clips, by source and MuLan.
    """
    named = ("", *(f", by {name}" for name in list(text)[1:]))  # the first is the model's own
    rows = []
    for source, audio in sources.items():
        cells = []
        for name, text_ND in text.items():
            cosine = text_audio.cosines(text_ND, audio[name])
            cells += [cosine["matched"], cosine["mismatched"]]
        rows.append((source, *cells))
    return Table(
        title="MCC",
        note="the mean cosine of texts and clips, a clip as the mean of its 10 s windows, a second "
        "apart. The MuLan that conditions the generation is no independent witness, one that was "
        "trained apart is.",
        rests_on=tuple(text),
        head=("", *(f"{whose} text{by}" for by in named for whose in ("own", "others'"))),
        rows=tuple(rows),
    )


def codec_table(
    codec: codec_quality.Codec,
    codes_NFQ: np.ndarray,
    quality: Mapping[int, codec_quality.Quality],
    rests_on: str,
    opinions: Mapping[int, np.ndarray],
) -> Table:
    """How near reconstructions from the first 1, 2, … and all levels come, and what they cost.

    Args:
      codec: to measure.
      codes_NFQ: of real clips.
      quality: of their reconstructions, by number of levels.
      rests_on: which codec.
      opinions: of ViSQOL, f64 [N], by number of levels; may be empty.
    """
    usage = codec_quality.codebook_usage(codes_NFQ, codec.codebook_size)
    return Table(
        title="Codec",
        note=f"{len(codes_NFQ)} real clips from the first so many levels. Log-mel distance over "
        "80 bands and STFT distance: less is nearer. Scale-invariant SDR: more is, but it says "
        "nothing of a codec that codes no phases. Perplexity and use of the last level's "
        f"{codec.codebook_size} codes."
        + (f" ViSQOL of {len(opinions[1])} clips: 1 is bad." if opinions else ""),
        rests_on=(rests_on,),
        head=(
            "levels", "log-mel distance, dB", "STFT distance", "SI-SDR, dB", "kbit/s",
            "perplexity", "codes in use", *(["ViSQOL"] if opinions else []),
        ),
        rows=tuple(
            (
                str(q),
                bootstrap.mean(found.log_mel_distance_db_N),
                bootstrap.mean(found.stft_distance_N),
                bootstrap.mean(found.si_sdr_db_N),
                codec_quality.bitrate(codec.frame_rate, codec.codebook_size, q) / 1000,
                float(usage.perplexity_Q[q - 1]),
                float(usage.used_Q[q - 1]),
                *([bootstrap.mean(opinions[q])] if opinions else []),
            )
            for q, found in quality.items()
        ),
    )  # fmt: skip


def retrieval_table(
    text: Mapping[str, Mapping[str, np.ndarray]], audio: Mapping[str, np.ndarray]
) -> Table:
    """Retrieval both ways among held-out pairs, by one or more MuLans.

    Args:
      text: unit vectors [N, D] of a caption of each clip, by MuLan and kind of caption.
      audio: unit vectors of the clips, by MuLan.
    """
    rows = []
    for i, (name, texts) in enumerate(text.items()):
        by = f", by {name}" if i else ""  # the first is the model's own
        for kind, text_ND in texts.items():
            found = text_audio.retrieval_figures(text_ND, audio[name], k=_K)
            rows.append((kind + by, *found.values()))
    return Table(
        title="MuLan's retrieval",
        note=f"among {len(next(iter(audio.values())))} held-out clips.",
        rests_on=tuple(text),
        head=(
            "captions",
            *(
                f"{way} {what}"
                for way in ("text → audio", "audio → text")
                for what in (f"R@{_K}", "mAP")
            ),
        ),
        rows=tuple(rows),
    )


def agreement_table(text_codes_NQ: np.ndarray, audio_codes_NQ: np.ndarray, rests_on: str) -> Table:
    """How often text and audio fall on the same code, level by level."""
    agreement = text_audio.code_agreement(text_codes_NQ, audio_codes_NQ)
    return Table(
        title="MuLan's codes",
        note="how often a text has the very code of a clip, by level of the quantizer.",
        rests_on=(rests_on,),
        head=("level", *map(str, range(1, len(agreement) + 1))),
        rows=tuple(
            (label, *(level[key].value for level in agreement))
            for label, key in (("its own clip", "matched"), ("other clips", "mismatched"))
        ),
    )


def probe_table(
    tag_texts: Mapping[str, tuple[Sequence[str], np.ndarray]],
    train: tuple[np.ndarray, Truths],
    test: tuple[np.ndarray, Truths],
    rests_on: str,
) -> Table:
    """What MuLan's audio embeddings tell: to the words of tags, and to a linear probe.

    Args:
      tag_texts: by question its classes, and unit vectors [C, D] of their words.
      train, test: unit vectors [N, D] of clips, and their true classes.
      rests_on: which MuLan.
    """
    rows = []
    for question, (classes, text_CD) in tag_texts.items():
        truth_N, true_N = ([t[question] for t in truths] for _, truths in (train, test))
        truth_NC = np.array(true_N)[:, None] == np.array(classes)
        found = tagging.zero_shot(classes, text_CD, test[0], truth_NC)
        probe = tagging.linear_probe(train[0], truth_N, test[0], true_N)
        rows.append((question, found.mean_roc_auc, found.mean_average_precision, probe))
    return Table(
        title="MuLan as a tagger",
        note=f"{len(test[0])} held-out clips by the cosine with the words of each class "
        "(zero-shot; intervals over classes), and by logistic regression on the embeddings of "
        f"{len(train[0])} others.",
        rests_on=(rests_on,),
        head=("", "zero-shot ROC AUC", "zero-shot mAP", "linear probe"),
        rows=tuple(rows),
    )


def semantic_table(
    tokens_NT: np.ndarray,
    centroids_KD: np.ndarray,
    truths: Truths,
    questions: Sequence[str],
    rests_on: str,
    *,
    clips_per_class: int = 10,
    counter: Callable[[str, int], Callable[[int], None]] | None = None,
) -> Table:
    """What semantic tokens tell of a clip.

    Args:
      tokens_NT: of clips.
      centroids_KD: of the clusters.
      truths: what each clip is.
      questions: to ask.
      rests_on: which tokenizer.
      clips_per_class: that ABX takes at the most.
      counter: called with each question and the clips that its ABX takes; what it returns is called
        with 1 after each of them.
    """
    rows = []
    for question in questions:
        classes_N = np.array([truth[question] for truth in truths])
        total = sum(min(n, clips_per_class) for n in Counter(classes_N.tolist()).values())
        error = semantic_tokens.abx(
            tokens_NT,
            classes_N,
            centroids_KD,
            clips_per_class=clips_per_class,
            progress=counter(question, total) if counter else None,
        )
        rows.append(
            (
                question,
                semantic_tokens.pnmi(tokens_NT, classes_N),
                semantic_tokens.pnmi_by_chance(tokens_NT, classes_N),
                semantic_tokens.purity(tokens_NT, classes_N),
                error,
            )
        )
    return Table(
        title="Semantic tokens",
        note=f"{len(tokens_NT)} held-out clips. PNMI: how much of the uncertainty about the clip's "
        "class a token takes away, and what chance takes; purity: how often a token's commonest "
        f"class is right; ABX: errors of telling two of {clips_per_class} clips of a class from "
        "one of another by their alignment (0.5 is chance).",
        rests_on=(rests_on,),
        head=("", "PNMI", "by chance", "purity", "ABX error"),
        rows=tuple(rows),
    )


def likelihood_table(
    nats: Mapping[str, np.ndarray],
    vocabulary: Mapping[str, int],
    shuffled: bootstrap.Estimate | None,
    rests_on: str,
) -> Table:
    """How likely the stages find real clips, and whether the semantic one hears their order.

    Args:
      nats: mean over the tokens of each clip, [N], by stage.
      vocabulary: codes a level, by stage.
      shuffled: see `semantic_tokens.spot_the_real`, of the semantic stage, if it is there.
      rests_on: which bundle.
    """
    return Table(
        title="Stages on real clips",
        note="nats a token with the caption's condition, beside guessing, of stages whose window a "
        "clip fills; and how often the semantic stage finds a clip likelier than one whose seconds "
        "are shuffled.",
        rests_on=(rests_on,),
        head=("", "nats a token", "guessing", "real before shuffled"),
        rows=tuple(
            (
                stage,
                bootstrap.mean(nats_N),
                float(np.log(vocabulary[stage])),
                shuffled if stage == "semantic" else "",
            )
            for stage, nats_N in nats.items()
        ),
    )


def memorization_table(
    found: Sequence[memorization.Memorization], seconds: float, cost_below: float, rests_on: str
) -> Table:
    """Memorization over the length of the prompt; see `memorization.measure`.

    Args:
      found: of prompts of several lengths.
      seconds: that the tokens last which were compared.
      cost_below: the threshold of what is approximate.
      rests_on: name of the model.
    """
    return Table(
        title="Memorization",
        note="after MuLan's codes of the sound, also of a stage trained on those of captions, and "
        f"the first tokens of {found[0].exact.n} training clips the semantic stage goes on "
        f"greedily for {seconds:g} s: how often token by token as the clip does, and how often so "
        f"near (transport cost below {cost_below:.2f}) that of pairs that have nothing to do with "
        "each other one in 10,000 is.",
        rests_on=(rests_on,),
        head=("tokens given", "exact", "approximate", "entropy, nats"),
        rows=tuple(
            (str(one.prompt_tokens), one.exact, one.approximate, one.entropy) for one in found
        ),
    )


def size_table(folder: pathlib.Path, bundle: Bundle) -> Table:
    """Megabytes of a bundle's files, and how many numbers each model has learned.

    The codec's codebooks are among its numbers, as are MuLan's quantizer and the semantic clusters.
    """
    rows, files = [], {name: folder / f"{name}.safetensors" for name in bundle.components}
    for name, part in bundle.components.items():
        numbers = sum(np.size(array) for array in flatten(part.variables).values())
        rows.append((name, numbers, files[name].stat().st_size / 1e6))
    parameters = sum(row[1] for row in rows)
    rows.append(("in all", parameters, sum(row[2] for row in rows)))
    return Table(
        title="Size",
        note="as it lies on disk.",
        head=("", "parameters", "MB"),
        rows=tuple(rows),
        digits=1,
    )
