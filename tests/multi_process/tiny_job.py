"""A job that starts in seconds: a perceptron with sharded kernels, rows made by their numbers."""

import dataclasses
import sys
import time

import jax
import jax.numpy as jnp
import numpy as np

from musiclm.training import health, optim
from musiclm.training.state import TrainState

DIM = 16


@dataclasses.dataclass(frozen=True, kw_only=True)
class Perceptron:
    """Learns a fixed map; adds noise from the step's key, so that a wrong key shows."""

    optimizer: optim.OptimizerConfig = optim.OptimizerConfig(
        learning_rate=0.01, warmup_steps=0, schedule="constant", ema_decay=0.9
    )
    dim: int = DIM
    seconds_to_build: float = 0.0
    highest_loss: float | None = None

    def batch_spec(self, batch_size):
        time.sleep(self.seconds_to_build)
        return dict.fromkeys("xy", jax.ShapeDtypeStruct((batch_size, self.dim), jnp.float32))

    def init(self, key, batch):
        shape = (self.dim, self.dim)
        layers = {
            name: {"kernel": jax.random.normal(jax.random.fold_in(key, i), shape) / 4}
            for i, name in enumerate(("up", "down"))
        }
        return TrainState.create({"params": layers}, self.optimizer.make())

    def loss(self, params, batch):
        hidden = jnp.tanh(batch["x"] @ params["up"]["kernel"])
        return jnp.mean((hidden @ params["down"]["kernel"] - batch["y"]) ** 2)

    def forward(self, state, batch, key):
        return self.loss(state.params, batch)

    def step(self, state, batch, key):
        loss, gradients = jax.value_and_grad(self.loss)(state.params, batch)
        gradients = jax.tree.map(lambda g: g + 1e-3 * jax.random.normal(key, g.shape), gradients)
        return state.apply_gradients(gradients, self.optimizer.make()), {"loss": loss}

    def evaluate(self, state, batch, key):
        return {"loss": self.loss(state.averaged, batch)}

    @property
    def sample_rate(self):
        return 16_000

    def sounds(self, state, batch):
        # Long enough for a spectrum.
        return {"rows": jnp.tile(batch["x"][:2], (1, 100))}

    def export(self, state):
        return {}, {"params": state.averaged}

    def health(self):
        if self.highest_loss is None:
            return ()
        return (
            health.HealthCheck(
                metric="loss",
                breached=lambda loss: loss > self.highest_loss,
                bound=f"above {self.highest_loss}",
                advice="Raise it.",
            ),
        )


def rows(
    *,
    seed,
    batch_size,
    start_step,
    places,
    num_places,
    seconds_a_step=0.0,
    dim=DIM,
    seconds_to_open=0.0,
    fails_at=None,
):
    """A host's rows of each batch, at a pace at which a test can get between."""
    print("opened", file=sys.stderr, flush=True)
    time.sleep(seconds_to_open)
    share = batch_size // num_places
    step = start_step
    while True:
        if step == fails_at:
            raise RuntimeError(f"row {step} can't be read")
        numbers = [step * batch_size + p * share + i for p in places for i in range(share)]
        x = np.stack([np.random.default_rng((seed, n)).normal(size=dim) for n in numbers])
        time.sleep(seconds_a_step)
        yield {"x": x.astype(np.float32), "y": np.sin(x).astype(np.float32)}
        step += 1
