"""The PyTorch side of `sample.py`: `python sample_peers.py {musicgen,loop} SIZES`, SIZES in JSON.

Runs with an interpreter of its own, which has torch and transformers. Answers each line on stdin,
a number of passes, with the seconds that one step of a pass took. Random weights, f32.
"""

import importlib.machinery
import json
import os
import sys
import time
import types
from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import nn


class Block(nn.Module):
    """A pre-norm block that goes on from its cache."""

    def __init__(self, dim: int, heads: int, mlp: int):
        super().__init__()
        self.heads = heads
        self.attention_norm, self.mlp_norm = nn.RMSNorm(dim), nn.RMSNorm(dim)
        self.query_key_value = nn.Linear(dim, 3 * dim, bias=False)
        self.out = nn.Linear(dim, dim, bias=False)
        self.up = nn.Linear(dim, mlp, bias=False)
        self.down = nn.Linear(mlp, dim, bias=False)

    def forward(self, x, keys, values, position):
        parts = self.query_key_value(self.attention_norm(x)).chunk(3, dim=-1)
        query, key, value = (part.unflatten(-1, (self.heads, -1)).transpose(1, 2) for part in parts)
        keys[:, :, position : position + 1], values[:, :, position : position + 1] = key, value
        seen = slice(position + 1)
        mixed = F.scaled_dot_product_attention(query, keys[:, :, seen], values[:, :, seen])
        x = x + self.out(mixed.transpose(1, 2).flatten(2))
        return x + self.down(F.relu(self.up(self.mlp_norm(x))))


def loop(sizes: dict) -> Callable[[], object]:
    """Embedding, blocks, head, a draw: no more than has to be."""
    dim, heads = sizes["dim"], sizes["heads"]
    embed = nn.Embedding(sizes["codes"], dim)
    blocks = nn.ModuleList(Block(dim, heads, sizes["mlp"]) for _ in range(sizes["layers"]))
    norm, head = nn.RMSNorm(dim), nn.Linear(dim, sizes["codes"], bias=False)
    shape = (sizes["layers"], sizes["rows"], heads, sizes["steps"], dim // heads)

    def run():
        keys, values = torch.empty(shape), torch.empty(shape)
        ids = torch.zeros(sizes["rows"], 1, dtype=torch.long)
        for position in range(sizes["steps"]):
            x = embed(ids)
            for index, block in enumerate(blocks):
                x = block(x, keys[index], values[index], position)
            probabilities = head(norm(x))[:, -1].softmax(dim=-1)
            ids = torch.multinomial(probabilities, 1)
        return ids

    return run


def musicgen(sizes: dict) -> Callable[[], object]:
    """The decoder of MusicGen small as `transformers` has it, four codebooks a step."""
    # Only for sound, which is not made here; it may not fit this torch.
    torchaudio = types.ModuleType("torchaudio")
    torchaudio.__spec__ = importlib.machinery.ModuleSpec("torchaudio", None)
    sys.modules["torchaudio"] = torchaudio
    from transformers import MusicgenForCausalLM
    from transformers.models.musicgen.configuration_musicgen import MusicgenDecoderConfig

    config = MusicgenDecoderConfig(
        num_hidden_layers=sizes["layers"],
        hidden_size=sizes["dim"],
        num_attention_heads=sizes["heads"],
        ffn_dim=sizes["mlp"],
    )
    model = MusicgenForCausalLM(config).eval()

    def run():
        cache, ids = None, torch.zeros(sizes["rows"] * config.num_codebooks, 1, dtype=torch.long)
        for _ in range(sizes["steps"]):
            out = model(ids, past_key_values=cache, use_cache=True)
            cache = out.past_key_values
            ids = torch.multinomial(out.logits[:, -1].softmax(dim=-1), 1)
        return ids

    return run


def main() -> None:
    name, sizes = sys.argv[1], json.loads(sys.argv[2])
    torch.manual_seed(0)
    torch.set_num_threads(len(os.sched_getaffinity(0)))
    with torch.inference_mode():
        run = {"musicgen": musicgen, "loop": loop}[name](sizes)
        print("ready", flush=True)
        for line in sys.stdin:
            begun = time.perf_counter()
            for _ in range(int(line)):
                run()
            print((time.perf_counter() - begun) / int(line) / sizes["steps"], flush=True)


if __name__ == "__main__":
    main()
