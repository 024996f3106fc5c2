"""The figures of a bundle: each part measured on held-out clips, and all of them as Markdown.

N clips, T samples.
"""

import pathlib
from collections import Counter
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from musiclm.bundle import Bundle, flatten
from musiclm.evaluation import adherence, bootstrap, codec_quality, descriptors, report, text_audio

_K = 10  # depth of recall


def sizes(folder: pathlib.Path, bundle: Bundle) -> dict[str, Any]:
    """Megabytes of a bundle's files, and how many numbers each model has learned.

    The codec's codebooks are among its numbers, as are MuLan's quantizer and the semantic clusters.
    """
    files = [folder / "bundle.json", *(folder / f"{n}.safetensors" for n in bundle.components)]
    parameters = {
        name: sum(np.size(array) for array in flatten(part.variables).values())
        for name, part in bundle.components.items()
    }
    return {"megabytes": sum(f.stat().st_size for f in files) / 1e6, "parameters": parameters}


def codec_figures(codec: codec_quality.Codec, waveform_NT: np.ndarray) -> dict[str, Any]:
    """Log-mel distance and SI-SDR in dB from the first 1, 2, 4, … and all levels.

    Silence: a distance of 0.

    Returns:
      By number of levels.
    """
    every = codec.num_codebooks
    levels = sorted({*(2**i for i in range(every.bit_length()) if 2**i <= every), every})
    return {
        str(count): {
            "log_mel_distance_db": bootstrap.mean(quality.log_mel_distance_db_N),
            "si_sdr_db": bootstrap.mean(quality.si_sdr_db_N),
        }
        for count, quality in codec_quality.measure(codec, waveform_NT, levels=levels).items()
    }


def mulan_figures(
    mulan: text_audio.JointEmbedding,
    waveform_NT: np.ndarray,
    long_captions: Sequence[str],
    captions: Sequence[Sequence[str]],
    *,
    seed: int = 0,
) -> dict[str, Any]:
    """Retrieval among held-out pairs, and how far text and audio fall on the same codes.

    Args:
      mulan: the tokenizer.
      waveform_NT: clips.
      long_captions: one a clip, with every attribute.
      captions: all of each clip; one is drawn of each.
      seed: of that draw.
    """
    rng = np.random.default_rng(seed)
    drawn = [several[rng.integers(len(several))] for several in captions]
    audio_ND = text_audio.embed_audio(mulan, waveform_NT)
    long_ND, drawn_ND = mulan.embed_text(long_captions), mulan.embed_text(drawn)
    audio_codes_NQ = mulan.quantize(audio_ND, "audio")
    return {
        "long captions": text_audio.retrieval_figures(long_ND, audio_ND, k=_K),
        "any captions": text_audio.retrieval_figures(drawn_ND, audio_ND, k=_K),
        "code_agreement": text_audio.code_agreement(
            mulan.quantize(long_ND, "text"), audio_codes_NQ
        ),
    }


def prompt_figures(
    judge: adherence.Judge,
    mulan: text_audio.JointEmbedding,
    sources: Mapping[str, np.ndarray],
    prompts: Sequence[str],
    truths: Sequence[Mapping[str, str]],
    sample_rate: int,
) -> dict[str, Any]:
    """How well clips keep to their prompts: by the classifiers, and by MuLan's cosine.

    Args:
      judge: fitted on real clips, none of them here.
      mulan: the tokenizer. It is what conditions generation, hence no independent witness.
      sources: waveforms [N, T] by where they come from; all belong to the same prompts.
      prompts: one a clip.
      truths: what each prompt asks for, see `adherence.answers`.
      sample_rate: of the waveforms, in Hz.

    Returns:
      "adherence" by question and source, with "commonest class" (the share of right answers that
      naming nothing else would get) and "chance"; "cosine" by source.
    """
    text_ND = mulan.embed_text(prompts)
    right, cosine = {}, {}
    for source, waveform_NT in sources.items():
        described = [descriptors.describe(clip_T, sample_rate) for clip_T in waveform_NT]
        right[source] = judge.right(described, truths)
        cosine[source] = text_audio.cosines(text_ND, text_audio.embed_audio(mulan, waveform_NT))
    questions = {}
    for question, classifier in judge.classifiers.items():
        counts = Counter(truth[question] for truth in truths)
        questions[question] = {
            **{
                source: bootstrap.mean(by_question[question])
                for source, by_question in right.items()
            },
            "commonest class": max(counts.values()) / len(truths),
            "chance": 1 / len(classifier.classes_),
        }
    return {"adherence": questions, "cosine": cosine}


def markdown(figures: Mapping[str, Any]) -> str:
    """The tables of a README, of figures by "bundle", "sizes", "codec", "mulan" and so on."""
    codec, mulan, parameters = figures["codec"], figures["mulan"], figures["sizes"]["parameters"]
    clips = codec["1"]["si_sdr_db"].n
    pairs = mulan["long captions"][f"text_to_audio/recall_at_{_K}"].n
    sources = list(figures["cosine"])
    return "\n\n".join(
        [
            f"Measured on combinations of attributes that training never saw, by `make figures`; "
            f"in brackets 95 % bootstrap intervals. Bundle {figures['bundle']['name']}, digest "
            f"`{figures['bundle']['digest'][:12]}`.",
            f"**Clips made from text** ({clips} long captions, 10 s each): the share that sounds "
            "as asked to classifiers fitted on real renders only. Beside it what the same "
            "classifiers make of the real clips, as they are and through the codec. The best of "
            "several is chosen by MuLan's cosine, which knows nothing of the classifiers.",
            report.table(
                ["", *sources, "commonest class", "chance"],
                [[question, *row.values()] for question, row in figures["adherence"].items()],
            ),
            "MuLan's cosine of texts and clips. MuLan also conditions the generation, so it is no "
            "independent witness.",
            report.table(
                ["", "own text", "others' texts"],
                [
                    [name, row["matched"], row["mismatched"]]
                    for name, row in figures["cosine"].items()
                ],
            ),
            f"**MuLan** (retrieval among {pairs} held-out clips):",
            report.table(
                ["captions", f"text → audio R@{_K}", "mAP", f"audio → text R@{_K}", "mAP"],
                [
                    [
                        kind,
                        *(
                            mulan[f"{kind} captions"][f"{way}/{name}"]
                            for way in ("text_to_audio", "audio_to_text")
                            for name in (f"recall_at_{_K}", "mean_average_precision")
                        ),
                    ]
                    for kind in ("long", "any")
                ],
            ),
            "How often a text has the very code of a clip, by level of MuLan's quantizer:",
            report.table(
                ["level", *range(1, len(mulan["code_agreement"]) + 1)],
                [
                    [label, *(level[key].value for level in mulan["code_agreement"])]
                    for label, key in (("its own clip", "matched"), ("other clips", "mismatched"))
                ],
            ),
            f"**Codec** ({clips} held-out clips; log-mel distance over 80 bands, lower is better; "
            "scale-invariant SDR, higher is better, says nothing of a codec that codes no phases):",
            report.table(
                ["levels", "log-mel distance, dB", "SI-SDR, dB"],
                [[q, row["log_mel_distance_db"], row["si_sdr_db"]] for q, row in codec.items()],
            ),
            f"**Size**: {figures['sizes']['megabytes']:.1f} MB in all.",
            report.table(["model", *parameters], [["parameters", *parameters.values()]]),
        ]
    )
