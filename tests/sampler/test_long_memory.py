"""Memory against the length of a clip, in a process of its own."""

import json
import subprocess
import sys

import pytest

pytestmark = pytest.mark.slow

# Peaks in MiB after each clip. Not getrusage: to that, a new process has its parent's peak.
PROGRAM = """
import json, pathlib, re, sys
from musiclm.api import MusicLM

model = MusicLM.from_pretrained(sys.argv[1], rows=1)
peaks = []
for seconds in (60, 60, 300):  # the first compiles
    if sys.argv[2] == "stream":
        for _ in model.stream("slow piano", seconds=seconds):
            pass
    else:
        model.generate("slow piano", seconds=seconds)
    status = pathlib.Path("/proc/self/status").read_text()
    peaks.append(int(re.search(r"VmHWM:\\s+(\\d+) kB", status)[1]) / 1024)
print(json.dumps(peaks))
"""
# Samples of 240 s are 1.5 MiB, with their copies 6; decoded all at once they take 28 or more.
MARGIN_MIB = 16


@pytest.mark.parametrize("way", ["stream", "generate"])
def test_five_minutes_take_hardly_more_memory_than_one(tiny_bundle, way):
    argv = [sys.executable, "-c", PROGRAM, str(tiny_bundle), way]
    done = subprocess.run(argv, check=True, capture_output=True, text=True)
    _, short, long = json.loads(done.stdout)
    assert long - short < MARGIN_MIB, f"{short:.1f} MiB became {long:.1f}"
