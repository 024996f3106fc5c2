"""How many times faster than real time one core decodes and resamples, as `musiclm tokenize` does.

FLAC, 44.1 kHz, stereo, to mono at the rates of the tokenizers; the checks of every file included.
Counts processor time, so other work on the machine does not count against it. JSON lines.
"""

import argparse
import io
import json
import time

import numpy as np
import soundfile

from data_pipelines.beam import decode
from musiclm import audio

RATES = (24_000, 16_000)
REACH = 500.0


def sound(seconds: float, rate: int) -> np.ndarray:
    """Decaying notes and a floor of noise: f32 [T, 2]."""
    rng = np.random.default_rng(0)
    t = np.arange(round(seconds * rate)) / rate
    notes = sum(
        np.sin(2 * np.pi * pitch * t + rng.uniform(0, 6)) * np.exp(-3 * ((2 * t) % 1))
        for pitch in (220.0, 331.0, 523.0, 1_760.0)
    )
    stereo = 0.1 * np.stack([notes, np.roll(notes, 99)], axis=1)
    return (stereo + rng.normal(scale=3e-3, size=stereo.shape)).astype(np.float32)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--seconds", type=float, default=60.0, help="of sound (default: 60)")
    parser.add_argument("--repeats", type=int, default=5, help="of which the best counts")
    args = parser.parse_args()
    flac = io.BytesIO()
    soundfile.write(flac, sound(args.seconds, 44_100), 44_100, format="FLAC")
    for rate in RATES:
        spent = []
        for _ in range(args.repeats):
            start = time.process_time()
            audio.resample(*decode.decode(flac.getvalue()), rate)
            spent.append(time.process_time() - start)
        value = args.seconds / min(spent)
        line = {"name": f"decode_flac_to_{rate // 1000}k", "value": round(value, 1)}
        line |= {"unit": "x real time a core", "reach": REACH, "ok": value >= REACH}
        print(json.dumps(line))


if __name__ == "__main__":
    main()
