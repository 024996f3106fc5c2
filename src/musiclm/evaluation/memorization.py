"""How much of its training data a semantic stage gives back (MusicLM, section 5.4).

The stage is given a training example's MuLan codes and its first semantic tokens, and goes on
greedily. What comes is compared with how the example goes on: token by token, and as histograms,
by the cost of moving one onto the other between the clusters that the tokens stand for.

Shapes: N examples, T tokens, K clusters, D width of their centroids, P pairs.
"""

import dataclasses
from collections.abc import Callable, Sequence

import numpy as np
import scipy.optimize

from musiclm.evaluation import bootstrap, threads

TOKENS = 125  # compared of each example: 5 s
PERMUTED_PAIRS = 30_000  # to find the threshold with, at least
FALSE_POSITIVES = 1e-4


def transport_costs(
    one_NT: np.ndarray,
    other_NT: np.ndarray,
    centroids_KD: np.ndarray,
    *,
    progress: Callable[[int], None] | None = None,
) -> np.ndarray:
    """Cost of moving one row's tokens onto the other's, f64 [N].

    Moving a token costs the Euclidean distance between the centroids. Costs are multiples of the
    mean distance of two centroids. Every token carries 1/T, so that the cheapest way is an
    assignment, found exactly; the paper comes near it by Sinkhorn's algorithm.

    Args:
      one_NT: semantic tokens.
      other_NT: row i is compared with row i.
      centroids_KD: of the clusters, as the tokenizer has them (standardised).
      progress: called with 1 after each pair.

    Raises:
      ValueError: the shapes differ, or a token is no cluster.
    """
    one_NT, other_NT = np.asarray(one_NT), np.asarray(other_NT)
    if one_NT.shape != other_NT.shape or one_NT.ndim != 2 or not one_NT.size:
        raise ValueError(f"tokens {one_NT.shape} and {other_NT.shape}: give pairs of one length")
    tokens = np.concatenate([one_NT, other_NT])
    if tokens.min() < 0 or tokens.max() >= len(centroids_KD):
        raise ValueError(
            f"tokens from {tokens.min()} to {tokens.max()} of {len(centroids_KD)} clusters: give "
            "the centroids of the tokenizer that made them"
        )
    distance_KK = _distances(np.asarray(centroids_KD, np.float64))

    def cost(pair: tuple[np.ndarray, np.ndarray]) -> float:
        one_T, other_T = pair
        cost_TT = distance_KK[one_T[:, None], other_T]
        return cost_TT[scipy.optimize.linear_sum_assignment(cost_TT)].mean()

    return np.array(list(threads.each(cost, zip(one_NT, other_NT, strict=True), progress)))


def _distances(centroids_KD: np.ndarray) -> np.ndarray:
    """Euclidean, as multiples of the mean between two different clusters, [K, K]."""
    square_K = np.sum(centroids_KD**2, axis=1)
    squared_KK = square_K[:, None] + square_K - 2 * centroids_KD @ centroids_KD.T
    distance_KK = np.sqrt(np.maximum(squared_KK, 0.0))
    np.fill_diagonal(distance_KK, 0.0)
    num_clusters = len(distance_KK)
    return distance_KK / (distance_KK.sum() / (num_clusters * (num_clusters - 1)))


def permuted_pairs(num_examples: int, num_pairs: int, *, seed: int = 0) -> np.ndarray:
    """Pairs of two different examples, int64 [P, 2].

    Raises:
      ValueError: there are not two examples.
    """
    if num_examples < 2:
        raise ValueError(f"{num_examples} examples: give two or more")
    rng = np.random.default_rng(seed)
    first_P = rng.integers(num_examples, size=num_pairs)
    other_P = (first_P + rng.integers(1, num_examples, size=num_pairs)) % num_examples
    return np.stack([first_P, other_P], axis=1)


def threshold(costs_P: np.ndarray, *, false_positives: float = FALSE_POSITIVES) -> float:
    """τ: the cost below which so few of the pairs lie that have nothing to do with each other.

    Args:
      costs_P: of permuted pairs, see `permuted_pairs`; the paper found 0.85 in units of its own.
      false_positives: share of them that may pass for a match, at most.

    Raises:
      ValueError: too few pairs to tell such a share.
    """
    allowed = int(len(costs_P) * false_positives)
    if not allowed:
        raise ValueError(
            f"{len(costs_P)} pairs can't tell a share of {false_positives:g}: give "
            f"{int(np.ceil(1 / false_positives))} or more"
        )
    return float(np.sort(costs_P)[allowed])


def token_entropy(tokens_NT: np.ndarray) -> np.ndarray:
    """Entropy of each row's histogram in nats, f64 [N]: low where one token is repeated."""
    sorted_NT = np.sort(tokens_NT, axis=1)
    entropies = []
    for row_T in sorted_NT:
        share = np.unique(row_T, return_counts=True)[1] / len(row_T)
        entropies.append(-np.sum(share * np.log(share)))
    return np.array(entropies)


@dataclasses.dataclass(frozen=True)
class Memorization:
    """What a stage gives back after prompts of one length.

    Attributes:
      prompt_tokens: of the example that it was given.
      exact: share of examples that go on token by token.
      approximate: share whose transport cost is below the threshold.
      entropy: of what was generated, in nats.
    """

    prompt_tokens: int
    exact: bootstrap.Estimate
    approximate: bootstrap.Estimate
    entropy: bootstrap.Estimate


def measure(
    go_on: Callable[[int], np.ndarray],
    examples_NT: np.ndarray,
    centroids_KD: np.ndarray,
    *,
    cost_below: float,
    prompt_tokens: Sequence[int] = (0, 25, 50, 125, 250),
    num_tokens: int = TOKENS,
) -> list[Memorization]:
    """Memorization over the length of the prompt.

    Args:
      go_on: what the stage generates greedily after so many tokens of every example, [N, ≥
        `num_tokens`], the prompt not included.
      examples_NT: semantic tokens of training examples, at least a prompt and `num_tokens`.
      centroids_KD: of the clusters.
      cost_below: see `threshold`.
      prompt_tokens: lengths of prompts.
      num_tokens: compared of each example.

    Raises:
      ValueError: the examples are shorter than the longest prompt and what follows it.
    """
    if examples_NT.shape[1] < max(prompt_tokens) + num_tokens:
        raise ValueError(
            f"examples of {examples_NT.shape[1]} tokens: give {max(prompt_tokens) + num_tokens}, "
            "or shorter prompts"
        )
    results = []
    for length in prompt_tokens:
        made_NT = np.asarray(go_on(length))[:, :num_tokens]
        true_NT = examples_NT[:, length : length + num_tokens]
        costs_N = transport_costs(made_NT, true_NT, centroids_KD)
        results.append(
            Memorization(
                length,
                bootstrap.share((made_NT == true_NT).all(axis=1)),
                bootstrap.share(costs_N < cost_below),
                bootstrap.mean(token_entropy(made_NT)),
            )
        )
    return results
