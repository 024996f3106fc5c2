"""Residual convolutional tower over log-mel spectrograms (ResNet-50 by default).

Shapes: B batch, T frames, F frequency bins, C channels. Inside the net the axes between B and C
are (T, F), or T alone with `frequency_as_channels`.
"""

import dataclasses

import flax.linen as nn
import jax
import jax.numpy as jnp


@dataclasses.dataclass(frozen=True, kw_only=True)
class ResNetConfig:
    """Size of the tower; the defaults are ResNet-50 with one input channel.

    Strides and kernels are (time, frequency).

    Attributes:
      stage_sizes: Residual blocks a stage.
      widths: Width of each stage; a bottleneck block puts out four times as many channels.
      bottleneck: Blocks of 1×1, 3×3, 1×1 convolutions; False: two 3×3.
      stem_kernel: Kernel of the first convolution.
      stem_strides: Stride of the first convolution.
      stem_pool: Whether a 3×3 max-pool of stride 2 follows the stem.
      stage_strides: Stride of each stage's first block.
      norm_groups: Groups of each GroupNorm; must divide every width.
      frequency_as_channels: False convolves over time and frequency and averages over both, as
        the paper does. True takes the bins as channels and convolves over time alone (the second
        number of each kernel and stride is then unused): a small net keeps absolute pitch, which
        an average over frequency blurs, and trains several times faster on a CPU.
      dtype: Compute type, "float32" or "bfloat16"; parameters stay float32.
    """

    stage_sizes: tuple[int, ...] = (3, 4, 6, 3)
    widths: tuple[int, ...] = (64, 128, 256, 512)
    bottleneck: bool = True
    stem_kernel: tuple[int, int] = (7, 7)
    stem_strides: tuple[int, int] = (2, 2)
    stem_pool: bool = True
    stage_strides: tuple[tuple[int, int], ...] = ((1, 1), (2, 2), (2, 2), (2, 2))
    norm_groups: int = 32
    frequency_as_channels: bool = False
    dtype: str = "float32"

    def __post_init__(self):
        lengths = {len(self.stage_sizes), len(self.widths), len(self.stage_strides)}
        if len(lengths) != 1:
            raise ValueError(
                f"ResNetConfig.stage_sizes {self.stage_sizes}, widths {self.widths} and "
                f"stage_strides {self.stage_strides} describe different numbers of stages; "
                "give each one entry a stage."
            )
        if min(self.stage_sizes) < 1:
            raise ValueError(
                f"ResNetConfig.stage_sizes is {self.stage_sizes}; every stage needs a block."
            )
        if self.dtype not in ("float32", "bfloat16"):
            raise ValueError(
                f'ResNetConfig.dtype is {self.dtype!r}; set it to "float32" or "bfloat16".'
            )
        for width in self.widths:
            if width < 1 or width % self.norm_groups:
                raise ValueError(
                    f"ResNetConfig.widths holds {width}, not a multiple of norm_groups "
                    f"({self.norm_groups}); change one of the two."
                )


class ResNet(nn.Module):
    """Log-mel spectrogram to one feature vector.

    GroupNorm stands where ResNet-50 has BatchNorm (the same number of parameters): it needs no
    state across examples or devices, so an embedding is the same alone, in any batch, under any
    mesh, in training and after, and a contrastive batch cannot leak its statistics into the loss.
    """

    config: ResNetConfig

    @nn.compact
    def __call__(self, spec_BTF: jax.Array) -> jax.Array:
        """Returns features [B, channels]."""
        config = self.config
        x_BxC = spec_BTF if config.frequency_as_channels else spec_BTF[..., None]
        x_BxC = x_BxC.astype(config.dtype)
        x_BxC = _conv(config, config.widths[0], config.stem_kernel, config.stem_strides, "stem")(
            x_BxC
        )
        x_BxC = nn.relu(_norm(config, "stem_norm")(x_BxC))
        if config.stem_pool:
            axes = x_BxC.ndim - 2
            x_BxC = nn.max_pool(x_BxC, (3,) * axes, (2,) * axes, padding="SAME")
        stages = zip(config.stage_sizes, config.widths, config.stage_strides, strict=True)
        for stage, (size, width, strides) in enumerate(stages):
            for block in range(size):
                x_BxC = ResidualBlock(
                    config, width, strides if block == 0 else (1, 1), name=f"stage{stage}_{block}"
                )(x_BxC)
        x_BxC = x_BxC.astype(jnp.float32)
        return x_BxC.mean(axis=tuple(range(1, x_BxC.ndim - 1)))


class ResidualBlock(nn.Module):
    """Bottleneck or basic block; the shortcut is projected where shapes differ."""

    config: ResNetConfig
    width: int
    strides: tuple[int, int]

    @nn.compact
    def __call__(self, x_BxC: jax.Array) -> jax.Array:
        config = self.config
        if config.bottleneck:
            kernels, features = ((1, 1), (3, 3), (1, 1)), (self.width, self.width, 4 * self.width)
            strides = ((1, 1), self.strides, (1, 1))
        else:
            kernels, features = ((3, 3), (3, 3)), (self.width, self.width)
            strides = (self.strides, (1, 1))
        y_BxC = x_BxC
        last = len(kernels) - 1
        for i, (kernel, feature, stride) in enumerate(zip(kernels, features, strides, strict=True)):
            y_BxC = _conv(config, feature, kernel, stride, f"conv{i}")(y_BxC)
            # Every block starts as the identity: its last scale is zero.
            y_BxC = _norm(config, f"norm{i}", zero_scale=i == last)(y_BxC)
            if i < last:
                y_BxC = nn.relu(y_BxC)
        if x_BxC.shape != y_BxC.shape:
            x_BxC = _conv(config, features[-1], (1, 1), self.strides, "shortcut")(x_BxC)
            x_BxC = _norm(config, "shortcut_norm")(x_BxC)
        return nn.relu(x_BxC + y_BxC)


def _conv(config: ResNetConfig, features: int, kernel, strides, name: str) -> nn.Conv:
    axes = 1 if config.frequency_as_channels else 2
    return nn.Conv(
        features,
        kernel[:axes],
        strides[:axes],
        padding="SAME",
        use_bias=False,
        kernel_init=nn.initializers.variance_scaling(2.0, "fan_out", "normal"),
        dtype=config.dtype,
        name=name,
    )


def _norm(config: ResNetConfig, name: str, zero_scale: bool = False) -> nn.GroupNorm:
    init = nn.initializers.zeros_init() if zero_scale else nn.initializers.ones_init()
    return nn.GroupNorm(config.norm_groups, scale_init=init, dtype=config.dtype, name=name)
