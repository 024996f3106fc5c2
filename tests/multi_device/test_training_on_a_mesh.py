"""The same losses and updates on one device and on eight, in processes of their own."""

import json
import os
import subprocess
import sys

import numpy as np
import pytest

PROGRAM = """
import dataclasses, json, sys
import jax, jax.numpy as jnp, numpy as np
from musiclm import sharding
from musiclm.training import loop, optim
from musiclm.training.mulan import MuLanTask
from musiclm.training.soundstream import SoundStreamTask
from musiclm.models.mulan import MuLanConfig
from musiclm.models.resnet import ResNetConfig
from musiclm.models.bert import BertConfig
from musiclm.models.soundstream import SoundStreamConfig
from musiclm.audio import MelConfig
from musiclm.nn.encoder import EncoderConfig

which, data, fsdp, workdir = sys.argv[1], int(sys.argv[2]), int(sys.argv[3]), sys.argv[4]
optimizer = optim.OptimizerConfig(learning_rate=1e-3, warmup_steps=0, total_steps=10)

def waves(*, seed, batch_size, start_step, host, num_hosts):
    step = start_step
    while True:
        rng = np.random.default_rng((seed, step))
        batch = {"waveform": rng.normal(size=(batch_size, 800)).astype(np.float32) * 0.1}
        if which == "mulan":
            batch["text_ids"] = rng.integers(1, 20, (batch_size, 6)).astype(np.int32)
        yield batch
        step += 1

if which == "mulan":
    task = MuLanTask(optimizer=optimizer, config=MuLanConfig(
        resnet=ResNetConfig(stage_sizes=(1,), widths=(8,), stage_strides=((1, 1),),
            bottleneck=False, norm_groups=4),
        bert=BertConfig(vocab_size=20, max_length=6, encoder=EncoderConfig(
            num_layers=1, model_dim=8, num_heads=2, ffn_dim=16, dropout_rate=0.0)),
        mel=MelConfig(sample_rate=800, num_mels=16, window_size=32, hop_size=8),
        window_seconds=1.0, embedding_dim=8))
else:
    task = SoundStreamTask(optimizer=optimizer, quantize_from_step=2, kmeans_batches=2,
        dead_below=0.05, config=SoundStreamConfig(sample_rate=800, encoder_channels=4,
            decoder_channels=4, strides=(2, 4), latent_dim=8, num_codebooks=2, codebook_size=16))

state = loop.train(task=task, dataset=waves, workdir=workdir, component=workdir + "/c", num_steps=4,
    batch_size=16, mesh=sharding.MeshConfig(data=data, fsdp=fsdp), log_every=1)
print(json.dumps(float(sum(jnp.abs(x).sum() for x in jax.tree.leaves(state.params)))))
"""


def run(which, devices, data, fsdp, workdir):
    environment = os.environ | {
        "XLA_FLAGS": f"--xla_force_host_platform_device_count={devices}",
        "JAX_PLATFORMS": "cpu",
    }
    subprocess.run(
        [sys.executable, "-c", PROGRAM, which, str(data), str(fsdp), str(workdir)],
        env=environment,
        check=True,
        capture_output=True,
        timeout=500,
    )
    lines = (workdir / "metrics.jsonl").read_text().splitlines()
    return [json.loads(line) for line in lines]


@pytest.mark.slow
@pytest.mark.parametrize("which", ["mulan", "soundstream"])
def test_one_device_equals_eight(which, tmp_path):
    """The contrastive loss sees the global batch, and codebook statistics are global sums."""
    one = run(which, 1, 1, 1, tmp_path / "one")
    eight = run(which, 8, 2, 4, tmp_path / "eight")
    assert len(one) == len(eight) == 4
    for a, b in zip(one, eight, strict=True):
        for name in set(a) - {"steps_per_second", "data_wait_ms"}:
            np.testing.assert_allclose(b[name], a[name], rtol=2e-4, atol=2e-5, err_msg=name)
