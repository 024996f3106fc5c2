"""Fréchet audio distance: how far apart two sets of clips lie in an embedding.

Each set stands for the Gaussian of its mean and covariance (Kilgour et al., arXiv 1812.08466;
MusicLM, section 5.1):

    d² = ‖μ₁ − μ₂‖² + Tr(C₁ + C₂ − 2 (C₁ C₂)^½)

With C = RᵀR, R triangular, Tr (C₁ C₂)^½ is the nuclear norm of R₁ R₂ᵀ. No root of a covariance is
taken, which in f32 is off and fails where a set has fewer vectors than dimensions.

Shapes: N, M vectors or clips, W vectors of a clip, D embedding, K rows of a triangular factor,
min(N, D).
"""

import dataclasses
from collections.abc import Sequence

import numpy as np

from musiclm.evaluation import bootstrap


@dataclasses.dataclass(frozen=True)
class Gaussian:
    """A set of embeddings by its moments, f64.

    Attributes:
      mean_D: the mean.
      root_KD: R with RᵀR the covariance (divided by n - 1).
      n: vectors in the set.
    """

    mean_D: np.ndarray
    root_KD: np.ndarray
    n: int


def fit(x_ND: np.ndarray) -> Gaussian:
    """The Gaussian of a set of embeddings.

    Args:
      x_ND: two vectors or more, of any real type; computed in f64.

    Raises:
      ValueError: the array has another shape, a single vector, or values that are not finite.
    """
    x_ND = np.asarray(x_ND, np.float64)
    if x_ND.ndim != 2 or len(x_ND) < 2 or not x_ND.shape[1]:
        raise ValueError(f"embeddings of shape {x_ND.shape}: give two vectors or more, [N, D]")
    if not np.isfinite(x_ND).all():
        raise ValueError("embeddings hold NaN or infinities: look for silent or damaged clips")
    mean_D = x_ND.mean(axis=0)
    root_KD = np.linalg.qr(x_ND - mean_D, mode="r") / np.sqrt(len(x_ND) - 1)
    return Gaussian(mean_D, root_KD, len(x_ND))


def distance(one: Gaussian, other: Gaussian) -> float:
    """d² of two Gaussians, 0 or more.

    Raises:
      ValueError: their dimensions differ.
    """
    if one.mean_D.shape != other.mean_D.shape:
        raise ValueError(
            f"embeddings of {len(one.mean_D)} and {len(other.mean_D)} dimensions: compare sets of "
            "one embedding"
        )
    spread = np.sum(one.root_KD**2) + np.sum(other.root_KD**2)
    shared = np.linalg.svd(one.root_KD @ other.root_KD.T, compute_uv=False).sum()
    moved = np.sum((one.mean_D - other.mean_D) ** 2)
    return max(0.0, float(moved + spread - 2 * shared))


def frechet_distance(x_ND: np.ndarray, y_MD: np.ndarray) -> float:
    """d² of two sets of embeddings, see the top of the file.

    It falls with the number of vectors: compare figures of sets of one size, or extrapolate
    (`extrapolate`).

    Args:
      x_ND: two vectors or more, of any real type; computed in f64.
      y_MD: the other set.

    Raises:
      ValueError: a set has another shape, a single vector or values that are not finite, or the
        dimensions differ.
    """
    return distance(fit(x_ND), fit(y_MD))


def fit_clips(x_NWD: np.ndarray) -> Gaussian:
    """The Gaussian of all vectors of a set of clips; see `fit`."""
    x_NWD = np.asarray(x_NWD)
    if x_NWD.ndim != 3:
        raise ValueError(f"clips of shape {x_NWD.shape}: give the vectors of each, [N, W, D]")
    return fit(x_NWD.reshape(-1, x_NWD.shape[2]))


def of_clips(reference_MWD: np.ndarray, x_NWD: np.ndarray) -> bootstrap.Estimate:
    """d² of two sets of clips, all vectors of a set pooled, with an interval over clips.

    The interval is a jackknife's, and the reference stays.

    Raises:
      ValueError: as `frechet_distance`, or there are fewer than three clips.
    """
    reference = fit_clips(reference_MWD)
    return bootstrap.jackknife(
        lambda chosen: distance(reference, fit_clips(x_NWD[chosen])), len(x_NWD)
    )


@dataclasses.dataclass(frozen=True)
class Extrapolation:
    """FAD∞ (Chong & Forsyth, arXiv 1911.07023; Gui et al., arXiv 2311.01616).

    Attributes:
      value: the distance at infinitely many clips, by a line over 1 / n.
      slope: of that line: how much a set of n clips is off, times n.
      r_squared: how well the line fits, up to 1.
    """

    value: float
    slope: float
    r_squared: float


def extrapolate(
    reference_MWD: np.ndarray,
    x_NWD: np.ndarray,
    *,
    smallest: int | None = None,
    num_sizes: int = 15,
    seed: int = 0,
) -> Extrapolation:
    """The distance of a set of clips to a reference as it would be with infinitely many clips.

    Subsets of several sizes are drawn without replacement: with it, doubles narrow the covariance
    and bend the line. A clip is drawn with all its vectors: these are alike, and what a small set
    lacks is other clips.

    Args:
      reference_MWD: stays whole.
      x_NWD: the set in question; W is 1 where a clip has a single vector.
      smallest: clips of a subset; None takes a fifth of the set.
      num_sizes: subsets, evenly spaced in size up to the whole set.
      seed: of the draws.

    Raises:
      ValueError: as `frechet_distance`, or the subsets would not be of different sizes.
    """
    reference, x_NWD = fit_clips(reference_MWD), np.asarray(x_NWD, np.float64)
    fit_clips(x_NWD)  # the whole set is checked before any part of it
    smallest = max(2, len(x_NWD) // 5) if smallest is None else smallest
    if num_sizes < 2 or not 2 <= smallest <= len(x_NWD) - num_sizes + 1:
        raise ValueError(
            f"{num_sizes} subsets of {smallest} to {len(x_NWD)} clips: give more clips, or fewer "
            "or smaller subsets"
        )
    rng = np.random.default_rng(seed)
    sizes = np.linspace(smallest, len(x_NWD), num_sizes).round().astype(int)
    distances = np.array(
        [distance(reference, fit_clips(rng.permutation(x_NWD)[:size])) for size in sizes]
    )
    slope, value = np.polyfit(1 / sizes, distances, 1)
    residual = np.sum((distances - (value + slope / sizes)) ** 2)
    total = np.sum((distances - distances.mean()) ** 2)
    return Extrapolation(float(value), float(slope), float(1 - residual / max(total, 1e-300)))


def rank_clips(reference_ND: np.ndarray, clips: Sequence[np.ndarray]) -> np.ndarray:
    """Places of clips from the nearest to the reference to the farthest, int64 [clips].

    By each clip's own distance, whose value means little, since a clip has few vectors: hence
    only the order is given.

    Args:
      reference_ND: embeddings of the reference.
      clips: embeddings of each clip, all of them as many.

    Raises:
      ValueError: as `frechet_distance`, or the clips have different numbers of vectors.
    """
    if len({len(clip) for clip in clips}) > 1:
        raise ValueError("clips of different lengths: their distances can't be compared, cut them")
    reference = fit(reference_ND)
    return np.argsort([distance(reference, fit(clip)) for clip in clips], kind="stable")
