"""A measurement that starts in seconds: draws around a place."""

import dataclasses
from collections.abc import Callable

import numpy as np


@dataclasses.dataclass(frozen=True, kw_only=True)
class Draws:
    """Numbers around `place`, their mean and their spread; and what it might train."""

    place: float = 0.0
    material: str = "paper"
    train: Callable[..., object] | None = None

    figures = ("mean", "spread")

    def data(self):
        return self.material

    def measure(self, folder, cache, seed):
        cache.mkdir(exist_ok=True)
        with (cache / "seeds").open("a") as file:
            file.write(f"{seed}\n")
        draws_N = self.place + np.random.default_rng(seed).normal(size=20)
        return {"mean": draws_N, "spread": float(draws_N.std())}
