"""How good a model is: figures that papers report, each with its interval."""

from musiclm.evaluation.divergence import kl_divergence
from musiclm.evaluation.frechet import frechet_distance

__all__ = ["frechet_distance", "kl_divergence"]
