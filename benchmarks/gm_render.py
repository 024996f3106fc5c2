"""How many times faster than real time one core makes the gm corpus: composed, rendered, written.

Counts processor time, so other work on the machine does not count against it. One JSON line.
"""

import argparse
import json
import tempfile
import time
from pathlib import Path

from data_pipelines.corpora.gm import clip, synth


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--clips", type=int, default=40)
    clips = parser.parse_args().clips
    job = clip.Job(seed=0, held_out=False, seconds=10.0, sample_rate=16_000)
    synthesizer = synth.Synthesizer(synth.find_soundfont(), job.sample_rate)
    with tempfile.TemporaryDirectory() as folder:
        clip.make_clip(job, clips, synthesizer, Path(folder))  # imports and caches, once
        start = time.process_time()
        for index in range(clips):
            clip.make_clip(job, index, synthesizer, Path(folder))
        spent = time.process_time() - start
    print(
        json.dumps(
            {
                "name": "gm_render",
                "value": round(clips * job.seconds / spent, 1),
                "unit": "x real time a core",
            }
        )
    )


if __name__ == "__main__":
    main()
