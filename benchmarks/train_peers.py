"""The PyTorch side of `train.py`: `python train_peers.py {stage,soundstream} SIZES`, SIZES in JSON.

Runs with an interpreter of its own, which has torch and, for the codec, audiolm-pytorch. Answers
each line on stdin, a number of training steps, with the seconds that a step took.
"""

import importlib.machinery
import importlib.util
import json
import sys
import time
import types
from collections.abc import Callable

import numpy as np
import torch
import torch.nn.functional as F
from torch import nn

Step = Callable[[], object]
TRIALS = 3  # of every form, of which the best one goes on


class Block(nn.Module):
    """Attention and gated feed-forward, each with a norm before and a residual around."""

    def __init__(self, sizes: dict):
        super().__init__()
        model, inner = sizes["model_dim"], sizes["num_heads"] * sizes["head_dim"]
        self.num_heads = sizes["num_heads"]
        self.attention_norm, self.mlp_norm = nn.RMSNorm(model), nn.RMSNorm(model)
        self.query, self.key, self.value = (nn.Linear(model, inner, bias=False) for _ in range(3))
        self.out = nn.Linear(inner, model, bias=False)
        self.up, self.gate = (nn.Linear(model, sizes["mlp_dim"], bias=False) for _ in range(2))
        self.down = nn.Linear(sizes["mlp_dim"], model, bias=False)

    def forward(self, x, bias, attend):
        h = self.attention_norm(x)
        heads = (
            project(h).unflatten(-1, (self.num_heads, -1)).transpose(1, 2)
            for project in (self.query, self.key, self.value)
        )
        x = x + self.out(attend(*heads, bias).transpose(1, 2).flatten(2))
        h = self.mlp_norm(x)
        return x + self.down(F.gelu(self.gate(h), approximate="tanh") * self.up(h))


class Decoder(nn.Module):
    """The model of `musiclm.models.token_lm`, with one level of targets."""

    def __init__(self, sizes: dict):
        super().__init__()
        self.tokens = nn.Embedding(sizes["vocab_size"], sizes["model_dim"])
        self.bias = nn.Embedding(sizes["num_buckets"], sizes["num_heads"])
        self.layers = nn.ModuleList(Block(sizes) for _ in range(sizes["num_layers"]))
        self.norm = nn.RMSNorm(sizes["model_dim"])
        codes = sizes["codebook_size"]
        self.head = None if sizes["tied"] else nn.Linear(sizes["model_dim"], codes, bias=False)
        self.start, self.offset = sizes["prefix_length"] - 1, sizes["vocab_size"] - codes
        for weights in (self.tokens.weight, self.bias.weight):
            nn.init.normal_(weights, std=0.02)
        places = torch.arange(sizes["sequence_length"] - 1)
        distances = places[:, None] - places
        self.register_buffer("later", distances < 0)
        self.register_buffer("buckets", torch.tensor(sizes["buckets"])[distances.clamp(min=0)])

    def forward(self, ids, attend):
        bias = self.bias(self.buckets).permute(2, 0, 1).masked_fill(self.later, -torch.inf)
        x = self.tokens(ids[:, :-1])
        for layer in self.layers:
            x = layer(x, bias[None], attend)
        x = self.norm(x)[:, self.start :]
        logits = self.head(x) if self.head else x @ self.tokens.weight[self.offset :].T
        codes = ids[:, self.start + 1 :] - self.offset
        return F.cross_entropy(logits.flatten(0, 1), codes.flatten())


def in_words(query, key, value, bias):
    """Attention as it is written down."""
    scores = (query * query.shape[-1] ** -0.5) @ key.transpose(-1, -2) + bias
    return scores.softmax(-1) @ value


ATTENTIONS = {"in words": in_words, "fused": F.scaled_dot_product_attention}


def stage(sizes: dict) -> dict[str, Step]:
    """Steps of a stage, by the kind of attention."""
    model = Decoder(sizes)
    matrices = [p for p in model.parameters() if p.ndim > 1]
    scales = [p for p in model.parameters() if p.ndim == 1]
    optimizer = torch.optim.AdamW(
        [{"params": matrices, "weight_decay": 0.01}, {"params": scales, "weight_decay": 0.0}],
        lr=3e-4, betas=(0.9, 0.99), fused=True,
    )  # fmt: skip
    ids = torch.from_numpy(np.load(sizes["tokens"])).long()

    def step(attend) -> float:
        optimizer.zero_grad()
        loss = model(ids, attend)
        loss.backward()
        nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        return loss.item()

    return {name: lambda attend=attend: step(attend) for name, attend in ATTENTIONS.items()}


def soundstream(sizes: dict) -> dict[str, Step]:
    """The step of audiolm-pytorch's trainer, without what it adds every few steps."""
    without_extensions()
    from audiolm_pytorch.soundstream import SoundStream

    model = SoundStream(**sizes["arguments"])
    rest = [*model.stft_discriminator.parameters(), *model.discriminators.parameters()]
    optimizers = [
        torch.optim.AdamW(parameters, lr=1e-4, betas=(0.5, 0.9), fused=True)
        for parameters in (model.non_discr_parameters(), rest)
    ]
    waveform = 0.1 * torch.randn(sizes["batch_size"], sizes["num_samples"])

    def step() -> float:
        for optimizer, judging in zip(optimizers, (False, True), strict=True):
            loss = model(waveform, return_discr_loss=judging)
            loss.backward()
            if not judging:
                nn.utils.clip_grad_norm_(model.parameters(), 0.5)
            optimizer.step()
            model.zero_grad()
        return loss.item()

    return {"audiolm-pytorch": step}


def without_extensions() -> None:
    """Lets the codec's module be imported without what it doesn't use.

    Of torchaudio it takes spectrograms, which are plain PyTorch; the compiled extension of the
    package index wants CUDA. The package itself would import fairseq.
    """
    extension = types.ModuleType("torchaudio._extension")
    extension._IS_TORCHAUDIO_EXT_AVAILABLE = False
    extension.fail_if_no_align = lambda function: function
    package = types.ModuleType("audiolm_pytorch")
    package.__path__ = importlib.util.find_spec("audiolm_pytorch").submodule_search_locations
    sys.modules |= {"torchaudio._extension": extension, "audiolm_pytorch": package}


def seconds(step: Step, count: int) -> float:
    """A step's, over so many in a row."""
    start = time.perf_counter()
    for _ in range(count):
        step()
    return (time.perf_counter() - start) / count


def main() -> None:
    torch.manual_seed(0)
    torch.set_num_threads(2)
    name, sizes = sys.argv[1], json.loads(sys.argv[2])
    steps = {"stage": stage, "soundstream": soundstream}[name](sizes)
    for step in steps.values():
        step()
    trials = {kind: [] for kind in steps}
    for _ in range(TRIALS if len(steps) > 1 else 0):
        for kind, step in steps.items():
            trials[kind].append(seconds(step, 1))
    fastest = steps[min(steps, key=lambda kind: min(trials[kind], default=0))]
    print("seconds a step:", trials, file=sys.stderr)
    print("ready", flush=True)
    for line in sys.stdin:
        print(seconds(fastest, int(line)), flush=True)


if __name__ == "__main__":
    main()
