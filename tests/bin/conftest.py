"""A corpus of tones, for commands that measure."""

import json
import pathlib

import numpy as np
import pytest

from musiclm import audio

RATE = 1_600


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
