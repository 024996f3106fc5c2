"""Measures a model on held-out clips of the corpus "gm", and writes a report of it.

Clips are generated from held-out captions and compared with the real clips of these captions, by
classifiers fitted on real clips only, by embeddings and by MuLan; the codec, the tokenizers and the
stages are measured on real clips. Writes report.json, report.md and report.html with plots and
players. Started again it finds the clips and what was computed of them.
"""

import argparse
import json
import os
import pathlib
from typing import Any

from musiclm import api, errors, exit_codes
from musiclm.bin import compilation_cache, folders, staging

HELP = "measure a model on held-out clips, and write a report"
EPILOG = """\
examples:
  musiclm data gm --out train --clips 1000 --seed 0
  musiclm data gm --out held_out --clips 500 --seed 1 --held-out
  musiclm evaluate --held-out held_out --train train --out report
  musiclm evaluate --held-out held_out --train train --out report --clips 200 --best-of 4
  musiclm evaluate --held-out held_out --train train --out report --folder "other model=songs"

A folder holds clips as `musiclm generate` writes them, one for each caption that is asked for: the
first long one of each held-out clip. The i-th clip is generated with seed i; if the model has a
SoundStorm, once more with its acoustic tokens decoded in parallel.

Clips of a corpus or a folder may have any rate and any channels: they are resampled to the model's,
channels are averaged, and the first 10 s count. One that is shorter, silent or damaged is refused
by its name before anything is made. What the model makes counts as it sounds, silence too.
"""

# What a newcomer wants to know; the rest is in the report.
README_TABLES = ("Clips made from text", "MCC", "MuLan's retrieval", "Codec", "Size")


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Adds the options of `musiclm evaluate`."""
    corpus = {"required": True, "type": pathlib.Path, "metavar": "CORPUS"}
    parser.add_argument("--held-out", help="captions and clips to measure with", **corpus)
    parser.add_argument("--train", help="clips to fit classifiers on and to compare with", **corpus)
    parser.add_argument("--out", required=True, type=pathlib.Path, help="folder of the report")
    parser.add_argument(
        "--model",
        default=api.DEFAULT_MODEL,
        metavar="BUNDLE",
        help=f"name of a bundled model or folder of a bundle (default: {api.DEFAULT_MODEL})",
    )
    parser.add_argument(
        "--judge",
        metavar="MULAN",
        help="a bundle, or a folder of a MuLan alone, that was trained apart and is to judge too",
    )
    parser.add_argument(
        "--vggish",
        metavar="FILE",
        help="published weights of VGGish, for distances in its embedding as well",
    )
    parser.add_argument(
        "--audioset",
        metavar="FILE",
        help="published Audio Spectrogram Transformer (model.safetensors), for KLD over AudioSet's "
        "classes as well",
    )
    folders.add_argument(parser, "clips made elsewhere, to be measured as well; may be repeated")
    for name, default, what in (
        ("clips", 96, "captions to generate from"),
        ("best-of", 1, "measure also the best of so many, chosen by MuLan"),
        ("pairs", 500, "held-out clips for what needs no generating"),
        ("fit-clips", 1000, "of --train"),
    ):
        parser.add_argument(
            f"--{name}", type=int, default=default, metavar="N", help=f"{what} (default: {default})"
        )
    parser.add_argument(
        "--readme",
        type=pathlib.Path,
        metavar="FILE",
        help="file that takes the main tables as well",
    )


def run(args: argparse.Namespace) -> int:
    """Measures everything, then writes everything."""
    if not 3 <= args.clips <= args.pairs or args.best_of < 1:
        raise errors.UserError(
            f"--clips {args.clips}, --pairs {args.pairs}, --best-of {args.best_of}: give 3 clips "
            "or more, as many pairs at least, and 1 or more to choose from"
        )
    compilation_cache.enable()
    from musiclm import bundle as bundles
    from musiclm.models import audioset_ast, vggish

    try:
        from musiclm.bin import clips
        from musiclm.evaluation import embeddings, figures, page, report, suite
    except ModuleNotFoundError as error:
        raise errors.UserError(
            f"evaluation needs more packages ({error}): run `pip install -e '.[eval]'` in a "
            "checkout of the repository"
        ) from error

    mend = "give a file that is there"
    if args.readme:  # a README without markers is told before hours of work
        report.insert(clips.read_text(args.readme, mend), "")
    bundle = bundles.load(args.model)
    judges = read_judge(args.judge, bundles.find(args.model)) if args.judge else {}
    published_vggish = vggish.load(args.vggish) if args.vggish else None
    audioset = audioset_ast.load(args.audioset) if args.audioset else None
    held_out = clips.read_manifest(args.held_out, args.pairs)
    train = clips.read_manifest(args.train, args.fit_clips)
    prompts = [suite.long_caption(entry) for entry in held_out[: args.clips]]
    clips.check_classes(train)
    if not any(entry["split"] == "train" for entry in train):
        raise errors.UserError(
            f"none of the {len(train)} clips of --train {args.train} is of the split 'train', "
            "to ask for what was memorized: take more of them"
        )
    given, made_in = folders.named(args.folder), ways(bundle, args.best_of)
    if shared := sorted(set(given) & set(made_in)):
        raise errors.UserError(
            f"--folder {shared[0]}: the report has clips of that name, choose another"
        )
    files = {name: clips.choose(path, prompts) for name, path in given.items()}
    # Clips and embeddings go there as they come, the report when it is whole.
    with staging.staged(args.out, last="report.json") as unfinished:
        # All that is given is read first: a damaged clip must not be found after hours.
        rate = bundle.token_spec.sample_rate
        to_fit_on, to_measure = (clips.read_real(entries, rate) for entries in (train, held_out))
        made = {name: clips.read_clips(paths, rate) for name, paths in files.items()}
        for name, options in made_in.items():
            files[name] = clips.generate(bundle, prompts, args.out / "clips", name, **options)
            made[name] = clips.read_generated(files[name], rate)

        with clips.Bars() as bars:
            measured = suite.Suite(
                bundle=bundle,
                judges=judges,
                train=to_fit_on,
                held_out=to_measure,
                cache=embeddings.Cache(args.out / "embeddings"),
                vggish=published_vggish,
                audioset=audioset,
                progress=bars.move,
            )
            tables = measured.tables(made, greedy(bundle))
        tables.append(figures.size_table(bundles.find(args.model), bundle))
        opening = (
            f"{bundle.name}, digest {bundle.digest[:12]}, on combinations of attributes that "
            f"training never saw: clips of {len(prompts)} long captions, {clips.SECONDS:g} s each. "
            "In brackets 95 % intervals: Wilson's of shares of clips, the bootstrap's of other "
            "means."
        )
        players = {
            prompt: {name: os.path.relpath(paths[i], args.out) for name, paths in files.items()}
            | {"real": os.path.relpath(held_out[i]["path"], args.out)}
            for i, prompt in enumerate(prompts)
        }
        text = report.markdown(opening, tables)
        record = {
            "bundle": {"name": bundle.name, "digest": bundle.digest},
            "tables": [table.record() for table in tables],
        }
        for name, content in (
            ("report.md", text + "\n"),
            ("report.html", page.page(f"Evaluation of {bundle.name}", opening, tables, players)),
            ("report.json", json.dumps(record, indent=2, ensure_ascii=False) + "\n"),
        ):
            (unfinished / name).write_text(content, encoding="utf-8")
    if args.readme:
        chosen = [table for table in tables if table.title in README_TABLES]
        document = clips.read_text(args.readme, mend)  # as it is now: work went on meanwhile
        document = report.insert(document, report.markdown(opening, chosen))
        try:
            bundles.write_beside(args.readme, document.encode())
        except OSError as error:
            raise errors.UserError(
                f"cannot write {args.readme} ({error.strerror}): make it so that it can be, and "
                f"start again; {args.out} has the report"
            ) from error
    print(args.out / "report.html")
    return exit_codes.DONE


def read_judge(judge: str, measured: pathlib.Path) -> dict[str, Any]:
    """The MuLan of `--judge`, by the name that it has in the report."""
    from musiclm import bundle as bundles

    folder = bundles.find_tokenizers(judge)
    mulan = bundles.load_component(folder, "mulan")
    if "quantizer" not in mulan.variables:
        raise errors.UserError(
            f"--judge {judge} has a MuLan as training left it: fit its quantizer first "
            "(gin/train/mulan_quantizer.gin), which joins it to its vocabulary"
        )
    digest, own = (bundles.digest_of(path / "mulan.safetensors") for path in (folder, measured))
    if digest == own:
        raise errors.UserError(f"--judge {judge} has the MuLan of the model itself: give another")
    return {f"MuLan of {folder.resolve().name} ({digest[:12]})": mulan}


def ways(bundle, best_of: int) -> dict[str, dict[str, Any]]:
    """How a bundle's clips are made, by the names that they have in the report."""
    named: dict[str, dict[str, Any]] = {"generated": {}}
    if "soundstorm" in bundle.components:
        named["generated, parallel"] = {"decoding": "parallel"}
    if best_of > 1:
        named[f"best of {best_of}"] = {"best_of": best_of}
    return named


def greedy(bundle):
    """What goes on greedily with semantic tokens; see `suite.GoOn`."""
    import jax
    import numpy as np

    from musiclm.sampler import decode
    from musiclm.sampler.logits import Sampling
    from musiclm.sampler.stages import Stage

    part = bundle.components["semantic"]
    # One device: any number of examples divides among it.
    stage = Stage(part.config, part.variables["params"], decode.make_mesh(jax.local_devices()[:1]))

    def go_on(condition_NQ, given_NT, num_tokens: int):
        codes_NTQ = stage.generate(
            {"mulan": condition_NQ},
            jax.random.split(jax.random.key(0), len(condition_NQ)),
            [Sampling(temperature=0.0)] * len(condition_NQ),
            num_frames=num_tokens,
            prompts=[np.asarray(given_T)[:, None] for given_T in given_NT],
            prefilled=given_NT.shape[1],
        )
        return codes_NTQ[:, :, 0]

    return go_on
