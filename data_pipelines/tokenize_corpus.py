"""Turns a corpus into tokens, with the finished components of a chain.

  python -m data_pipelines.tokenize_corpus --corpus DIR --components DIR --out DIR

Writes `tokens-00000.npz`, … of 256 clips each, beside their place first; those that are there
already are left alone, so start it again after a kill. A shard holds, a row a clip,
`mulan_audio` uint16 [N, Q], `mulan_text` uint16 [N, captions, Q], `semantic` uint16 [N, T],
`acoustic` uint16 [N, T, Q], and `captions`, a JSON list of the clips' caption lists.
"""

import argparse
import json
import os
import pathlib
import sys

import numpy as np
import tqdm

from data_pipelines import manifest
from musiclm import audio, bundle, errors
from musiclm.bin import compilation_cache

CLIPS_A_SHARD = 256
CLIPS_A_BATCH = 16


class Tokenizers:
    """The three frozen tokenizers of a directory of components."""

    def __init__(self, components: str | os.PathLike):
        from musiclm.tokens import tokenizers

        self.acoustic = tokenizers.AcousticTokenizer.load(
            bundle.load_component(components, "soundstream")
        )
        self.semantic = tokenizers.SemanticTokenizer.load(
            bundle.load_component(components, "w2v_bert")
        )
        self.mulan = tokenizers.MuLanTokenizer.load(bundle.load_component(components, "mulan"))

    def batch(self, records: list[dict], root: pathlib.Path) -> dict[str, np.ndarray]:
        """Tokens of some clips of one length."""

        def waveforms(sample_rate):
            return np.stack([audio.read_audio(root / r["file"], sample_rate) for r in records])

        rates = {t.sample_rate for t in (self.acoustic, self.semantic, self.mulan)}
        at = {rate: waveforms(rate) for rate in rates}
        texts = [caption["text"] for r in records for caption in r["captions"]]
        text_codes = self.mulan.encode_text(texts)
        tokens = {
            "mulan_audio": self.mulan.encode_audio(at[self.mulan.sample_rate]),
            "mulan_text": text_codes.reshape(len(records), -1, self.mulan.num_codebooks),
            "semantic": self.semantic.encode(at[self.semantic.sample_rate]),
            "acoustic": self.acoustic.encode(at[self.acoustic.sample_rate]),
        }
        return {name: array.astype(np.uint16) for name, array in tokens.items()}


def tokenize(
    corpus: str | os.PathLike, components: str | os.PathLike, out: str | os.PathLike
) -> None:
    """Tokenizes a corpus of clips of one length, each with the same number of captions."""
    root, out = pathlib.Path(corpus), pathlib.Path(out)
    records = manifest.read(root)
    out.mkdir(parents=True, exist_ok=True)
    tokenizers = None
    starts = range(0, len(records), CLIPS_A_SHARD)
    for shard, start in enumerate(tqdm.tqdm(starts, desc="tokenize", unit="shard")):
        path = out / f"tokens-{shard:05d}.npz"
        if path.exists():
            continue
        tokenizers = tokenizers or Tokenizers(components)
        clips = records[start : start + CLIPS_A_SHARD]
        batches = [
            tokenizers.batch(clips[i : i + CLIPS_A_BATCH], root)
            for i in range(0, len(clips), CLIPS_A_BATCH)
        ]
        arrays = {name: np.concatenate([b[name] for b in batches]) for name in batches[0]}
        captions = json.dumps([clip["captions"] for clip in clips])
        beside = path.with_name(f".{path.name}")
        with beside.open("wb") as file:
            np.savez(file, captions=np.array(captions), **arrays)
        os.replace(beside, path)


def main() -> int:
    """The command line."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--corpus", required=True, help="folder with a manifest.jsonl")
    parser.add_argument("--components", required=True, help="folder with the trained components")
    parser.add_argument("--out", required=True, help="folder for the shards")
    args = parser.parse_args()
    compilation_cache.enable()
    try:
        tokenize(args.corpus, args.components, args.out)
    except (errors.UserError, manifest.ManifestError) as error:
        print(f"tokenize_corpus: error: {error}", file=sys.stderr)
        return 2
    return 0


if __name__ == "__main__":
    sys.exit(main())
