"""The PyTorch side of `codec.py`: `python codec_peers.py {encode,decode} SIZES`, SIZES in JSON.

Runs with an interpreter of its own, which has torch and encodec. Answers each line on stdin, a
number of runs, with the seconds that one took.
"""

import json
import os
import sys
import time
import types

import torch


def main() -> None:
    name, sizes = sys.argv[1], json.loads(sys.argv[2])
    torch.manual_seed(0)
    torch.set_num_threads(len(os.sched_getaffinity(0)))
    # The package would resample with torchaudio, which may not fit this torch; nothing else of it.
    sys.modules["torchaudio"] = types.ModuleType("torchaudio")
    from encodec.model import EncodecModel

    model = EncodecModel.encodec_model_24khz(pretrained=False).eval()
    model.set_target_bandwidth(6.0)
    waveform = 0.1 * torch.randn(1, 1, sizes["seconds"] * model.sample_rate)
    with torch.inference_mode():
        codes = model.encode(waveform)
        runs = {"encode": lambda: model.encode(waveform), "decode": lambda: model.decode(codes)}
        run = runs[name]
        run()
        print("ready", flush=True)
        for line in sys.stdin:
            begun = time.perf_counter()
            for _ in range(int(line)):
                run()
            print((time.perf_counter() - begun) / int(line), flush=True)


if __name__ == "__main__":
    main()
