"""w2v-BERT (Chung et al. 2021): the model whose middle layer becomes the semantic tokens.

    log-mel 100 Hz -> two convolutions, stride 2 -> 25 Hz -> masked -> linear
      -> conformer half 1 -> context vectors        (contrastive loss)
      -> conformer half 2 -> logits over the codes  (masked prediction)
    the unmasked features -> quantizer -> vectors and ids, the targets of the two

Shapes: B batch, T samples, N frames at 25 Hz, F conv features, D model width, C codebook width,
K codes.
"""

import dataclasses
import functools

import flax.struct
import jax
import jax.numpy as jnp
from flax import linen as nn

from musiclm import audio
from musiclm.nn import conformer

_MEL_FRAME_RATE = 100
_CONV_STRIDES = (2, 2)
_LOGIT_SCALE = 10.0  # standard deviation of the quantizer's logits before training


@dataclasses.dataclass(frozen=True, kw_only=True)
class W2vBertConfig:
    """Sizes of a w2v-BERT; the defaults are the XL model (0.6 B) of MusicLM.

    Attributes:
      sample_rate: of the waveform in Hz, a multiple of 100; others are resampled before.
      num_mels: mel bands, a multiple of 4.
      mel_window_size: samples of the Hann window; the hop is always 10 ms. Music gains from
        more than the 25 ms usual for speech: 31 Hz a bin does not part low semitones.
      mel_floor: added to the mel magnitudes before the logarithm.
      conv_channels: of the two 3×3 convolutions (the paper does not say).
      model_dim, num_heads, ffn_dim, conv_kernel, dropout: of every conformer block.
      contrastive_blocks: conformer blocks of the first half.
      mlm_blocks: conformer blocks of the second half.
      mask_deviation: of the random vectors in hidden places; features have deviation 1. Less
        lets a short run learn sooner: the noise spreads to the frames around.
      codebook_size: codes K.
      codebook_dim: width C of a code's vector, and of the context compared with it.
      feature_layer: block of the second half whose output `features` returns, counted from 1;
        0 is the output of the first half.
      remat, remat_keeps: recompute block activations in the backward pass, and what is kept all
        the same: "nothing", or the "products" with weights.
      dtype: of the computation, "float32" or "bfloat16".
    """

    sample_rate: int = 16_000
    num_mels: int = 80
    mel_window_size: int = 400
    mel_floor: float = 1e-3
    conv_channels: tuple[int, int] = (128, 32)
    model_dim: int = 1024
    num_heads: int = 8
    ffn_dim: int = 4096
    conv_kernel: int = 5
    dropout: float = 0.1
    contrastive_blocks: int = 12
    mlm_blocks: int = 12
    mask_deviation: float = 1.0
    codebook_size: int = 1024
    codebook_dim: int = 1024
    feature_layer: int = 7
    remat: bool = False
    remat_keeps: str = "nothing"
    dtype: str = "float32"

    def __post_init__(self):
        if self.sample_rate < 1 or self.sample_rate % _MEL_FRAME_RATE:
            raise ValueError(
                f"W2vBertConfig.sample_rate {self.sample_rate} must be a multiple of "
                f"{_MEL_FRAME_RATE}, so that a mel frame is a whole number of samples"
            )
        if self.num_mels < 1 or self.num_mels % 4:
            raise ValueError(
                f"W2vBertConfig.num_mels {self.num_mels} must be a positive multiple of 4: the "
                "two convolutions halve it twice"
            )
        if len(self.conv_channels) != len(_CONV_STRIDES) or min(self.conv_channels) < 1:
            raise ValueError(
                f"W2vBertConfig.conv_channels {self.conv_channels}: give two positive numbers"
            )
        if not self.mel_floor > 0:
            raise ValueError(f"W2vBertConfig.mel_floor {self.mel_floor} must be above 0")
        for field in ("codebook_size", "codebook_dim"):
            if getattr(self, field) < 2:
                raise ValueError(f"W2vBertConfig.{field} {getattr(self, field)}: give 2 or more")
        if not 0 <= self.feature_layer <= self.mlm_blocks:
            raise ValueError(
                f"W2vBertConfig.feature_layer {self.feature_layer} must lie in 0 to mlm_blocks "
                f"({self.mlm_blocks})"
            )
        # JSON gives a list; a config is compared and hashed.
        object.__setattr__(self, "conv_channels", tuple(self.conv_channels))
        # The conformer's own checks name what is wrong with the rest.
        self.half(self.contrastive_blocks)
        self.half(self.mlm_blocks)

    @property
    def hop_length(self) -> int:
        """Samples of one 25 Hz frame."""
        return self.sample_rate // _MEL_FRAME_RATE * _CONV_STRIDES[0] * _CONV_STRIDES[1]

    @property
    def frame_rate(self) -> int:
        """Frames a second."""
        return self.sample_rate // self.hop_length

    @property
    def mel(self) -> audio.MelConfig:
        """The log-mel front end."""
        return audio.MelConfig(
            sample_rate=self.sample_rate,
            num_mels=self.num_mels,
            window_size=self.mel_window_size,
            hop_size=self.sample_rate // _MEL_FRAME_RATE,
            floor=self.mel_floor,
        )

    def half(self, num_blocks: int) -> conformer.ConformerConfig:
        """A conformer half of that many blocks."""
        return conformer.ConformerConfig(
            num_blocks=num_blocks,
            model_dim=self.model_dim,
            num_heads=self.num_heads,
            ffn_dim=self.ffn_dim,
            conv_kernel=self.conv_kernel,
            dropout=self.dropout,
            remat=self.remat,
            remat_keeps=self.remat_keeps,
            dtype=self.dtype,
        )


@flax.struct.dataclass
class Quantized:
    """What the quantizer makes of each frame.

    Attributes:
      vectors_BNC: the code's vector; its gradient reaches the logits straight through.
      ids_BN: int32, the likeliest code, without the Gumbel noise.
      probs_BNK: softmax of the logits, without noise.
    """

    vectors_BNC: jax.Array
    ids_BN: jax.Array
    probs_BNK: jax.Array


@flax.struct.dataclass
class W2vBertOutput:
    """What the losses need.

    Attributes:
      context_BNC: the first half's output, projected to the codebook's width.
      mlm_logits_BNK: f32, the second half's prediction of each frame's code.
      targets: the quantized unmasked features.
    """

    context_BNC: jax.Array
    mlm_logits_BNK: jax.Array
    targets: Quantized


class W2vBert(nn.Module):
    """The whole model. `__call__` serves training, `features` everything later."""

    config: W2vBertConfig

    def setup(self):
        cfg = self.config
        self.encoder = FeatureEncoder(cfg)
        self.standardize = nn.BatchNorm(
            momentum=0.99, epsilon=1e-2, use_bias=False, use_scale=False, dtype=jnp.float32
        )
        self.projection = nn.Dense(cfg.model_dim, dtype=cfg.dtype)
        self.contrastive_half = conformer.ConformerStack(cfg.half(cfg.contrastive_blocks))
        self.mlm_half = conformer.ConformerStack(cfg.half(cfg.mlm_blocks))
        self.quantizer = GumbelQuantizer(cfg.codebook_size, cfg.codebook_dim)
        self.context_head = nn.Dense(cfg.codebook_dim, dtype=cfg.dtype)
        self.mlm_head = nn.Dense(
            cfg.codebook_size,
            dtype=cfg.dtype,
            dot_general=functools.partial(jax.lax.dot_general, preferred_element_type=jnp.float32),
        )

    def __call__(
        self,
        waveform_BT: jax.Array,
        mask_BN: jax.Array,
        temperature: jax.Array | float,
        *,
        deterministic: bool,
    ) -> W2vBertOutput:
        """Predicts the codes of masked frames.

        Unless deterministic, the features are standardised by the batch and their moving averages
        updated: make the collection "batch_stats" mutable.

        Args:
          waveform_BT: f32 [B, T] at `config.sample_rate`.
          mask_BN: bool [B, T // hop_length], true where the input is hidden.
          temperature: of the Gumbel softmax; unused when deterministic.
          deterministic: neither dropout nor Gumbel noise. The random stream "mask" is read
            always (the vectors in the hidden places), "gumbel" and "dropout" when false.

        Returns:
          A `W2vBertOutput`.
        """
        features_BNF = self.encode(waveform_BT, deterministic=deterministic)
        return self.predict(features_BNF, mask_BN, temperature, deterministic=deterministic)

    def predict(
        self,
        features_BNF: jax.Array,
        mask_BN: jax.Array,
        temperature: jax.Array | float,
        *,
        deterministic: bool,
    ) -> W2vBertOutput:
        """As when called, from the unmasked features f32 [B, N, F] of `encode`."""
        cfg = self.config
        noise_BNF = jax.random.normal(self.make_rng("mask"), features_BNF.shape)
        seen_BNF = jnp.where(mask_BN[..., None], cfg.mask_deviation * noise_BNF, features_BNF)
        context_BND = self.contrastive_half(self.projection(seen_BNF), deterministic=deterministic)
        predicted_BND = self.mlm_half(context_BND, deterministic=deterministic)
        return W2vBertOutput(
            context_BNC=self.context_head(context_BND),
            mlm_logits_BNK=self.mlm_head(predicted_BND),
            targets=self.quantizer(features_BNF, temperature, deterministic=deterministic),
        )

    def encode(self, waveform_BT: jax.Array, *, deterministic: bool = True) -> jax.Array:
        """Conv features f32 [B, T // hop_length, F] of the unmasked waveform, standardised.

        Most of a feature is the average spectrum, which says nothing. Unless it is taken off, all
        frames fall on few codes, and the noise of hidden frames drowns what differs between the
        others.

        Raises:
          ValueError: T is below `config.hop_length`.
        """
        return self.standardize(self.encoder(waveform_BT), use_running_average=deterministic)

    def features(self, waveform_BT: jax.Array, layer: int | None = None) -> jax.Array:
        """Features for the semantic tokens; nothing is masked, nothing random.

        Args:
          waveform_BT: f32 [B, T] at `config.sample_rate`, T at least `config.hop_length`.
          layer: block of the masked-prediction half, counted from 1 (0: the output of the
            contrastive half); `config.feature_layer` if left out. The blocks above don't run.

        Returns:
          f32 [B, T // hop_length, model_dim]: 25 frames a second.

        Raises:
          ValueError: no such layer, or T below one frame.
        """
        layer = self.config.feature_layer if layer is None else layer
        x_BND = self.projection(self.encode(waveform_BT))
        context_BND = self.contrastive_half(x_BND, deterministic=True)
        return self.mlm_half.first(context_BND, layer).astype(jnp.float32)


class FeatureEncoder(nn.Module):
    """Log-mel and two strided 2-D convolutions: [B, T] to [B, T // hop_length, F]."""

    config: W2vBertConfig

    @nn.compact
    def __call__(self, waveform_BT):
        cfg = self.config
        num_frames = waveform_BT.shape[-1] // cfg.hop_length
        if not num_frames:
            raise ValueError(
                f"a waveform of {waveform_BT.shape[-1]} samples holds no frame of "
                f"{cfg.hop_length}: pad it"
            )
        mel_BNM = audio.log_mel(waveform_BT[..., : num_frames * cfg.hop_length], cfg.mel)
        # Silence becomes 0, the value with which the convolutions pad; full scale about 3.
        x_BNMC = ((mel_BNM - jnp.log(cfg.mel_floor)) / 4.0)[..., None].astype(cfg.dtype)
        for i, channels in enumerate(cfg.conv_channels):
            conv = nn.Conv(channels, (3, 3), _CONV_STRIDES, dtype=cfg.dtype, name=f"conv_{i}")
            x_BNMC = nn.relu(conv(x_BNMC))
        features_BNF = x_BNMC.reshape(*x_BNMC.shape[:2], -1)
        return nn.LayerNorm(dtype=cfg.dtype, name="norm")(features_BNF)


class GumbelQuantizer(nn.Module):
    """Chooses one code a frame, differentiably (Gumbel softmax, straight-through)."""

    codebook_size: int
    codebook_dim: int

    @nn.compact
    def __call__(self, features_BNF, temperature, *, deterministic: bool) -> Quantized:
        """[B, N, F] to a `Quantized`; everything here is computed in float32."""
        # Logits well above the Gumbel noise: codes follow the sound from the first step, as under
        # a random-projection quantizer. Below it they are drawn at random, nothing can predict
        # them, and the logits only shrink further. The factor stands outside the kernel, whose
        # unit weights Adam's steps then turn slowly: targets must not run from the predictor.
        logits = nn.Dense(
            self.codebook_size, kernel_init=nn.initializers.normal(1.0), name="logits"
        )
        logits_BNK = logits(features_BNF) * (_LOGIT_SCALE * features_BNF.shape[-1] ** -0.5)
        codebook_KC = self.param(
            "codebook", nn.initializers.normal(1.0), (self.codebook_size, self.codebook_dim)
        )
        ids_BN = logits_BNK.argmax(-1)
        if deterministic:
            vectors_BNC = codebook_KC[ids_BN]
        else:
            noise_BNK = jax.random.gumbel(self.make_rng("gumbel"), logits_BNK.shape)
            soft_BNK = jax.nn.softmax((logits_BNK + noise_BNK) / temperature)
            hard_BNK = jax.nn.one_hot(soft_BNK.argmax(-1), self.codebook_size)
            vectors_BNC = (hard_BNK + soft_BNK - jax.lax.stop_gradient(soft_BNK)) @ codebook_KC
        return Quantized(
            vectors_BNC=vectors_BNC,
            ids_BN=ids_BN.astype(jnp.int32),
            probs_BNK=jax.nn.softmax(logits_BNK),
        )
