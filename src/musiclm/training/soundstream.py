"""How SoundStream is trained (arXiv 2107.03312, III-D and III-E): one update a step.

A run has up to three phases, told apart by the step alone: without quantisation (the encoder
first learns something worth quantising, else the first codebook collapses), then, from k-means
codebooks on, with it, and with discriminators from their own step on.

Shapes: B batch, T samples or frames, D latent dimension, N = B x frames, Q levels, K entries.
"""

import dataclasses
import functools
import os
from collections.abc import Mapping
from typing import Any

import flax.struct
import jax
import jax.numpy as jnp
import optax
from jax import lax

from musiclm import bundle, errors
from musiclm.losses import adversarial, spectral
from musiclm.models.discriminators import DiscriminatorConfig, Discriminators
from musiclm.models.soundstream import SoundStream, SoundStreamConfig
from musiclm.nn import quantization
from musiclm.training import health, optim

_BALANCED = ("adversarial", "feature", "spectral", "waveform")
# To listen to at an evaluation.
_SOUNDS = 4


@flax.struct.dataclass
class SoundStreamState:
    """Codec, codebooks and discriminators in training.

    Attributes:
      step: int32 scalar, how many updates have been made.
      params: of the codec.
      opt_state: of its optimizer.
      codebooks: the codec's collection "codebooks".
      codebook_stats: moving averages behind them.
      codebook_opt_state: of their optimizer, `()` without.
      latents_MND: the newest M batches of encoder outputs before quantisation starts.
      balancer: moving gradient norms.
      discriminator_params: `{}` without discriminators.
      discriminator_opt_state: of their optimizer.
    """

    step: jax.Array
    params: Any
    opt_state: optax.OptState
    codebooks: Any
    codebook_stats: quantization.CodebookStats
    codebook_opt_state: optax.OptState
    latents_MND: jax.Array
    balancer: adversarial.BalancerState
    discriminator_params: Any
    discriminator_opt_state: Any


@dataclasses.dataclass(frozen=True, kw_only=True)
class SoundStreamTask:
    """Adversarial training from batches {"waveform": f32 [B, T]}, T a multiple of the hop.

    With `config.denoise`, half the examples get noise added, white to brown, and half are asked for
    denoised output, whether or not they are noisy (III-F).

    Attributes:
      config: the codec.
      optimizer: of the codec.
      crop_seconds: length of the waveforms.
      start: a component file, without its suffix, of a codec of the same config, whose weights the
        training starts from; None starts from random ones.
      discriminator: None trains on reconstruction alone.
      discriminator_optimizer: its steps count from `discriminator_start_step`.
      discriminator_start_step: before it, no adversarial or feature loss.
      spectral_loss: the reconstruction loss on spectrograms.
      adversarial_weight, feature_weight, spectral_weight, waveform_weight: of the losses on the
        output; the last is the mean absolute gap of samples. Paper: 1, 100, 1, 0.
      commitment_weight: of the loss that draws latents to their codes.
      balance_gradients: weights are shares of the gradient that reaches the output, see
        `adversarial.balance_gradients`; peers use 4, 4, 2, 0.1 so.
      quantize_from_step: first step with quantisation. Paper: the first of all.
      kmeans_iters: of the codebooks' initialisation.
      kmeans_batches: how many of the last batches it fits; a single small one, the paper's first,
        holds hardly more vectors than a codebook has entries.
      ema_decay: of the codebooks' moving averages.
      codebook_optimizer: learns the codebooks by gradients of `quantization.codebook_loss`, from
        k-means on; its steps count from there. None: entries are moving averages, as in the paper.
      dead_below: moving count a batch under which an entry is replaced; keep it well under N / K.
      quantizer_dropout: share of the examples that use only the first n levels, n ~ U{1..Q}.
      noise_snr_db: range of signal-to-noise ratios, in dB, of denoising.
      min_perplexity: share of the entries; a level whose perplexity is lower stops the run.
      health_patience: logged values in a row that must be out of bounds for that.
    """

    config: SoundStreamConfig
    optimizer: optim.OptimizerConfig
    crop_seconds: float = 1.0
    start: str | None = None
    discriminator: DiscriminatorConfig | None = None
    discriminator_optimizer: optim.OptimizerConfig | None = None
    discriminator_start_step: int = 0
    spectral_loss: spectral.FrameSpectralLoss | spectral.BandSpectralLoss = (
        spectral.FrameSpectralLoss()
    )
    adversarial_weight: float = 1.0
    feature_weight: float = 100.0
    spectral_weight: float = 1.0
    waveform_weight: float = 0.0
    commitment_weight: float = 1.0
    balance_gradients: bool = False
    quantize_from_step: int = 1_000
    kmeans_iters: int = 10
    kmeans_batches: int = 10
    ema_decay: float = 0.99
    codebook_optimizer: optim.OptimizerConfig | None = None
    dead_below: float = 2.0
    quantizer_dropout: float = 1.0
    noise_snr_db: tuple[float, float] = (0.0, 30.0)
    min_perplexity: float = 0.02
    health_patience: int = 5

    def __post_init__(self):
        for field in ("optimizer", "codebook_optimizer"):
            optimizer = getattr(self, field)
            if optimizer is not None and optimizer.ema_decay:
                raise ValueError(
                    f"SoundStreamTask.{field} has ema_decay {optimizer.ema_decay}: give 0, "
                    "codebooks fit the weights as they are, not their average"
                )
        if self.discriminator is not None and self.discriminator_optimizer is None:
            raise ValueError(
                "SoundStreamTask.discriminator_optimizer is None with a discriminator: give its "
                "OptimizerConfig."
            )
        for field in (
            "adversarial_weight", "feature_weight", "spectral_weight", "waveform_weight",
            "commitment_weight", "dead_below",
        ):  # fmt: skip
            if getattr(self, field) < 0:
                raise ValueError(f"SoundStreamTask.{field}={getattr(self, field)}: set 0 or more.")
        for field in ("quantize_from_step", "kmeans_batches", "kmeans_iters"):
            if getattr(self, field) < 1:
                raise ValueError(
                    f"SoundStreamTask.{field}={getattr(self, field)}: set 1 or more; k-means needs "
                    "at least one batch of latents."
                )
        if not 0 <= self.ema_decay < 1:
            raise ValueError(f"SoundStreamTask.ema_decay={self.ema_decay}: set it in [0, 1).")
        if not 0 <= self.quantizer_dropout <= 1:
            raise ValueError(
                f"SoundStreamTask.quantizer_dropout={self.quantizer_dropout}: set it in [0, 1]."
            )

    @property
    def model(self) -> SoundStream:
        """The codec; it holds no arrays."""
        return SoundStream(self.config)

    def batch_spec(self, batch_size: int) -> dict[str, jax.ShapeDtypeStruct]:
        """Crops of sound."""
        shape = (batch_size, round(self.crop_seconds * self.config.sample_rate))
        return {"waveform": jax.ShapeDtypeStruct(shape, jnp.float32)}

    def check_steps(self, num_steps: int) -> None:
        """Sees that the codebooks are born in a run of so many steps.

        Raises:
          UserError: it ends before.
        """
        if num_steps <= self.quantize_from_step:
            raise errors.UserError(
                f"SoundStreamTask.quantize_from_step is {self.quantize_from_step} of {num_steps} "
                "steps, and the codec would have no codebooks: lower it, or train for longer"
            )

    def init(self, key: jax.Array, batch: Mapping[str, Any]) -> SoundStreamState:
        """A fresh state, random even with `start`; of the batch only the shape is read.

        Raises:
          UserError: the length is no multiple of the hop, or k-means would see too few frames.
        """
        config = self.config
        batch_size, num_samples = batch["waveform"].shape
        if num_samples % config.hop_length:
            raise errors.UserError(
                f"Batches of {num_samples} samples are no whole number of hops of "
                f"{config.hop_length}: change the crop's length."
            )
        num_frames = batch_size * num_samples // config.hop_length
        num_fitted = num_frames * self._fitted_batches
        if num_fitted < config.codebook_size:
            raise errors.UserError(
                f"k-means would fit codebook_size={config.codebook_size} entries to {num_fitted} "
                f"frames: raise SoundStreamTask.kmeans_batches (now {self.kmeans_batches}), "
                f"quantize_from_step (now {self.quantize_from_step}) or the batch."
            )
        codec_key, discriminator_key = jax.random.split(key)
        # Sizes do not depend on the length; one hop is the cheapest.
        variables = self.model.init(codec_key, batch["waveform"][:1, : config.hop_length])
        params = variables["params"]
        shape = (config.num_codebooks, config.codebook_size, config.latent_dim)
        discriminator_params, discriminator_opt_state = {}, ()
        if self.discriminator is not None:
            judged = batch["waveform"][:1]
            discriminator_params = Discriminators(self.discriminator).init(
                discriminator_key, judged
            )["params"]
            discriminator_opt_state = self.discriminator_optimizer.make().init(discriminator_params)
        return SoundStreamState(
            step=jnp.zeros((), jnp.int32),
            params=params,
            opt_state=self.optimizer.make().init(params),
            codebooks=variables["codebooks"],
            codebook_stats=quantization.CodebookStats(
                counts_QK=jnp.zeros(shape[:2]), sums_QKD=jnp.zeros(shape)
            ),
            codebook_opt_state=()
            if self.codebook_optimizer is None
            else self.codebook_optimizer.make().init({"centroids_QKD": jnp.zeros(shape)}),
            latents_MND=jnp.zeros((self.kmeans_batches, num_frames, config.latent_dim)),
            balancer=adversarial.BalancerState.create(_BALANCED),
            discriminator_params=discriminator_params,
            discriminator_opt_state=discriminator_opt_state,
        )

    def read_start(self) -> Mapping[str, Any]:
        """The weights of `start`; `{}` if there is none.

        Raises:
          BundleError: it is missing, or a codec of another config.
        """
        if self.start is None:
            return {}
        component = bundle.load_component(*os.path.split(self.start))
        if component.config != self.config:
            raise bundle.BundleError(
                f"SoundStreamTask.start={self.start} is a codec of another config: fit it anew"
            )
        return component.variables["params"]

    def begin(self, state: SoundStreamState, start: Mapping[str, Any]) -> SoundStreamState:
        """The fresh state with the weights that were read, if there are some."""
        return state.replace(params=dict(start)) if start else state

    def step(
        self, state: SoundStreamState, batch: Mapping[str, Any], key: jax.Array
    ) -> tuple[SoundStreamState, dict[str, jax.Array]]:
        """One update of codec, codebooks and, once they take part, discriminators."""
        level_key, noise_key, codebook_key = jax.random.split(key, 3)
        quantize = state.step >= self.quantize_from_step
        # The codebooks are born before the first step that reads them.
        codebooks, stats = lax.cond(
            state.step == self.quantize_from_step,
            lambda: self._init_codebooks(codebook_key, state),
            lambda: (state.codebooks, state.codebook_stats),
        )
        source_BT, target_BT, denoise_B = self._source_and_target(batch["waveform"], noise_key)

        def generate(params):
            output = self.model.apply(
                {"params": params, "codebooks": codebooks}, source_BT,
                num_levels_B=self._num_levels(level_key, source_BT.shape[0]),
                quantize=quantize, denoise_B=denoise_B,
            )  # fmt: skip
            return (output.waveform_BT, output.quantized.commitment), output

        (fake_BT, commitment), pullback, output = jax.vjp(generate, state.params, has_aux=True)
        reconstruction, metrics = self._reconstruction(target_BT, fake_BT)
        judged, discriminator_params, discriminator_opt_state, judged_metrics = self._judge(
            state, target_BT, fake_BT
        )
        gradient_BT, balancer = self._combine(state, reconstruction | judged)
        commitment_share = jnp.where(quantize, self.commitment_weight, 0.0)
        (gradients,) = pullback((gradient_BT, commitment_share))
        updates, opt_state = self.optimizer.make().update(gradients, state.opt_state, state.params)

        codebooks, stats, codebook_opt_state = lax.cond(
            quantize,
            lambda: self._update_codebooks(
                codebook_key, codebooks, stats, state.codebook_opt_state, output.quantized
            ),
            lambda: (codebooks, stats, state.codebook_opt_state),
        )
        latents_ND = output.latents_BTD.reshape(state.latents_MND.shape[1:])
        slot = jnp.where(quantize, 0, state.step % self.kmeans_batches)
        kept_ND = jnp.where(quantize, state.latents_MND[0], latents_ND)
        metrics |= judged_metrics | self._codebook_metrics(quantize, stats)
        metrics["commitment"] = commitment
        metrics["loss"] = (
            self.spectral_weight * metrics["spectral"]
            + self.waveform_weight * metrics["waveform"]
            + commitment_share * commitment
        )
        metrics["gradient_norm"] = optax.tree.norm(gradients)
        metrics["learning_rate"] = self.optimizer.rate(state.step)
        return state.replace(
            step=state.step + 1,
            params=optax.apply_updates(state.params, updates),
            opt_state=opt_state,
            codebooks=codebooks,
            codebook_stats=stats,
            codebook_opt_state=codebook_opt_state,
            latents_MND=state.latents_MND.at[slot].set(kept_ND),
            balancer=balancer,
            discriminator_params=discriminator_params,
            discriminator_opt_state=discriminator_opt_state,
        ), metrics

    def evaluate(
        self, state: SoundStreamState, batch: Mapping[str, Any], key: jax.Array
    ) -> dict[str, jax.Array]:
        """Reconstruction figures through all levels and through the first half of them.

        Up to `quantize_from_step` there are no codebooks, and the figures are of what is not
        quantised, better than any codec of the run; `loop.train.keep_best` does not know that.
        """
        target_BT = batch["waveform"]
        variables = {"params": state.params, "codebooks": state.codebooks}
        quantize = self._has_codebooks(state)
        metrics = {}
        half = max(1, self.config.num_codebooks // 2)
        for suffix, levels in (("", self.config.num_codebooks), (f"_{half}_levels", half)):
            output = self.model.apply(
                variables, target_BT, num_levels_B=jnp.full(target_BT.shape[0], levels),
                quantize=quantize,
            )  # fmt: skip
            fake_BT = output.waveform_BT
            metrics["log_mel_distance_db" + suffix] = spectral.log_mel_distance_db(
                target_BT, fake_BT, self.config.sample_rate
            ).mean()
            metrics["si_sdr_db" + suffix] = spectral.si_sdr_db(target_BT, fake_BT).mean()
            metrics["spectral" + suffix] = self.spectral_loss(
                target_BT, fake_BT, self.config.sample_rate
            )
        return metrics

    def forward(
        self, state: SoundStreamState, batch: Mapping[str, Any], key: jax.Array
    ) -> tuple[Any, ...]:
        """Codec, reconstruction loss, and the discriminators on what goes in and comes out."""
        del key
        target_BT = batch["waveform"]
        variables = {"params": state.params, "codebooks": state.codebooks}
        output = self.model.apply(variables, target_BT)
        loss = self.spectral_loss(target_BT, output.waveform_BT, self.config.sample_rate)
        if self.discriminator is None:
            return output, loss
        judge = functools.partial(
            Discriminators(self.discriminator).apply, {"params": state.discriminator_params}
        )
        return output, loss, judge(target_BT), judge(output.waveform_BT)

    @property
    def sample_rate(self) -> int:
        """Of `sounds`, in Hz."""
        return self.config.sample_rate

    def sounds(self, state: SoundStreamState, batch: Mapping[str, Any]) -> dict[str, jax.Array]:
        """The first few waveforms of a batch, and what the codec makes of them."""
        original_NT = batch["waveform"][:_SOUNDS]
        variables = {"params": state.params, "codebooks": state.codebooks}
        output = self.model.apply(variables, original_NT, quantize=self._has_codebooks(state))
        return {"original": original_NT, "reconstruction": output.waveform_BT}

    def export(self, state: SoundStreamState) -> tuple[SoundStreamConfig, dict[str, Any]]:
        """The codec alone: config, and variables for `SoundStream.apply`."""
        return self.config, {"params": state.params, "codebooks": state.codebooks}

    def health(self) -> tuple[health.HealthCheck, ...]:
        """Gates for collapsed codebooks and a runaway discriminator."""
        fewest = self.min_perplexity * self.config.codebook_size
        # Moving averages need a few time constants after k-means.
        settled = self.quantize_from_step + int(5 / (1 - self.ema_decay))
        return (
            health.HealthCheck(
                metric="codebook_perplexity_min",
                breached=lambda value: value < fewest,
                bound=f"at least {fewest:.3g} of {self.config.codebook_size} entries a level",
                after_step=settled,
                patience=self.health_patience,
                advice="A codebook has collapsed. Raise quantize_from_step so that k-means sees a "
                "trained encoder, raise kmeans_batches or dead_below, or lower commitment_weight",
            ),
            health.HealthCheck(
                metric="dead_codes",
                breached=lambda value: value > 0.8,
                bound="at most 0.8 of the entries",
                after_step=settled,
                patience=self.health_patience,
                advice="Hardly any entry is chosen. Lower dead_below well under the frames of a "
                "batch over codebook_size, enlarge the batch, or use a smaller codebook",
            ),
            health.HealthCheck(
                metric="generator_discriminator_ratio",
                breached=lambda value: value > 100.0,
                bound="generator's adversarial loss at most 100 times the discriminators'",
                after_step=self.discriminator_start_step + 500,
                patience=self.health_patience,
                advice="The discriminators always win, so they teach nothing. Lower their "
                "learning_rate or sizes, start them later, or set balance_gradients",
            ),
            health.HealthCheck(
                metric="discriminator",
                breached=lambda value: value > 100.0,
                bound="at most 100 (2 where they can't tell)",
                after_step=self.discriminator_start_step + 500,
                patience=self.health_patience,
                advice="The discriminators run away. Lower their learning_rate, or give their "
                "optimizer a clip_norm",
            ),
        )

    @property
    def _fitted_batches(self) -> int:
        """Whose latents k-means sees."""
        return min(self.kmeans_batches, self.quantize_from_step)

    def _has_codebooks(self, state):
        return state.step > self.quantize_from_step

    def _source_and_target(self, clean_BT, key):
        if not self.config.denoise:
            return clean_BT, clean_BT, None
        snr_key, noisy_key, denoise_key, noise_key = jax.random.split(key, 4)
        noise_BT = _noise(noise_key, clean_BT.shape)
        column = (clean_BT.shape[0], 1)
        low, high = self.noise_snr_db
        snr_db_B1 = jax.random.uniform(snr_key, column, minval=low, maxval=high)
        clean_rms_B1, noise_rms_B1 = (
            jnp.sqrt(jnp.mean(x_BT**2, axis=-1, keepdims=True) + 1e-10)
            for x_BT in (clean_BT, noise_BT)
        )
        gain_B1 = clean_rms_B1 / noise_rms_B1 * 10 ** (-snr_db_B1 / 20)
        noisy_B1 = jax.random.bernoulli(noisy_key, 0.5, column)
        denoise_B1 = jax.random.bernoulli(denoise_key, 0.5, column)
        source_BT = clean_BT + jnp.where(noisy_B1, gain_B1, 0.0) * noise_BT
        return source_BT, jnp.where(denoise_B1, clean_BT, source_BT), denoise_B1[:, 0]

    def _num_levels(self, key, batch_size):
        """Levels in use, per example: quantizer dropout."""
        drop_key, level_key = jax.random.split(key)
        num_codebooks = self.config.num_codebooks
        dropped_B = jax.random.bernoulli(drop_key, self.quantizer_dropout, (batch_size,))
        fewer_B = jax.random.randint(level_key, (batch_size,), 1, num_codebooks + 1)
        return jnp.where(dropped_B, fewer_B, num_codebooks)

    def _reconstruction(self, target_BT, fake_BT):
        """Gradients of the reconstruction losses with respect to the output, and the losses."""

        def spectral_loss(fake_BT):
            return self.spectral_loss(target_BT, fake_BT, self.config.sample_rate)

        def waveform_loss(fake_BT):
            return jnp.mean(jnp.abs(target_BT - fake_BT))

        losses, gradients = {}, {}
        losses["spectral"], gradients["spectral"] = jax.value_and_grad(spectral_loss)(fake_BT)
        losses["waveform"], gradients["waveform"] = jax.value_and_grad(waveform_loss)(fake_BT)
        return gradients, losses

    def _judge(self, state, target_BT, fake_BT):
        """Updates the discriminators and asks them for gradients with respect to the output.

        Of each loss alone if they are to be balanced, else of their sum: one way back less.
        """
        if self.discriminator is None:
            return {}, state.discriminator_params, state.discriminator_opt_state, {}
        model, optimizer = Discriminators(self.discriminator), self.discriminator_optimizer.make()
        shares = {"judged": (self.adversarial_weight, self.feature_weight)}
        if self.balance_gradients:
            shares = {"adversarial": (1.0, 0.0), "feature": (0.0, 1.0)}

        def losses(params, fake_BT):
            real = model.apply({"params": params}, target_BT)
            fake = model.apply({"params": params}, fake_BT)
            (real_logits, real_features), (fake_logits, fake_features) = (
                zip(*judgements, strict=True) for judgements in (real, fake)
            )
            return (
                adversarial.discriminator_hinge(real_logits, fake_logits),
                adversarial.generator_hinge(fake_logits),
                adversarial.feature_matching(real_features, fake_features),
            )

        def judge():
            params = state.discriminator_params
            (discriminator, generator, feature), pullback = jax.vjp(losses, params, fake_BT)
            one, zero = jnp.ones(()), jnp.zeros(())
            gradients, _ = pullback((one, zero, zero))
            updates, opt_state = optimizer.update(gradients, state.discriminator_opt_state, params)
            wanted = {
                name: pullback((zero, adversarial_share * one, feature_share * one))[1]
                for name, (adversarial_share, feature_share) in shares.items()
            }
            metrics = {
                "discriminator": discriminator,
                "adversarial": generator,
                "feature": feature,
                "generator_discriminator_ratio": generator / jnp.maximum(discriminator, 1e-6),
            }
            return wanted, optax.apply_updates(params, updates), opt_state, metrics

        def abstain():
            metrics = ("discriminator", "adversarial", "feature", "generator_discriminator_ratio")
            return (
                {name: jnp.zeros_like(fake_BT) for name in shares},
                state.discriminator_params,
                state.discriminator_opt_state,
                {name: jnp.zeros(()) for name in metrics},
            )

        return lax.cond(state.step >= self.discriminator_start_step, judge, abstain)

    def _combine(self, state, gradients):
        """One gradient with respect to the output, by shares or by plain weights."""
        started = jnp.where(state.step >= self.discriminator_start_step, 1.0, 0.0)
        weights = {
            "spectral": self.spectral_weight,
            "waveform": self.waveform_weight,
            "adversarial": self.adversarial_weight * started,
            "feature": self.feature_weight * started,
            "judged": started,  # has these two weights in it
        }
        if not self.balance_gradients:
            return sum(weights[name] * g for name, g in gradients.items()), state.balancer
        total, balancer = adversarial.balance_gradients(gradients, weights, state.balancer)
        # Losses that this task lacks keep their (unused) averages: the state's shape is fixed.
        return total, adversarial.BalancerState(
            norms=state.balancer.norms | balancer.norms,
            weights=state.balancer.weights | balancer.weights,
        )

    def _init_codebooks(self, key, state):
        _, num_frames, dim = state.latents_MND.shape
        latents_ND = state.latents_MND[: self._fitted_batches].reshape(-1, dim)
        centroids_QKD, stats = quantization.init_codebooks(
            key, latents_ND, num_codebooks=self.config.num_codebooks,
            codebook_size=self.config.codebook_size, num_iters=self.kmeans_iters,
            batch_vectors=num_frames,
        )  # fmt: skip
        bounds_2D = jnp.stack([latents_ND.min(axis=0), latents_ND.max(axis=0)])
        return {"quantizer": {"centroids_QKD": centroids_QKD, "bounds_2D": bounds_2D}}, stats

    def _update_codebooks(self, key, codebooks, stats, opt_state, quantized):
        """One step, of moving averages or of the optimizer, on all levels of all examples.

        Levels that quantizer dropout left out of the output count too: their residuals are what
        the full codec quantises, and the last codebooks would else see a fraction of the data.
        """
        num_levels, dim = quantized.codes_QBT.shape[0], quantized.residuals_QBTD.shape[-1]
        centroids_QKD = codebooks["quantizer"]["centroids_QKD"]
        residuals_QND = quantized.residuals_QBTD.reshape(num_levels, -1, dim)
        codes_QN = quantized.codes_QBT.reshape(num_levels, -1)
        if self.codebook_optimizer is None:
            centroids_QKD, stats = quantization.update_codebooks(
                key, centroids_QKD, stats, residuals_QND, codes_QN, decay=self.ema_decay,
                dead_below=self.dead_below,
            )  # fmt: skip
        else:
            centroids = {"centroids_QKD": centroids_QKD}
            gradients = jax.grad(
                lambda c: quantization.codebook_loss(c["centroids_QKD"], residuals_QND, codes_QN)
            )(centroids)
            updates, opt_state = self.codebook_optimizer.make().update(
                gradients, opt_state, centroids
            )
            # Counts are kept all the same: they tell which entries are dead.
            stats = quantization.update_stats(stats, residuals_QND, codes_QN, decay=self.ema_decay)
            centroids_QKD, stats = quantization.replace_dead(
                key, centroids_QKD + updates["centroids_QKD"], stats, residuals_QND,
                dead_below=self.dead_below,
            )  # fmt: skip
        low_D, high_D = codebooks["quantizer"]["bounds_2D"]
        values_BTD = quantized.values_BTD
        bounds_2D = jnp.stack(
            [
                jnp.minimum(low_D, values_BTD.min(axis=(0, 1))),
                jnp.maximum(high_D, values_BTD.max(axis=(0, 1))),
            ]
        )
        codebooks = {"quantizer": {"centroids_QKD": centroids_QKD, "bounds_2D": bounds_2D}}
        return codebooks, stats, opt_state

    def _codebook_metrics(self, quantize, stats):
        size = self.config.codebook_size
        perplexity_Q = quantization.perplexity(stats.counts_QK)
        # A replaced entry starts at twice the bar and only use can lift it above.
        dead = jnp.mean(stats.counts_QK <= 2 * self.dead_below)
        return {
            "codebook_perplexity": jnp.where(quantize, perplexity_Q.mean(), size),
            "codebook_perplexity_min": jnp.where(quantize, perplexity_Q.min(), size),
            "dead_codes": jnp.where(quantize, dead, 0.0),
        }


def _noise(key, shape):
    """Noise `[B, T]` whose power falls by 0 to 6 dB an octave: white to brown, another a row."""
    colour_key, white_key = jax.random.split(key)
    fall_B1 = jax.random.uniform(colour_key, (shape[0], 1), minval=0.0, maxval=2.0)
    spectrum_BF = jnp.fft.rfft(jax.random.normal(white_key, shape))
    bins_F = jnp.maximum(1, jnp.arange(spectrum_BF.shape[1]))
    return jnp.fft.irfft(spectrum_BF * bins_F ** (-fall_B1 / 2), n=shape[1])
