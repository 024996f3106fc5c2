"""A corpus of tones, for commands that measure, and a study of a job that starts in seconds."""

import json
import pathlib

import numpy as np
import pytest

from musiclm import audio

RATE = 1_600
TINY_JOB = pathlib.Path(__file__).parents[1] / "multi_process/tiny_job.gin"
STUDY = f"""
from __gin__ import dynamic_registration

import tiny_job
from musiclm.evaluation import ablation
from musiclm.training import loop
from musiclm.training import optim

include '{TINY_JOB}'

FSDP = 1
loop.train.num_steps = 40
loop.train.eval_every = 10
tiny_job.Perceptron.optimizer = @optim.OptimizerConfig()
optim.OptimizerConfig.learning_rate = 0.01
optim.OptimizerConfig.warmup_steps = 0

ablation.Study.question = 'How fast?'
ablation.Study.variants = [@base/ablation.Variant(), @slow/ablation.Variant()]
ablation.Study.metrics = [@ablation.Metric()]
ablation.Metric.name = 'eval/loss'
base/ablation.Variant.name = 'fast'
base/ablation.Variant.expected = 'a low loss'
slow/ablation.Variant.name = 'slow'
slow/ablation.Variant.expected = 'worse'
slow/ablation.Variant.overrides = ('optim.OptimizerConfig.learning_rate = 1e-5',)
"""


@pytest.fixture(autouse=True, scope="module")
def compilation_cache(own_compilation_cache):
    """Of every command here."""


@pytest.fixture
def corpus(tmp_path) -> pathlib.Path:
    folder = tmp_path / "corpus"
    folder.mkdir()
    lines = []
    for number in range(6):
        instrument = ("flute", "piano")[number % 2]
        tempo = ("slow", "medium", "fast")[number % 3]
        time_T = np.arange(10 * RATE) / RATE
        beats_T = np.exp(-4 * (time_T * (1, 2, 3)[number % 3] % 1))
        samples_T = 0.5 * np.sin(2 * np.pi * (200 + 20 * number) * time_T) * beats_T
        audio.write_wav(folder / f"{number}.wav", samples_T, RATE)
        caption = f"{tempo} {instrument}"
        entry = {
            "file": f"{number}.wav",
            "split": ("train", "validation")[number in (1, 2, 5)],
            "caption": caption,
            "captions": [{"kind": "tags", "text": tempo}, {"kind": "long", "text": caption}],
            "instrument": instrument,
            "drums": number >= 3,
            "tempo": tempo,
            "tonic": 2 * number,
            "mode": ("minor", "major")[number % 2],
            "register": ("low", "high")[number % 2],
            "density": ("sparse", "dense")[number % 2],
            "bass": number % 2 == 0,
            "chords": number < 3,
        }
        lines.append(json.dumps(entry) + "\n")
    (folder / "manifest.jsonl").write_text("".join(lines))
    return folder


@pytest.fixture
def make_study(tmp_path, monkeypatch):
    """Writes a study of the tiny job, with lines of its own."""
    monkeypatch.syspath_prepend(str(TINY_JOB.parent))

    def make(lines="", name="study"):
        path = tmp_path / f"{name}.gin"
        path.write_text(STUDY + lines)
        return str(path)

    return make
