"""How a SoundStream of magnitudes starts: as the principal components of its corpus.

Its linear paths become the best linear code of `latent_dim` numbers a frame, which gradient descent
alone takes thousands of steps to find; training then goes on from there.

Shapes: B batch, T samples, N frames, V log magnitudes a frame, D latent dimension.
"""

import os

import jax
import jax.numpy as jnp
import numpy as np

from musiclm import bundle, errors
from musiclm.models.soundstream import SoundStream, SoundStreamConfig
from musiclm.training.quantizers import Dataset, sample_batches


def fit_principal_components(
    *,
    config: SoundStreamConfig,
    component: str | os.PathLike,
    dataset: Dataset,
    num_batches: int,
    batch_size: int,
    seed: int = 0,
) -> None:
    """Writes a codec, without codebooks, whose linear paths are principal components.

    Args:
      config: of a codec with a `spectrum`.
      component: where it goes; `SoundStreamTask.start` takes it.
      dataset: of {"waveform": f32 [B, T]}.
      num_batches, batch_size: how much to fit on.
      seed: of the batches and of the other weights.

    Raises:
      UserError: the config has no spectrum, or a frame has fewer numbers than `latent_dim`.
    """
    if config.spectrum is None:
        raise errors.UserError(
            "SoundStreamConfig.spectrum is None: give one, since only a codec of magnitudes starts "
            "from principal components"
        )
    hop = config.hop_length // config.spectrum.hop_size
    size = hop * config.spectrum.num_bins
    if size < config.latent_dim:
        raise errors.UserError(
            f"SoundStreamConfig.latent_dim={config.latent_dim} is more than the {size} log "
            "magnitudes of a frame: lower it."
        )

    @jax.jit
    def moments(waveform_BT):
        frames_NV = config.spectrum.analyse(waveform_BT).reshape(-1, size)
        return frames_NV.sum(axis=0), frames_NV.T @ frames_NV, frames_NV.shape[0]

    sums = [
        jax.device_get(moments(batch["waveform"]))
        for batch in sample_batches(dataset, num_batches, batch_size, seed)
    ]
    sum_V, outer_VV, count = (
        np.sum(parts, axis=0, dtype=np.float64) for parts in zip(*sums, strict=True)
    )
    mean_V = sum_V / count
    _, vectors_VV = np.linalg.eigh(outer_VV / count - np.outer(mean_V, mean_V))
    basis_VD = vectors_VV[:, ::-1][:, : config.latent_dim]

    waveform_BT = jnp.zeros((1, config.hop_length))
    params = jax.device_get(jax.jit(SoundStream(config).init)(jax.random.key(seed), waveform_BT))
    params = params["params"]
    basis_SFD = basis_VD.reshape(hop, config.spectrum.num_bins, config.latent_dim)
    params["encoder"]["linear"] = {"kernel": basis_SFD, "bias": -mean_V @ basis_VD}
    # Its bias is one for all spectra of a frame, whose means differ by nothing but chance.
    params["decoder"]["linear"] = {
        "kernel": basis_SFD.swapaxes(1, 2),
        "bias": mean_V.reshape(hop, -1).mean(axis=0),
    }
    bundle.save_component(
        *os.path.split(component), bundle.Component(config, {"params": params}), np.float32
    )
