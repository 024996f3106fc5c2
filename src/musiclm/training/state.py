"""What a training step carries from one call to the next."""

from typing import Any

import flax.struct
import jax
import jax.numpy as jnp
import optax

from musiclm.training import optim


@flax.struct.dataclass
class TrainState:
    """One model in training.

    Attributes:
      step: int32 scalar, how many updates have been made.
      params: trainable parameters.
      opt_state: the optimizer's state.
      model_state: the model's other collections, such as EMA codebooks; `{}` if it has none.
    """

    step: jax.Array
    params: Any
    opt_state: optax.OptState
    model_state: Any

    @classmethod
    def create(cls, variables, optimizer: optax.GradientTransformation) -> "TrainState":
        """A fresh state from `module.init`'s variables."""
        model_state = {name: value for name, value in variables.items() if name != "params"}
        params = variables["params"]
        return cls(
            step=jnp.zeros((), jnp.int32),
            params=params,
            opt_state=optimizer.init(params),
            model_state=model_state,
        )

    @property
    def averaged(self) -> Any:
        """The parameters to evaluate and to keep: their average, if the optimizer keeps one."""
        return optim.averaged(self.params, self.opt_state)

    def apply_gradients(
        self, gradients, optimizer: optax.GradientTransformation, model_state=None
    ) -> "TrainState":
        """The state after one update; `model_state` replaces the old one where given."""
        updates, opt_state = optimizer.update(gradients, self.opt_state, self.params)
        return self.replace(
            step=self.step + 1,
            params=optax.apply_updates(self.params, updates),
            opt_state=opt_state,
            model_state=self.model_state if model_state is None else model_state,
        )
